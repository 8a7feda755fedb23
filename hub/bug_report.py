"""Texts for error messages and bug reports: an error in one line, and the versions of the packages."""

from importlib.metadata import PackageNotFoundError, version


def one_line(error: BaseException | str) -> str:
    """Return the text of an error in one line, or its type if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def describe_versions() -> str:
    """Return the versions for a bug report, from the metadata of the packages: importing torch takes seconds."""
    versions = []
    for package in ("fusion-vlm", "transformers", "torch"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # run from a clone
            versions.append(f"{package} (not installed)")
    return ", ".join(versions)
