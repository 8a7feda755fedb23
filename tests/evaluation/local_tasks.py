"""Documents in the formats of the benchmarks (fixtures/benchmarks.json), and tasks that read them from local files."""

import base64
import io
import json
from pathlib import Path

from datasets import Dataset, Image, List
from PIL import Image as PillowImage
from PIL import ImageDraw

from ..helpers import FIXTURES


BENCHMARKS = json.loads((FIXTURES / "benchmarks.json").read_text(encoding="utf-8"))


def draw_png() -> bytes:
    """Return a picture of a red circle."""
    image, file = PillowImage.new("RGB", (64, 64), "white"), io.BytesIO()
    ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill="red")
    image.save(file, "png")
    return file.getvalue()


def read_rows(name: str) -> list[dict]:
    """Return the documents of a benchmark, their images as bytes."""
    png = draw_png()
    images = {"@image": {"path": None, "bytes": png}, "@base64": base64.b64encode(png).decode()}

    def fill(value):
        if isinstance(value, list):
            return [fill(each) for each in value]
        return images.get(value, value) if isinstance(value, str) else value

    return [{key: fill(value) for key, value in row.items()} for row in BENCHMARKS[name]["rows"]]


def write_documents(name: str, path: Path) -> Path:
    """Write the documents of a benchmark as parquet."""
    rows = read_rows(name)
    data = Dataset.from_list(rows)
    for key in rows[0]:
        values = [row[key] for row in rows if row[key] is not None]
        if values and isinstance(values[0], dict) and "bytes" in values[0]:
            data = data.cast_column(key, Image())
        elif values and isinstance(values[0], list) and isinstance(values[0][0], dict) and "bytes" in values[0][0]:
            data = data.cast_column(key, List(Image()))
        elif not values and key.startswith("image_"):
            data = data.cast_column(key, Image())
    data.to_parquet(path)
    return path


def local_data(name: str, split: str, path: Path) -> dict:
    """Return the fields of a task's configuration that let it read the documents of a benchmark from a local file."""
    file = write_documents(name, path)
    return {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": {split: str(file)}}}
