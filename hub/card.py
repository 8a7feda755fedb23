"""
The model card of a FUSION folder: README.md with the metadata that the Hub reads, the widget's images,
`.eval_results/` and, for a Llama decoder, the notice that its licence asks for.

The converter calls `write_card` for every folder that it writes, and `fusion-vlm card FOLDER` for any other one.
"""

import difflib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
    hf_hub_url,
)

from ..configuration_fusion import TESTED_RELEASES, FusionConfig


HUB_DIR = Path(__file__).resolve().parent
PHOTO = HUB_DIR / "chelsea.jpg"
AUTHORS = "starriver030515"  # the account of the released models on the Hub
PIPELINE_TAG = "image-text-to-text"
GENERATION_PARAMETERS = {"max_new_tokens": 128, "do_sample": False}
WRITTEN_BY = "<!-- Written by fusion_vlm/hub/card.py"
# The id that `.eval_results` needs of a task; only those that a dataset's own eval.yaml names are shown by the Hub.
EVAL_TASK_ID = "default"
LLAMA_NOTICE = (
    "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright \N{COPYRIGHT SIGN} Meta Platforms, Inc."
    " All Rights Reserved.\n"
)


@dataclass(frozen=True)
class Part:
    """A pretrained part of the released models. `label` is its word in their names; `sizes` tell it in a config."""

    hub_id: str
    label: str
    sizes: dict[str, int | str]

    def matches(self, config) -> bool:
        return all(getattr(config, key, None) == value for key, value in self.sizes.items())


@dataclass(frozen=True)
class Decoder(Part):
    license_id: str
    license_name: str
    license_link: str


TOWERS = (
    Part(
        "google/siglip-so400m-patch14-384",
        "FUSION",
        {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 26,
            "image_size": 384,
            "patch_size": 14,
        },
    ),
    Part(
        "google/siglip2-giant-opt-patch16-384",
        "FUSION-X",
        {
            "hidden_size": 1536,
            "intermediate_size": 6144,
            "num_hidden_layers": 39,
            "image_size": 384,
            "patch_size": 16,
        },
    ),
)
DECODERS = (
    Decoder(
        "microsoft/Phi-3.5-mini-instruct",
        "Phi3.5-3B",
        {"model_type": "phi3", "hidden_size": 3072, "num_hidden_layers": 32, "vocab_size": 32013},
        "mit",
        "the MIT License",
        "https://huggingface.co/microsoft/Phi-3.5-mini-instruct/resolve/main/LICENSE",
    ),
    Decoder(
        "meta-llama/Llama-3.1-8B-Instruct",
        "LLaMA3.1-8B",
        {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 128258},
        "llama3.1",
        "the Llama 3.1 Community License",
        "https://www.llama.com/llama3_1/license/",
    ),
)
# Of the released names, with what each checkpoint is and the data that it has seen.
STAGES = {
    "": ("final checkpoint", [f"{AUTHORS}/FUSION-Pretrain-10M", f"{AUTHORS}/FUSION-Finetune-12M"]),
    "-Stage1": ("Stage 1 checkpoint", [f"{AUTHORS}/FUSION-Pretrain-10M"]),
    "-Stage1.5": ("Stage 1.5 checkpoint", [f"{AUTHORS}/FUSION-Pretrain-10M", f"{AUTHORS}/FUSION-Finetune-12M"]),
}
# GB of weights in 4 bits, computed from the shapes (benchmarks/quantization.py).
NF4_GB = {
    "FUSION-Phi3.5-3B": 3.55,
    "FUSION-X-Phi3.5-3B": 4.98,
    "FUSION-LLaMA3.1-8B": 7.35,
    "FUSION-X-LLaMA3.1-8B": 8.78,
}
PHOTO_EXAMPLES = [
    {"image": PHOTO, "question": "What animal is this?", "title": "A short answer"},
    {"image": PHOTO, "question": "Describe the picture in one sentence.", "title": "A description"},
]


class CardError(ValueError):
    """The card cannot be written; the message says why."""


@dataclass(frozen=True)
class Architecture:
    """Tower and decoder of a released model, recognised by the sizes in a config."""

    tower: Part
    decoder: Decoder

    @property
    def name(self) -> str:
        return f"{self.tower.label}-{self.decoder.label}"


def find_architecture(config: FusionConfig) -> Architecture | None:
    """The released model that has exactly these sizes, or `None`. A fine-tuned model has the sizes of its origin."""
    tower = next((part for part in TOWERS if part.matches(config.vision_config)), None)
    decoder = next((part for part in DECODERS if part.matches(config.text_config)), None)
    return Architecture(tower, decoder) if tower and decoder else None


def released_ids(config: FusionConfig) -> dict[str, str]:
    """Hub ids of the released checkpoints with this architecture, and the key of `STAGES` of each."""
    architecture = find_architecture(config)
    return {f"{AUTHORS}/{architecture.name}{stage}": stage for stage in STAGES} if architecture else {}


def paper_results(name: str) -> list[EvalResult]:
    """What the authors report for a released model, from results.yaml."""
    table = yaml.safe_load((HUB_DIR / "results.yaml").read_text())
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            dataset_type=benchmark["dataset"],
            dataset_name=benchmark["name"],
            dataset_config=benchmark.get("config"),
            metric_type="score",
            metric_name=benchmark.get("metric", "score"),
            metric_value=table["scores"][name][benchmark["key"]],
            source_name=table["source"]["name"],
            source_url=table["source"]["url"],
        )
        for benchmark in table["benchmarks"]
    ]


def read_rows(rows: list[dict] | str | os.PathLike, what: str) -> tuple[list[dict], Path]:
    """Rows, or those of a YAML or JSON file, and the folder that their relative paths begin at."""
    folder = Path()
    if isinstance(rows, (str, os.PathLike)):
        folder = Path(rows).parent
        try:
            rows = yaml.safe_load(Path(rows).read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise CardError(f"Cannot read the {what} from {rows}: {error}.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CardError(f"The {what} must be a list of mappings, got {rows!r:.200}.")
    return rows, folder


def read_results(rows: list[dict] | str | os.PathLike) -> list[EvalResult]:
    results = []
    for row in read_rows(rows, "results")[0]:
        try:
            results.append(EvalResult(**{"task_type": PIPELINE_TAG, **row}))
        except (TypeError, ValueError) as error:
            raise CardError(
                f"The result {row!r:.200} cannot be used: {error}. Expected the fields of huggingface_hub.EvalResult:"
                " dataset_name, dataset_type, metric_type, metric_value, and others that may be left out."
            ) from error
    return results


def write_widget(folder: Path, examples: list[dict] | str | os.PathLike, repo_id: str | None) -> list[dict]:
    """
    Copies the images to `widget/` and gives the widget's metadata, chat messages (the Hub's `WidgetExampleChatInput`).

    The Hub takes a path inside the repository for `src` only, so the image of a message has its full URL as soon as
    the repository is known.
    """
    widget = []
    rows, base = read_rows(examples, "widget examples")
    for row in rows:
        if not {"image", "question"} <= row.keys() <= {"image", "question", "answer", "title"}:
            raise CardError(
                f"The widget example {row!r:.200} has the wrong fields, expected image and question, with answer and"
                " title if wanted."
            )
        image = base / row["image"]
        target = folder / "widget" / image.name
        if not image.is_file():
            raise CardError(f"The widget example {row['question']!r} has no image: {image} is not there.")
        target.parent.mkdir(exist_ok=True)
        if image.resolve() != target.resolve():
            shutil.copyfile(image, target)
        path = f"widget/{image.name}"
        content = [
            {"type": "image_url", "image_url": {"url": hf_hub_url(repo_id, path) if repo_id else path}},
            {"type": "text", "text": row["question"]},
        ]
        entry = {
            "example_title": row.get("title", row["question"]),
            "messages": [{"role": "user", "content": content}],
        }
        widget.append({**entry, "output": {"text": row["answer"]}} if "answer" in row else entry)
    return widget


def write_eval_results(folder: Path, results: list[EvalResult]):
    """
    `.eval_results/*.yaml` for the results on datasets of the Hub. One file for each dataset: of a file with an entry
    that it does not know (only registered benchmarks are shown), the Hub drops all.
    """
    files = {}
    for result in results:
        if "/" in result.dataset_type:
            entry = EvalResultEntry(
                dataset_id=result.dataset_type,
                task_id=EVAL_TASK_ID,
                value=result.metric_value,
                source_url=result.source_url,
                source_name=result.source_name,
                notes=f"{result.dataset_name}, {result.metric_name or result.metric_type}",
            )
            files.setdefault(result.dataset_type.split("/")[1].lower(), []).append(entry)
    for name, entries in files.items():
        path = folder / ".eval_results" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True))


def read_config(folder: Path) -> FusionConfig:
    try:
        model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError) as error:
        raise CardError(f"{folder} is no FUSION folder: its config.json cannot be read ({error}).") from error
    if model_type != FusionConfig.model_type:
        raise CardError(
            f"{folder} is no FUSION folder: the model_type of its config.json is {model_type!r}, expected"
            f" {FusionConfig.model_type!r}. A released checkpoint is converted first."
        )
    return FusionConfig.from_pretrained(folder)


def find_stage(folder: Path, config: FusionConfig, released: str) -> str:
    """The key of `STAGES` for a released checkpoint, whose config has to be that of the folder."""
    checkpoints = released_ids(config)
    if released not in checkpoints:
        fitting = ", ".join(checkpoints) or "no released model"
        raise CardError(f"The config of {folder} is not that of {released!r}, but fits: {fitting}.")
    return checkpoints[released]


def find_origin(
    architecture: Architecture | None, released: str | None, stage: str | None, quantized: bool, given: dict
) -> dict:
    """Metadata of where the weights come from: what is given, else what the architecture and the checkpoint tell."""
    origin = dict(given)
    if architecture and not given["license"]:
        origin["license"] = architecture.decoder.license_id
        origin["license_link"] = architecture.decoder.license_link
    if released and not given["datasets"]:
        origin["datasets"] = STAGES[stage][1]
    if released and quantized and not given["base_model"]:
        origin["base_model"] = [released]
    elif architecture and not given["base_model"]:
        origin["base_model"] = [architecture.decoder.hub_id, architecture.tower.hub_id]
    if origin["base_model"]:
        # Stated, because the Hub takes several base models for a merge otherwise.
        made_here = quantized and (released or given["base_model"])
        origin["base_model_relation"] = "quantized" if made_here else "finetune"
    return origin


def check_origin(given: dict):
    """
    Check what the card is going to say of the weights' origin, as the Hub would when the folder is uploaded.

    Raises:
        CardError: for a base model or data set that is no id of the Hub, such as a local path, and for a license that
            the Hub does not know.
    """
    for field in ("base_model", "datasets"):
        names = given[field] or []
        for name in [names] if isinstance(names, str) else names:
            if Path(name).exists() or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
                raise CardError(f"`{field}` is {name!r}, a path: expected an id of the Hub, such as owner/name.")
    known = yaml.safe_load((HUB_DIR / "licenses.yaml").read_text())
    if given["license"] is not None and given["license"] not in known:
        near = ", ".join(difflib.get_close_matches(given["license"].lower(), known)) or "apache-2.0, mit"
        raise CardError(
            f"`license` is {given['license']!r}, which the Hub does not know: expected one of its ids (near: {near}),"
            " or `other` with a `license_link`."
        )


def describe(folder: Path, config: FusionConfig, architecture: Architecture | None, data: ModelCardData) -> dict:
    """What the text of the card says of the folder and of its architecture."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    text = {
        "weights": (f"{size / 1e9:.1f} GB" if size > 1e9 else f"{size / 1e6:.1f} MB") if size else None,
        "dtype": str(config.dtype).removeprefix("torch.") if config.dtype else None,
        "releases": TESTED_RELEASES,
        "image_size": config.vision_config.image_size,
        "handler": (folder / "handler.py").is_file(),
        "question": json.dumps(data.widget[0]["messages"][0]["content"][1]["text"]),
        "license_name": f"`{data.license}`",
        "max_new_tokens": GENERATION_PARAMETERS["max_new_tokens"],
        "authors": AUTHORS,
        "llama": False,
    }
    if architecture:
        decoder = architecture.decoder
        text |= {
            "architecture": architecture.name,
            "decoder": decoder.hub_id,
            "tower": architecture.tower.hub_id,
            "nf4_gb": NF4_GB[architecture.name],
            "llama": decoder.license_id == "llama3.1",
        }
        if data.license == decoder.license_id:
            text["license_name"] = decoder.license_name
    return text


def write_card(
    folder: str | os.PathLike,
    *,
    repo_id: str | None = None,
    released: str | None = None,
    name: str | None = None,
    description: str | None = None,
    base_model: str | list[str] | None = None,
    license: str | None = None,
    license_link: str | None = None,
    datasets: list[str] | None = None,
    results: list[dict] | str | os.PathLike | None = None,
    examples: list[dict] | str | os.PathLike | None = None,
) -> Path:
    """
    Writes `README.md` of a FUSION folder and what belongs to it: `widget/` with the images of the widget examples,
    `.eval_results/` if there are results on datasets of the Hub, and `NOTICE` for a Llama 3.1 decoder.

    A folder with the sizes of a released model gets that model's base models and licence; the authors' results, data
    and stage only with `released`, since a fine-tuned model has the same sizes. For any other folder nothing is
    claimed that is not given here.

    Args:
        folder (`str` or `os.PathLike`):
            With a config.json of `model_type` fusion_vl. A card of ours in it is replaced, with all that it says.
        repo_id (`str`, *optional*):
            The Hub repository that the folder is meant for, `owner/name`; for the usage code and the widget's images.
        released (`str`, *optional*):
            Hub id of the released checkpoint that the weights are, such as `starriver030515/FUSION-Phi3.5-3B-Stage1`.
        name (`str`, *optional*):
            Title. Defaults to the name of `released`, of `repo_id` or of the folder.
        description (`str`, *optional*):
            Markdown, a paragraph after the introduction: what the model was trained on, say.
        base_model (`str` or `list[str]`, *optional*):
            Hub ids of what the model was trained from.
        license, license_link (`str`, *optional*):
            The Hub's id of the licence of the weights, such as `apache-2.0`, and its URL.
        datasets (`list[str]`, *optional*):
            Hub ids of the training data.
        results (`list[dict]` or path of a YAML or JSON file, *optional*):
            Evaluation results. Each is a mapping of arguments of `huggingface_hub.EvalResult`: `dataset_name`,
            `dataset_type`, `metric_type`, `metric_value`, and others that may be left out. They replace the authors'.
        examples (`list[dict]` or path of a YAML or JSON file, *optional*):
            Widget examples: `image` (path, from the file's folder if there is a file), `question`, and if wanted
            `answer` (of this model) and `title`. Defaults to two questions about a photograph of a cat.

    Returns:
        `Path`: the card.

    Raises:
        CardError: a `ValueError`: for a folder that is no FUSION model, a `released` that its config does not fit,
            malformed results or examples, or a README.md that somebody else has written.
    """
    folder = Path(folder)
    config = read_config(folder)
    path = folder / "README.md"
    if path.exists() and WRITTEN_BY not in path.read_text(encoding="utf-8"):
        raise CardError(f"{path} was not written by this command and would be lost. Move it away first.")
    stage = find_stage(folder, config, released) if released else None
    architecture = find_architecture(config)
    evaluations = read_results(results) if results else []
    if stage == "" and not results:
        evaluations = paper_results(architecture.name)
    given = {"base_model": base_model, "license": license, "license_link": license_link, "datasets": datasets}
    check_origin(given)
    quantized = getattr(config, "quantization_config", None) is not None
    title = name or (released or repo_id or folder.resolve().name).split("/")[-1]
    data = ModelCardData(
        **find_origin(architecture, released, stage, quantized, given),
        language="en" if architecture else None,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=["custom_code", "conversational", "vision-language", "fusion"],
        inference={"parameters": GENERATION_PARAMETERS},
        widget=write_widget(folder, examples or PHOTO_EXAMPLES, repo_id),
        model_name=title if evaluations else None,
        eval_results=evaluations or None,
    )
    text = describe(folder, config, architecture, data) | {
        "name": title,
        "repo_id": repo_id,
        "released": released,
        "stage": STAGES[stage][0] if released else None,
        "unfinished": bool(stage),
        "description": description,
        "quantized": quantized,
        "own_license": license is not None,
        "paper": released and not results,
        "photo": examples is None,
        "results": evaluations,
    }
    write_eval_results(folder, evaluations)
    if text["llama"]:
        (folder / "NOTICE").write_text(LLAMA_NOTICE, encoding="utf-8")
    ModelCard.from_template(data, template_path=str(HUB_DIR / "card.md.jinja"), **text).save(path)
    return path
