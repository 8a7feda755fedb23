"""Reads the system prompts of the language models: `describe_KIND`, `ask_KIND` and `judge` in prompts/*.txt."""

from pathlib import Path


PROMPT_DIR = Path(__file__).parent / "prompts"


def load_prompts() -> dict[str, str]:
    """Read all prompts, by file name without `.txt`."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(PROMPT_DIR.glob("*.txt"))}
