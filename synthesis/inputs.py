"""Identifies the input of a run by its content, so that a file may be moved, but not changed, while a run is made."""

import hashlib
from pathlib import Path


def identify(source: str) -> str:
    """
    Return what two inputs of the same content have in common.

    Args:
        source (`str`): a file, a folder, or the name of a data set on the Hub.

    Returns:
        `str`: `sha256:` and the hash of the content of a file, or of names and contents in a folder. The name for a
        data set on the Hub.
    """
    path = Path(source)
    if path.is_file():
        return f"sha256:{_hash_file(path)}"
    if not path.is_dir():
        return source
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()} {_hash_file(file)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
