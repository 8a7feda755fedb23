"""
Photographs as backgrounds, from scikit-image where it is installed.

Its package holds them in `skimage/data`; their docstrings there name the licenses: CC0 or in the public domain.
`identify_photos` belongs to the identity of a run, so a run cannot go on where the photographs differ.
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


@cache
def available_photos() -> dict[str, Path]:
    """Return the paths of the photographs that are installed, by name."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        return {}
    folder = Path(package.origin).parent / "data"
    return {name: folder / name for name in PHOTOS if (folder / name).is_file()}


def identify_photos() -> str:
    """Return a hash of the installed photographs; an empty text without any."""
    contents = [path.read_bytes() for path in available_photos().values()]
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16] if contents else ""


@cache
def _load(name: str) -> Image.Image:
    photos = available_photos()
    if name not in photos:
        raise FileNotFoundError(
            f"A scene has the photograph {name!r} of scikit-image behind it, which is not installed. Install"
            " scikit-image, or draw the scenes again."
        )
    with Image.open(photos[name]) as image:
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
