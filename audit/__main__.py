"""Run the audit: `python -m fusion_vlm.audit PATH`."""

import sys

from fusion_vlm.audit.audit import main


if __name__ == "__main__":
    sys.exit(main())
