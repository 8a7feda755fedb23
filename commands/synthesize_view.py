"""`fusion-vlm synthesize view`: look at the samples of a run in a browser."""

import argparse
from pathlib import Path


DESCRIPTION = """\
Serve a page with the samples of a run, kept and rejected: pictures, questions and answers, with filters by kind, type
of question and reason of rejection. The page is on this machine alone (127.0.0.1). A run in progress may be looked at;
start again to see the parts that were finished since.

example:
  fusion-vlm synthesize view out/scenes"""


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of a run, the --output of synthesize")
    parser.add_argument("--port", type=int, default=7861, help="0 takes any that is free (default: 7861)")


def run(args: argparse.Namespace):
    folder = args.folder.expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    # Late: Gradio is an extra, and takes seconds to import.
    from fusion_vlm.synthesis.view import launch, make_page

    page = make_page(folder)
    print(f"The page: {launch(page, args.port or None)} (Ctrl-C ends it)", flush=True)
    page.block_thread()
