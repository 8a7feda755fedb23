"""What decides the pixels and texts of a scene beside its seed: a run stores it, and is not resumed with another."""

import hashlib
from functools import cache
from pathlib import Path

import PIL

from fusion_vlm.synthesis.scenes.fonts import fonts_identity
from fusion_vlm.synthesis.scenes.photos import identify_photos


FOLDER = Path(__file__).parent


@cache
def identify_drawing() -> dict[str, str]:
    """
    Return hashes of the grammar (code and texts), of fonts and photographs, and the version of Pillow.

    Raises:
        ImportError: if a font or a photograph is not installed.
    """
    documents = FOLDER.parent / "documents"
    files = [*FOLDER.glob("*.py"), *FOLDER.glob("*.txt"), *(FOLDER.parent / "kinds").glob("*.py")]
    files += [*documents.glob("*.py"), *documents.glob("words/*")]
    grammar = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files)))
    return {
        "grammar": grammar.hexdigest()[:16],
        "fonts": fonts_identity()[:16],
        "photos": identify_photos(),
        "pillow": PIL.__version__,
    }
