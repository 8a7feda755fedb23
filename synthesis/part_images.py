"""The images of a part while it is made, and the forms in which they are stored."""

import io
import os
import threading
from pathlib import Path

from PIL import Image


# Options of Pillow for each form. WebP without loss took 2.1 ms and 1.9 KB for a scene of 336 pixels, where PNG took
# 3.8 ms and 4.8 KB (docs/engine.md); `method` 0 is larger. JPEG is for what an image model draws.
FORMATS = {
    "webp": {"format": "WEBP", "lossless": True, "method": 1, "quality": 0},
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "png": {"format": "PNG"},
}
SUFFIXES = {"webp": "webp", "jpeg": "jpg", "png": "png"}


def encode_image(image: Image.Image, image_format: str) -> bytes:
    """Encode an image as it is stored; equal pixels give equal bytes."""
    stream = io.BytesIO()
    image.save(stream, **FORMATS[image_format])
    return stream.getvalue()


class PartImages:
    """
    The encoded images of a part by file name.

    Args:
        folder (`Path`): folder of the images that survive a kill.
        is_kept (`bool`): whether new images survive a kill, because a model draws them. Others stay in memory: to draw
            a scene again is faster than to write a file.
    """

    def __init__(self, folder: Path, is_kept: bool = False):
        self.folder, self.is_kept = folder, is_kept
        self._contents: dict[str, bytes] = {}
        if is_kept:
            folder.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, content: bytes):
        """Keep an image. A kill leaves the whole file or none."""
        if not self.is_kept:
            self._contents[name] = content
            return
        temporary = self.folder / f"{name}.{os.getpid()}-{threading.get_ident()}.tmp"
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / name)

    def read(self, name: str) -> bytes:
        content = self._contents.get(name)
        return (self.folder / name).read_bytes() if content is None else content

    def open(self, name: str) -> Image.Image:
        return Image.open(io.BytesIO(self.read(name)))

    def __contains__(self, name: str) -> bool:
        return name in self._contents or (self.folder / name).is_file()
