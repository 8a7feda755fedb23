"""Completion of a chat's lines with Tab: its commands, and paths after `/image`."""

import os


try:
    import readline
except ImportError:  # Windows, and Pythons built without it: lines are read without editing
    readline = None


def complete_lines(commands: list[str]):
    """Give `input` line editing, a history, and the completion of commands and paths."""
    if readline is None:
        return

    def complete(word: str, state: int) -> str | None:
        start = readline.get_begidx()
        candidates = list_candidates(readline.get_line_buffer()[: readline.get_endidx()], commands)
        # The word is what follows the last space, and a path may have spaces before it.
        words = [candidate[start:] for candidate in candidates]
        return words[state] if state < len(words) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    is_libedit = "libedit" in (readline.__doc__ or "")  # on macOS
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")


def list_candidates(line: str, commands: list[str]) -> list[str]:
    """List the lines that a line may be completed to."""
    head, separator, path = line.partition(" ")
    if not separator:
        found = [command for command in commands if command.startswith(line)]
        return [f"{command} " if command == "/image" else command for command in found] if line else []
    if head != "/image":
        return []
    quote = path[:1] if path[:1] in ("'", '"') else ""
    folder, name = os.path.split(path.removeprefix(quote))
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder) or "."), key=lambda entry: entry.name)
    except (OSError, ValueError):
        return []
    shown = [entry for entry in entries if entry.name.startswith(name) and (name or entry.name[0] != ".")]
    return [f"{head} {quote}{os.path.join(folder, entry.name)}{'/' if entry.is_dir() else quote}" for entry in shown]
