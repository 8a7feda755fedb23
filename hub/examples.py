"""The examples of a model card: rows of image and question, their images in the folder, and the model's answers."""

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from PIL import Image


FIELDS = ("image", "question", "answer", "title")


class CardError(ValueError):
    """The card cannot be written; the message says why."""


@dataclass(frozen=True)
class Example:
    """A question about an image of the folder. `image` is the path inside the folder."""

    image: str
    question: str
    answer: str | None = None
    title: str | None = None


def read_rows(rows: list[dict] | str | os.PathLike, what: str) -> tuple[list[dict], Path]:
    """Return rows, or read them from a YAML or JSON file; also return the folder that their paths are relative to."""
    folder = Path()
    if isinstance(rows, (str, os.PathLike)):
        folder = Path(rows).parent
        try:
            rows = yaml.safe_load(Path(rows).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise CardError(f"Cannot read the {what} from {rows}: {error}.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CardError(f"The {what} must be a list of mappings, got {rows!r:.200}.")
    return rows, folder


def read_examples(examples: list[dict] | str | os.PathLike) -> list[dict]:
    """
    Return the rows of examples, their images as a `Path` or a `PIL.Image`.

    Raises:
        CardError: for a row with other fields, without a question, or whose image cannot be read.
    """
    rows, base = read_rows(examples, "widget examples")
    return [{**row, "image": check_example(row, base)} for row in rows]


def check_example(row: dict, base: Path) -> Path | Image.Image:
    """Check an example, and return its image."""
    if not {"image", "question"} <= row.keys() <= set(FIELDS):
        raise CardError(
            f"The widget example {row!r:.200} has the wrong fields, expected image and question, with answer and"
            " title if wanted."
        )
    for name in row.keys() - {"image"}:
        # YAML reads an unquoted `no` or `3` as another type.
        if not isinstance(row[name], str) or not row[name].strip():
            raise CardError(f"The `{name}` of the widget example {row!r:.200} is no text: quote it.")
    if isinstance(row["image"], Image.Image):
        return row["image"]
    path = base / Path(row["image"]).expanduser()
    if not path.is_file():
        raise CardError(f"The widget example {row['question']!r} has no image: {path} is not there.")
    try:
        with Image.open(path) as image:
            image.verify()
    except Exception as error:  # decoders raise errors of all kinds
        raise CardError(f"The widget example {row['question']!r} has no image: {path} cannot be read.") from error
    return path


def write_examples(folder: Path, rows: list[dict]) -> list[Example]:
    """Copy the images of checked rows to `widget/` of the folder, each once, and return the examples."""
    names = name_images([row["image"] for row in rows], folder / "widget")
    for image, name in zip((row["image"] for row in rows), names, strict=True):
        target = folder / "widget" / name
        target.parent.mkdir(exist_ok=True)
        if isinstance(image, Image.Image):
            image.save(target)
        elif image.resolve() != target.resolve():
            shutil.copyfile(image, target)
    return [
        Example(f"widget/{name}", row["question"], row.get("answer"), row.get("title"))
        for row, name in zip(rows, names, strict=True)
    ]


def name_images(images: list[Path | Image.Image], folder: Path) -> list[str]:
    """Return a file name for each image, all different and fit for a URL."""
    keys = [id(image) if isinstance(image, Image.Image) else image.resolve() for image in images]
    # Images that lie in the folder keep their names, so that no other image is copied over them.
    names = {key: key.name for key in keys if isinstance(key, Path) and key.parent == folder.resolve()}
    for key in keys:
        if key in names:
            continue
        path = Path(f"example-{len(names) + 1}.png") if isinstance(key, int) else key
        stem, number = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-") or "image", 1
        name = f"{stem}{path.suffix}"
        while name in names.values():
            number += 1
            name = f"{stem}-{number}{path.suffix}"
        names[key] = name
    return [names[key] for key in keys]


def answer_examples(folder: Path, examples: list[Example], max_new_tokens: int) -> list[Example]:
    """Let the model of the folder answer the examples that have no answer, without sampling."""
    # Imported late, because a card without questions to the model needs no torch.
    from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
    from fusion_vlm.processing_fusion import FusionProcessor

    try:
        processor = FusionProcessor.from_pretrained(folder)
        model = FusionForConditionalGeneration.from_pretrained(folder, dtype="auto", device_map="auto")
    except (OSError, ValueError) as error:
        raise CardError(f"{folder} cannot be asked, because it does not load: {error}") from error

    def answer(example: Example) -> str:
        content = [{"type": "image", "path": str(folder / example.image)}, {"type": "text", "text": example.question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    return [example if example.answer else replace(example, answer=answer(example)) for example in examples]
