"""`fusion-vlm synthesize push`: upload the output of a run to the Hub."""

import argparse
from pathlib import Path

from fusion_vlm.commands.errors import UsageError


DESCRIPTION = """\
Upload the output of a finished run as a data set of the Hub, private if it is new: shards, card, audit, and LLaVA's
form if the run has it. An upload that broke off is resumed by the same command: files that are there are skipped.

Rejected samples stay here, since they may be what filters were to keep away; --with-rejects uploads them, too.

example:
  fusion-vlm synthesize push out/scenes me/scenes --license cc-by-4.0"""

# What only the engine needs.
LOCAL_FILES = ["work/**", "parts/**", "done.json", "**/*.tmp", "**/*.lock"]
REJECT_FILES = ["rejects/**", "rejected.png"]
# Of an earlier upload, which another number of parts would leave behind.
REPLACED_FILES = ["data/*", "rejects/*", "images/*", "train.json", "rejected.png"]


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of a run, the --output of synthesize")
    parser.add_argument("repo", metavar="REPO", help="owner/name, or name for a repository of the token's owner")
    parser.add_argument("--license", metavar="ID", help="set the license in the card first, such as cc-by-4.0")
    parser.add_argument("--public", action="store_true", help="upload to a public repository")
    parser.add_argument("--token", help="Hub token (default: the one of `hf auth login`)")
    parser.add_argument("--with-rejects", action="store_true", help="upload rejected samples, too")


def run(args: argparse.Namespace):
    folder = args.folder.expanduser()
    if not (folder / "done.json").is_file() or not (folder / "README.md").is_file():
        raise UsageError(f"{folder} holds no finished run: give the command of the run again, which finishes it.")
    # Late: help texts have to answer at once.
    from huggingface_hub import HfApi

    from fusion_vlm.hub.push import prepare_repository, upload
    from fusion_vlm.synthesis.card import set_license

    if args.license:
        set_license(folder, args.license)
    api = HfApi(token=args.token)
    repo_id = prepare_repository(api, args.repo, public=args.public, repo_type="dataset")
    upload(
        api,
        repo_id,
        folder,
        repo_type="dataset",
        message="Upload a data set of fusion-vlm",
        ignored=LOCAL_FILES + ([] if args.with_rejects else REJECT_FILES),
        replaced=REPLACED_FILES,
        resume="the same command",
    )
    print(f"Uploaded to datasets/{repo_id}")
