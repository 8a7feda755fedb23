"""`fusion-vlm verify`: check a converted folder and print a report to paste into an issue."""

import argparse

from fusion_vlm.hub.names import find_folder


DESCRIPTION = """\
Check a converted folder: the numbers in its tensors, how well its matrices fit each other, and its answers to
questions about bundled pictures, under several conditions. Prints a report to paste into an issue, and ends with PASS
(exit code 0) or with FAIL and the damaged part (exit code 1). docs/verify.md says what the check can see.

example:
  fusion-vlm verify out/fusion-phi3.5-3b"""


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("folder", metavar="FOLDER", help="a converted folder")
    parser.add_argument(
        "--device", default="auto", help="such as cpu or cuda:1 (default: auto, a GPU if there is one)"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="load with the folder's own code, through the Auto classes"
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=60,
        metavar="SECONDS",
        help="begin no further optional check after this time (default: 60)",
    )


def run(args: argparse.Namespace) -> int:
    """Check a folder, print the report on stdout, and return the exit code."""
    folder = find_folder(args.folder)
    from fusion_vlm.verification.verify import verify

    passed = verify(folder, device=args.device, trust_remote_code=args.trust_remote_code, time_limit=args.time_limit)
    return 0 if passed else 1
