"""Runs `fusion-vlm cost`."""

import sys

from fusion_vlm.commands.main import main


if __name__ == "__main__":
    sys.exit(main(["cost", *sys.argv[1:]]))
