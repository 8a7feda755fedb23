"""
The fonts that scenes and documents are written in: `font_faces.tsv`, from packages of the extra `synthesis`.

The set is fixed. A missing package is an error, because another set would draw other letters for the same seed.
"""

import csv
import hashlib
import importlib
import importlib.util
import io
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont


_TABLE = Path(__file__).parent / "font_faces.tsv"
_EXTRA = 'pip install "fusion-vlm[synthesis]"'


@dataclass(frozen=True, order=True)
class FontFace:
    """
    One face of a font family. Every face has all printable characters of ASCII.

    Args:
        family (`str`), style (`str`): such as `Roboto` and `Bold Italic`.
        design (`str`): `sans`, `serif`, `mono`, `display` or `hand`.
        has_lower_case (`bool`): whether small letters differ from capitals. A question about case needs a face that
            has them.
        license (`str`): license of the font, for the card.
        package (`str`), file (`str`): where the face is installed: the import name, and the path in its folder.
    """

    family: str
    style: str
    design: str
    has_lower_case: bool
    license: str
    package: str
    file: str

    @property
    def name(self) -> str:
        """Return the family and the style, which no other face shares."""
        return f"{self.family} {self.style}"

    @property
    def is_bold(self) -> bool:
        return any(weight in self.style for weight in ("Bold", "Black", "Semibold"))

    @property
    def is_italic(self) -> bool:
        return "Italic" in self.style

    @property
    def path(self) -> Path:
        """
        Return the installed file.

        Raises:
            ImportError: if the package or the file is missing.
        """
        path = _package_folder(self.package) / self.file
        if not path.is_file():
            raise ImportError(
                f"The font {self.name} is not in the installed package {self.package}: {path} is missing. Install the"
                f" versions in constraints.txt, with {_EXTRA}."
            )
        return path


@cache
def available_fonts() -> tuple[FontFace, ...]:
    """
    Return all faces, in the order of `font_faces.tsv`: by family, then by style.

    Raises:
        ImportError: if one is not installed. The set is the same on all machines or there is none.
    """
    with _TABLE.open(encoding="utf-8", newline="") as file:
        faces = tuple(
            FontFace(family, style, design, lower_case == "yes", license_name, package, path)
            for family, style, design, lower_case, license_name, package, path in list(
                csv.reader(file, delimiter="\t")
            )[1:]
        )
    for face in faces:
        face.path  # noqa: B018  raises if the file is missing
    return faces


@cache
def fonts_identity() -> str:
    """
    Return a SHA-256 of the table and of the bytes of all fonts.

    A run stores the identity: with other releases of the font packages, the same seed may draw other pixels.

    Raises:
        ImportError: if a font is missing.
    """
    digest = hashlib.sha256()
    for face in available_fonts():
        digest.update(repr([getattr(face, field.name) for field in fields(face)]).encode())
        digest.update(hashlib.sha256(face.path.read_bytes()).digest())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def load(face: FontFace, size: int) -> ImageFont.FreeTypeFont:
    """
    Load a face.

    Args:
        face (`FontFace`)
        size (`int`): side of the em square in pixels. Capitals are about 0.7 of the size.

    Raises:
        ImportError: if the font is not installed.
    """
    # The basic layout: the other one depends on a library that not every build of Pillow has.
    return ImageFont.truetype(_open(face), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def size_for_capitals(face: FontFace, height: int) -> int:
    """
    Return the size at which the capitals of a face are `height` pixels high: faces differ in that by a third.

    Args:
        face (`FontFace`)
        height (`int`): pixels.
    """
    top, bottom = load(face, 200).getbbox("H", anchor="ls")[1::2]
    return round(200 * height / (bottom - top))


def _open(face: FontFace) -> Path | io.BytesIO:
    """Return the font file, or its bytes: pymupdf-fonts wraps each of its files in a module."""
    if face.package != "pymupdf_fonts":
        return face.path
    return io.BytesIO(importlib.import_module(f"{face.package}.{face.path.stem}").fontbuffer)


@cache
def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ImportError(f"Drawing text needs the fonts of {package}, which are not installed: {_EXTRA}.")
    return Path(spec.submodule_search_locations[0])
