"""`python -m fusion_vlm.audit` is `fusion-vlm audit`."""

import sys

from fusion_vlm.commands.main import main


if __name__ == "__main__":
    sys.exit(main(["audit", *sys.argv[1:]]))
