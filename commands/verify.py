"""`fusion-vlm verify`: check a converted folder and print a report to paste into an issue."""

import argparse

from fusion_vlm.verification.verify import verify as check


def verify(args: argparse.Namespace) -> int:
    """Check a folder, print the report on stdout, and return the exit code."""
    passed = check(
        args.folder, device=args.device, trust_remote_code=args.trust_remote_code, time_limit=args.time_limit
    )
    return 0 if passed else 1
