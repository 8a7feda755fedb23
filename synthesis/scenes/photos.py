"""
Photographs as backgrounds, from the package scikit-image of the extra `synthesis`.

The package holds them in `skimage/data`; its docstrings name the licenses: CC0 or in the public domain. The set is
fixed. A missing photograph is an error, because another set would draw other pixels for the same seed.
"""

import hashlib
import importlib.util
import random
from functools import cache
from pathlib import Path

from PIL import Image

from fusion_vlm.synthesis.scenes.canvas import Canvas


# CC0: brick, chelsea, coffee, grass, gravel. Public domain: hubble_deep_field (NASA), moon (NASA), rocket (SpaceX).
PHOTOS = (
    "brick.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "rocket.jpg",
)
# Nouns that something in a photograph could be taken for.
PHOTO_LOOK_ALIKES = {
    "chelsea.png": ("cat",),
    "coffee.png": ("mug", "circle", "oval", "bucket"),
    "hubble_deep_field.jpg": ("star",),
    "moon.png": ("circle",),
    "rocket.jpg": ("rocket", "lighthouse"),
}
MIN_CROP = 0.5  # of the shorter side


def _find_photo(name: str) -> Path:
    package = importlib.util.find_spec("skimage")
    path = Path(package.submodule_search_locations[0]) / "data" / name if package else None
    if path is None or not path.is_file():
        raise ImportError(
            f"Scenes need the photograph {name} of scikit-image, which is not installed:"
            ' pip install "fusion-vlm[synthesis]".'
        )
    return path


@cache
def identify_photos() -> str:
    """
    Return a hash of all photographs.

    Raises:
        ImportError: if one is not installed.
    """
    return hashlib.sha256(b"".join(_find_photo(name).read_bytes() for name in PHOTOS)).hexdigest()[:16]


@cache
def _load(name: str) -> Image.Image:
    with Image.open(_find_photo(name)) as image:
        return image.convert("RGB")


def paint_photo(canvas: Canvas, name: str, rng: random.Random):
    """Fill a canvas with a random part of a photograph, paler or darker than it is."""
    photo = _load(name)
    side = round(min(photo.size) * rng.uniform(MIN_CROP, 1))
    left, top = (rng.randint(0, length - side) for length in photo.size)
    part = photo.crop((left, top, left + side, top + side)).resize(canvas.image.size, Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    canvas.image.paste(part)
    veil = Image.new("L", part.size, round(255 * rng.uniform(0.1, 0.45)))
    canvas.image.paste(rng.choice(((255, 255, 255), (40, 44, 60), (235, 225, 205))), mask=veil)
