"""Which room imports which: the map in CONTRIBUTING.md, held by reading the imports of every file."""

import ast
from pathlib import Path

import pytest

from .helpers import ROOT


MODEL = {"configuration_fusion", "modeling_fusion", "processing_fusion"}
ALLOWED = {
    "configuration_fusion": {
        "modeling_fusion"
    },  # for type checkers only; it tells transformers which code belongs together
    "modeling_fusion": {"configuration_fusion"},
    "processing_fusion": {"configuration_fusion"},
    "handler": set(),
    "hub": MODEL,
    "convert_checkpoints": MODEL | {"hub"},
    "visualization": MODEL | {"hub"},
    "verification": MODEL | {"hub"},
    "rows": MODEL,
    "training": MODEL | {"hub", "rows"},
    "synthesis": {"rows"},
    "audit": {"rows"},
    "evaluation": MODEL | {"hub"},
    "serving": MODEL | {"hub"},
}


def read_imports(path: Path) -> set[str]:
    """Return the rooms that a file imports anywhere but below `if __name__ == "__main__"`."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "__main__" in ast.dump(node.test))]
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            modules.add(f"fusion_vlm.{node.module}")
        elif isinstance(node, ast.ImportFrom):
            modules |= (
                {f"fusion_vlm.{name.name}" for name in node.names} if node.module == "fusion_vlm" else {node.module}
            )
        elif isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("fusion_vlm.")}


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_the_map_allows(room):
    folder = ROOT / room
    # A `__main__.py`, and the former name of a command, only call the command line.
    files = (
        [file for file in folder.rglob("*.py") if file.name != "__main__.py"]
        if folder.is_dir()
        else [ROOT / f"{room}.py"]
    )
    assert files
    for file in files:
        if file == ROOT / "synthesis" / "audit.py":
            continue
        imported = read_imports(file) - {room}
        assert imported <= ALLOWED[room], f"{file.relative_to(ROOT)} imports {sorted(imported - ALLOWED[room])}"


def test_no_file_outside_the_tests_reads_their_fixtures():
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT).parts
        if parts[0] not in ("tests", "out") and not parts[0].startswith("."):
            assert "fixtures" not in file.read_text(), file
