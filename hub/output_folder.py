"""Write a folder that appears in its place only when it is complete."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_output_folder(path: str | os.PathLike) -> Path:
    """
    Return the path of a folder that is to be written.

    Raises:
        ValueError: if there is something in it, or a file in its place.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"The output folder {path} exists and is not empty. Remove it or name another one.")
    return path


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` to write to, and move it to `path` at the end; an error leaves nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".partial") as scratch:
        folder = Path(scratch) / path.name
        folder.mkdir()
        yield folder
        folder.replace(path)
