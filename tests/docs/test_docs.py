"""
The documentation: marked blocks run and print what the page shows; links, paths, commands and options exist.

A block runs if the line before its fence is `<!-- run -->`, or `<!-- run: slow -->` for `pytest -m slow`. The block
after it that is marked `<!-- output -->` is what it prints; a line `...` there stands for any lines. The blocks of a
page run in order, in one folder that looks like a clone.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fusion_vlm.commands.main import COMMANDS, build_parser

from ..helpers import ROOT
from .pages import (
    PAGES,
    RUN,
    RUN_EVAL,
    RUN_SLOW,
    Block,
    count_words,
    page_name,
    read_blocks,
    read_code,
    read_commands,
    read_links,
)


# First parts of paths that are the user's own, or names on the Hub.
OTHER_PATHS = re.compile(
    r"out/|/|~|\.|work/|shapes/|samples/|lmms_eval/|rejects/|parts/|images/|widget/|data/|site-packages/|starriver030515/|google/|Qwen/|me/|OWNER/|DIR/"
    r"|FOLDER/|owner/|huggingface/|.*(MODEL_TYPE|NAME)"
)
PATH = re.compile(r"[\w.-]+(/[\w.*-]+)*(/|\.(py|md|sh|ya?ml|cfg|toml|jinja|png|svg|txt|jsonl))")
# Files that the project writes, or that users bring.
OTHER_FILES = {"notes.txt", "captions.txt", "requirements.txt", "README.md", "audit.png", "bias.png", "curves.png",
               "eval.yaml", "dice.png", "broken.jsonl", "rejects.jsonl", "chat_template.jinja", "metadata.jsonl",
               "answers.jsonl"}  # fmt: skip
FOLDERS_OF_A_CLONE = [entry for entry in ROOT.iterdir() if entry.name not in ("out", ".git")]
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": "1",
}


def choose_blocks(page: Path, with_slow: bool) -> list[Block]:
    return [block for block in read_blocks(page) if block.mark == RUN or (with_slow and block.runs)]


def list_pages(with_slow: bool):
    """Return the pages with blocks to run; a page without slow blocks has nothing more to run among the slow tests."""
    chosen = [page for page in PAGES if len(choose_blocks(page, with_slow)) > 0]
    if with_slow:
        chosen = [page for page in chosen if choose_blocks(page, True) != choose_blocks(page, False)]
    return [pytest.param(page, id=page_name(page)) for page in chosen]


def run_page(page: Path, folder: Path, with_slow: bool):
    """Run the blocks of a page in a folder that looks like a clone, and compare what they print."""
    clone = folder / "clone"
    clone.mkdir()
    for entry in FOLDERS_OF_A_CLONE:
        (clone / entry.name).symlink_to(entry)
    blocks = choose_blocks(page, with_slow)
    fields = [{"page": page_name(page), **vars(block)} for block in blocks]
    (folder / "blocks.json").write_text(json.dumps(fields))
    files = [str(folder / "blocks.json"), str(folder / "results.json")]
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run_blocks.py")), *files],
        cwd=clone, env=ENVIRONMENT, check=True,
    )  # fmt: skip
    results = json.loads((folder / "results.json").read_text())
    for block, result in zip(blocks, results, strict=False):
        where = f"{page_name(page)}:{block.line}"
        print(f"{where} ({result['seconds']} s)")
        assert result["error"] is None, f"{where}\n{result['error']}"
        if block.output is not None:
            assert matches(result["printed"], block.output), (
                f"{where} prints\n{result['printed']}\nbut shows\n{block.output}"
            )


def matches(printed: str, shown: str) -> bool:
    """Whether a block printed what the page shows, where a line `...` stands for any lines."""
    lines = [re.escape(line.rstrip()) for line in shown.strip().splitlines()]
    pattern = "\n".join(r"(?:.*\n)*?.*" if line == re.escape("...") else line for line in lines)
    return re.fullmatch(pattern, "\n".join(line.rstrip() for line in printed.strip().splitlines())) is not None


@pytest.mark.parametrize("page", list_pages(with_slow=False))
def test_marked_blocks_run(page, tmp_path):
    run_page(page, tmp_path, with_slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", list_pages(with_slow=True))
def test_all_marked_blocks_run(page, tmp_path):
    run_page(page, tmp_path, with_slow=True)


def test_output_is_compared():
    assert matches("one \ntwo\n", "one\ntwo")
    assert matches("one\ntwo\nthree\nfour\n", "one\n...\nfour")
    assert not matches("one\ntwo", "one")
    assert not matches("one\ntwo", "one\nthree")


def test_marks_are_known():
    """A mark with a typo would not run."""
    for page in PAGES:
        marks = {block.mark for block in read_blocks(page)} - {""}
        assert marks <= {RUN, RUN_SLOW, RUN_EVAL}, page_name(page)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page):
    for target in read_links(page):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page_name(page)}: there is no {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page_name(page)}: there is no heading {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_paths_exist(page):
    names = {path.name for path in ROOT.rglob("*") if ".venv" not in path.parts}
    for code in read_code(page):
        if not PATH.fullmatch(code) or code in OTHER_FILES or OTHER_PATHS.match(code):
            continue
        found = list(ROOT.glob(code.rstrip("/")))
        # Without a folder, a name is one of the tree; within a room's page the room is not repeated.
        assert found or code in names or list(ROOT.glob(f"*/{code.rstrip('/')}")), f"{page_name(page)}: no {code}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_and_their_options_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for command in read_commands(page):
        if command[0] == "fusion-vlm" and len(command) > 1 and command[1] != "--version":
            check_options(command, page)
        elif command[0] == "make" and len(command) > 1:
            assert command[1] in targets, f"{page_name(page)}: there is no {' '.join(command)}"
        elif command[0] == "python" and len(command) > 1:
            check_script(command, page)


def check_options(command: list[str], page: Path):
    """Check that a command of `fusion-vlm` and its options exist; `fusion-vlm a|b` names several."""
    options = {word.partition("=")[0] for word in command if word.startswith("--")}
    names = [" ".join(command[1:3])] if " ".join(command[1:3]) in COMMANDS else command[1].split("|")
    for name in names:
        if not re.fullmatch(r"[a-z ]+", name):  # COMMAND or --help
            continue
        assert name in COMMANDS, f"{page_name(page)}: there is no fusion-vlm {name}"
        if name == "serve" and "vllm" in command:
            continue  # it takes vLLM's options too; tests/serving/vllm starts it with some
        unknown = options - set(build_parser(name)._option_string_actions)
        assert not unknown, f"{page_name(page)}: fusion-vlm {name} has no {unknown}"


def check_script(command: list[str], page: Path):
    """Check that the script or module of a command line exists."""
    if command[1] == "-m" and command[2].startswith(("vllm.", "lmms_eval")):
        return  # in an environment of its own
    if command[1] == "-m":
        found = importlib.util.find_spec(command[2]) is not None
    else:
        found = not command[1].endswith(".py") or (ROOT / command[1]).is_file()
    assert found, f"{page_name(page)}: there is no {' '.join(command[:3])}"


def test_readme_is_short():
    readme = ROOT / "README.md"
    assert 110 <= len(readme.read_text(encoding="utf-8").splitlines()) <= 140
    assert count_words(readme) <= 800


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "docs"], ids=page_name)
def test_readme_names_each_page(page):
    assert page_name(page) in read_links(ROOT / "README.md")


def test_pre_commit_has_the_ruff_of_the_environment():
    pinned = re.search(r"^ruff==(.*)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)[1]
    assert f"rev: v{pinned}\n" in (ROOT / ".pre-commit-config.yaml").read_text()
