"""`fusion-vlm card`: write the model card of a folder."""

import argparse

from fusion_vlm.hub.names import find_folder, refuse_adapter


DESCRIPTION = """\
Write the model card of a folder: README.md as the Hub reads it, with images for the widget. `convert` does so by
itself; this is for folders that were trained, or moved. Only what is given here is claimed.

example:
  fusion-vlm card out/my-model --repo-id me/my-model --base-model starriver030515/FUSION-Phi3.5-3B --license mit"""


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("folder", metavar="FOLDER", help="a folder that loads")
    parser.add_argument("--repo-id", metavar="REPO", help="the Hub repository it is meant for, owner/name")
    parser.add_argument("--released", metavar="REPO", help="the authors' checkpoint that the weights are")
    parser.add_argument("--name", help="title (default: that of the repository, or of the folder)")
    parser.add_argument("--description", metavar="TEXT", help="a paragraph on what it was trained on, say")
    parser.add_argument("--base-model", metavar="REPO", nargs="+", help="what it was trained from")
    parser.add_argument("--license", metavar="ID", help="the Hub's id of the license, such as apache-2.0")
    parser.add_argument(
        "--license-name", metavar="NAME", help="of a license that the Hub has no id of (--license other)"
    )
    parser.add_argument("--license-link", metavar="URL", help="its text: an address, or a file of the folder")
    parser.add_argument("--datasets", metavar="REPO", nargs="+", help="what it was trained on")
    parser.add_argument("--results", metavar="FILE", help="YAML or JSON with evaluation results")
    parser.add_argument(
        "--examples",
        metavar="FILE",
        help="YAML or JSON with widget examples: image (copied to widget/), question, answer, title",
    )
    parser.add_argument("--ask", action="store_true", help="let the model answer the examples that have no answer")
    parser.add_argument(
        "--handler",
        action="store_true",
        help="write handler.py and requirements.txt for Inference Endpoints too, as convert does",
    )


def run(args: argparse.Namespace):
    folder = find_folder(args.folder)
    refuse_adapter(folder)
    from fusion_vlm.hub.card import write_card

    print(f"Wrote {write_card(**{**vars(args), 'folder': folder})}")
