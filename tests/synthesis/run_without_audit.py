"""Run `fusion-vlm synthesize` with the given options, but without the audit of the output."""

import sys
from types import ModuleType

from fusion_vlm.commands.main import main


if __name__ == "__main__":
    module = sys.modules["fusion_vlm.audit.card"] = ModuleType("fusion_vlm.audit.card")
    module.audit_for_card = None
    sys.exit(main(["synthesize", *sys.argv[1:]]))
