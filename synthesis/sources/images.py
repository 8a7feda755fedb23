"""Reads the images of an input: files in a folder, or inside of parquet files and shards of the data engine."""

import base64
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fusion_vlm.rows.forms import RowError
from fusion_vlm.rows.readers import import_table_library
from fusion_vlm.synthesis.shards import read_shard
from fusion_vlm.synthesis.sources.inputs import Input, read_rows


if TYPE_CHECKING:
    from fusion_vlm.synthesis.sources.prepared import Request

SUFFIXES = {"JPEG": "jpg", "TIFF": "tif"}  # of Pillow's formats, where they differ
BATCH_ROWS = 16  # images of a parquet file in memory at once
NUM_TRIED = 20  # images that are looked for before a run begins
SUBFOLDERS = ("", "images")  # of the folder of the input


def find_image_folder(request: "Request", found: Input) -> str:
    """
    Find the subfolder of the input's folder in which paths of images begin; "" if there are no paths.

    Raises:
        FileNotFoundError: if none of the first images is there.
    """
    rows = islice(read_rows(found, request.columns.readable(request.first_stage)), NUM_TRIED)
    paths = [row.image for row in rows if isinstance(row.image, str)]
    for subfolder in SUBFOLDERS:
        images = InputImages(request, found, subfolder)
        if not paths or any(images.exists(path) for path in paths):
            return subfolder
    raise FileNotFoundError(
        f"None of the first images of {found.path} is there, such as {paths[0]}. Name the folder that their paths"
        " begin in: --image-folder DIR."
    )


class InputImages:
    """
    The images of an input.

    Args:
        request (`Request`), found (`Input`)
        subfolder (`str`): from `find_image_folder`.
    """

    def __init__(self, request: "Request", found: Input, subfolder: str):
        self.found = found
        folder = Path(found.files[0]).parent if found.files else Path()
        self.folder = Path(request.image_folder).expanduser() if request.image_folder else folder / subfolder
        self._place, self._values = None, iter(())

    def exists(self, path: str) -> bool:
        try:
            self._resolve(path)
        except RowError:
            return False
        return True

    def read(self, image: Any) -> tuple[bytes, str]:
        """
        Read the image of a row.

        Args:
            image: of `Row`. Images inside of tables are read in order, so ask for them in order.

        Returns:
            `bytes`, `str`: the encoded image as it is, and the suffix of its format.

        Raises:
            RowError: if there is none, several or a broken one.
        """
        if isinstance(image, list) and len(image) == 2 and all(isinstance(part, int) for part in image):
            image = self._read_table(*image)
        if isinstance(image, list):
            if len(image) != 1:
                raise RowError(f"the row has {len(image)} images, expected one")
            image = image[0]
        if not image or (isinstance(image, dict) and not image.get("bytes") and not image.get("path")):
            raise RowError("the row has no image")
        content = image if isinstance(image, bytes) else self._load(image)
        try:
            with Image.open(io.BytesIO(content)) as opened:
                image_format = opened.format
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise RowError(f"the image cannot be read: {error}") from error
        return content, SUFFIXES.get(image_format, image_format.lower())

    def _load(self, image: Any) -> bytes:
        image = self._resolve(image)
        if isinstance(image, dict):
            return image["bytes"]
        if isinstance(image, Path):
            return image.read_bytes()
        try:
            return base64.b64decode(image.rpartition(",")[2], validate=True)
        except ValueError as error:
            raise RowError(f"the image {image[:60]!r} is no file and no base64") from error

    def _resolve(self, image: Any) -> Any:
        from fusion_vlm.rows.table import resolve_image  # late: it imports torch

        return resolve_image(image, self.folder)

    def _read_table(self, file: int, row: int) -> Any:
        """Return the image of a row of a table as it is stored."""
        if self._place is None or self._place[0] != file or not 0 <= row - self._place[1] < 1000:
            start, self._values = self._open_table(file, row)
            self._place = (file, start)
        skipped = row - self._place[1]
        self._place = (file, row + 1)
        return next(islice(self._values, skipped, None))

    def _open_table(self, index: int, row: int) -> tuple[int, Iterator[Any]]:
        """Return the first row of the group that holds a row, and the images from there on."""
        if self.found.form == "tar":
            return 0, (value["images"] for value in read_shard(Path(self.found.files[index]), ("images",)))
        file = import_table_library("pyarrow.parquet").ParquetFile(self.found.files[index])
        column = next(name for name in self.found.image_columns if name in file.schema_arrow.names)
        start, group = 0, 0
        while start + (size := file.metadata.row_group(group).num_rows) <= row:
            start, group = start + size, group + 1
        groups = list(range(group, file.metadata.num_row_groups))
        batches = file.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=[column])
        return start, (value for batch in batches for value in batch.column(0).to_pylist())
