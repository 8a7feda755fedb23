"""Read the pages of the documentation: their fenced blocks, prose, links, paths and command lines."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from ..helpers import ROOT


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
RUN, RUN_SLOW, OUTPUT = "<!-- run -->", "<!-- run: slow -->", "<!-- output -->"
RUN_EVAL = "<!-- run: eval -->"  # in the environment of make test-eval, by tests/evaluation/test_evaluate.py
FENCE = re.compile(r"^( *)```(\w*)\s*$")


@dataclass
class Block:
    """A fenced block. `mark` is the comment on the line before the fence, `line` the number of its first line."""

    language: str
    text: str
    line: int
    mark: str = ""
    output: str | None = None  # of the block after it that is marked as its output

    @property
    def runs(self) -> bool:
        return self.mark in (RUN, RUN_SLOW)


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, each output joined to the block that prints it."""
    lines = page.read_text(encoding="utf-8").splitlines()
    blocks, start, indent = [], None, ""
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if not fence:
            continue
        if start is None:
            start, indent = number, fence[1]
            mark = lines[number - 1].strip() if number else ""
            blocks.append(Block(fence[2], "", number + 2, mark if mark.startswith("<!--") else ""))
        else:
            blocks[-1].text = "\n".join(text.removeprefix(indent) for text in lines[start + 1 : number])
            start = None
    assert start is None, f"{page}: the block that begins in line {start} does not end"
    return join_outputs(blocks)


def join_outputs(blocks: list[Block]) -> list[Block]:
    joined = []
    for block in blocks:
        if block.mark == OUTPUT:
            assert joined and joined[-1].runs, f"line {block.line}: an output follows the block that prints it"
            joined[-1].output = block.text
        else:
            joined.append(block)
    return joined


def read_prose(page: Path) -> str:
    """Return the text of a page without fenced blocks and comments."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^ *```.*?^ *```\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def count_words(page: Path) -> int:
    """Count the words of paragraphs and lists: not of blocks, tables, headings, images and addresses."""
    lines = read_prose(page).splitlines()
    prose = "\n".join(line for line in lines if not re.match(r"\s*(\||#|!\[)", line))
    return len(re.findall(r"[A-Za-z][\w'.-]*", re.sub(r"\]\([^)]*\)", "]", prose)))


def read_code(page: Path) -> list[str]:
    """Return the inline code of a page."""
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", read_prose(page))]


def read_links(page: Path) -> list[str]:
    """Return the relative targets of links and images."""
    targets = re.findall(r"\]\(([^)\s]+)\)", read_prose(page))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def read_commands(page: Path) -> list[list[str]]:
    """Return the words of each command line, in blocks and in inline code; pipes and `&&` separate commands."""
    lines = []
    for block in read_blocks(page):
        if block.language in ("", "bash", "console", "text"):
            lines += block.text.replace("\\\n", " ").splitlines()
    commands = []
    for line in lines + read_code(page):
        try:
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        except ValueError:  # a quotation mark of prose
            continue
        part = []
        for word in [*words, "|"]:
            if word in ("|", "&&", "||", ";", "&", ">"):
                commands.append(part)
                part = []
            else:
                part.append(word)
    return [command for command in commands if command]
