"""The former name of `fusion-vlm audit`, for one release: `python -m fusion_vlm.synthesis.audit`."""

import sys

from fusion_vlm.commands.main import main


if __name__ == "__main__":
    print("warning: python -m fusion_vlm.synthesis.audit is now: fusion-vlm audit", file=sys.stderr)
    sys.exit(main(["audit", *sys.argv[1:]]))
