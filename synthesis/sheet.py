"""A sheet of pictures with their questions, for the card of a data set."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from fusion_vlm.synthesis.filters.named import CHECKS
from fusion_vlm.synthesis.sample import Sample
from fusion_vlm.synthesis.shards import first_image, list_shards, read_reject_file, read_reject_images, read_shard


NUM_EACH = 2  # pictures of each kind, or of each reason
MAX_TILES = 24
MAX_FILES = 20  # shards, or files of rejects, that are searched
NUM_COLUMNS, IMAGE_SIZE, MARGIN = 6, 176, 8
LINE_HEIGHT, LINE_LENGTH, NUM_LINES = 13, 29, 10


class Tile(NamedTuple):
    """A picture of the sheet, if the sample has one, and the lines below."""

    image: bytes | None
    lines: list[str]


def write_sheet(tiles: Iterable[Tile], path: Path) -> bool:
    """
    Write a sheet as PNG with 256 colors, below 1.5 MB.

    Returns:
        `bool`: whether there was anything to show; else no file is written.
    """
    tiles = list(tiles)
    if not tiles:
        path.unlink(missing_ok=True)
        return False
    num_rows = -(-len(tiles) // NUM_COLUMNS)
    width, height = IMAGE_SIZE + MARGIN, IMAGE_SIZE + NUM_LINES * LINE_HEIGHT + 2 * MARGIN
    columns = min(NUM_COLUMNS, len(tiles))
    sheet = Image.new("RGB", (columns * width + MARGIN, num_rows * height + MARGIN), "white")
    for index, tile in enumerate(tiles):
        row, column = divmod(index, NUM_COLUMNS)
        _draw_tile(sheet, tile, MARGIN + column * width, MARGIN + row * height)
    stream = io.BytesIO()
    sheet.quantize(256).save(stream, "PNG", optimize=True)
    path.write_bytes(stream.getvalue())
    return True


def _draw_tile(sheet: Image.Image, tile: Tile, left: int, top: int):
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    if tile.image is None:
        draw.rectangle((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE), "#eeeeee")
        draw.text((left + MARGIN, top + MARGIN), "no image", "#666666", font)
    else:
        with Image.open(io.BytesIO(tile.image)) as image:
            sheet.paste(ImageOps.contain(image.convert("RGB"), (IMAGE_SIZE, IMAGE_SIZE)), (left, top))
    for number, line in enumerate(_wrap(tile.lines)):
        color = "#666666" if number == 0 else "black"
        draw.text((left, top + IMAGE_SIZE + MARGIN // 2 + number * LINE_HEIGHT), line, color, font)


def _wrap(lines: list[str]) -> list[str]:
    wrapped = [part for line in lines for part in wrap(line, LINE_LENGTH) or [""]]
    return wrapped if len(wrapped) <= NUM_LINES else [*wrapped[: NUM_LINES - 1], "..."]


def describe(sample: Sample) -> list[str]:
    """Return the lines of a tile: kind, why it was rejected, and the turns."""
    lines = [sample.kind] if sample.reason is None else [sample.kind, sample.reason]
    for turn in sample.turns:
        lines += [f"Q: {turn.question_with_options}", f"A: {turn.answer}"]
    return lines if sample.turns else [*lines, sample.description]


def pick_accepted(folder: Path, kinds: Iterable[str]) -> Iterator[Tile]:
    """Yield the first accepted samples of each kind, in the order of the kinds."""
    tiles = {kind: [] for kind in kinds}
    for path in list_shards(folder)[:MAX_FILES]:
        if all(len(found) >= NUM_EACH for found in tiles.values()):
            break
        for row in read_shard(path, ("images", "sample")):
            sample = Sample.from_dict(json.loads(row["sample"]))
            found = tiles.setdefault(sample.kind, [])
            if len(found) < NUM_EACH:
                found.append(Tile(first_image(row), describe(sample)))
    yield from [tile for found in tiles.values() for tile in found][:MAX_TILES]


def pick_rejected(folder: Path) -> Iterator[Tile]:
    """Yield the first rejected samples of each rule, but for what filters of personal data and unsafe images found."""
    counts, num = Counter(), 0
    for path in sorted((folder / "rejects").glob("part-*.jsonl"))[:MAX_FILES]:
        samples = []
        for sample in read_reject_file(path):
            if sample.rejected_by[0] in CHECKS:
                continue
            counts[sample.rejected_by] += 1
            if counts[sample.rejected_by] <= NUM_EACH and num < MAX_TILES:
                samples.append(sample)
                num += 1
        ids = {sample.id for sample in samples}
        file = path.with_name(f"images-{path.stem.removeprefix('part-')}.parquet")
        images = {id: image for id, image in read_reject_images(file) if id in ids}
        yield from (Tile(images.get(sample.id), describe(sample)) for sample in samples)
