"""
The model card of a FUSION folder: README.md with the metadata that the Hub reads, the widget's images,
`.eval_results/` and, for a Llama decoder, the notice that its licence asks for.

The converter calls `write_card` for every folder that it writes, and `fusion-vlm card FOLDER` for any other one.
"""

import difflib
import json
import os
import re
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
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from fusion_vlm.configuration_fusion import TESTED_RELEASES, FusionConfig
from fusion_vlm.hub.endpoint import add_endpoint_files
from fusion_vlm.hub.examples import CardError, Example, answer_examples, read_examples, read_rows, write_examples


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


def make_widget(examples: list[Example], repo_id: str | None) -> list[dict]:
    """
    Return the widget's metadata: chat messages, as the Hub's `WidgetExampleChatInput`.

    The Hub takes a path inside the repository for `src` only, so the image of a message has its full URL as soon as
    the repository is known.
    """
    widget = []
    for example in examples:
        url = hf_hub_url(repo_id, example.image) if repo_id else example.image
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": example.question}]
        entry = {
            "example_title": example.title or example.question,
            "messages": [{"role": "user", "content": content}],
        }
        widget.append({**entry, "output": {"text": example.answer}} if example.answer else entry)
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


def check_origin(given: dict, folder: Path):
    """
    Check what the card is going to say of the weights' origin, as the Hub would when the folder is uploaded.

    Raises:
        CardError: for a base model, data set or repository that is no id of the Hub, such as a local path, and for a
            license that the Hub does not know, or that it could not show.
    """
    for field in ("base_model", "datasets", "repo_id"):
        names = given[field] or []
        for name in [names] if isinstance(names, str) else names:
            check_hub_id(field, name)
    check_license(given["license"], given["license_name"], given["license_link"], folder)


def check_hub_id(field: str, name: str):
    """Raise a CardError if a name is no id of the Hub; a repository to upload to has an owner, too."""
    expected = "expected an id of the Hub, such as owner/name"
    if "://" in name:
        raise CardError(f"`{field}` is {name!r}, an address: {expected}.")
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if is_path or (field != "repo_id" and Path(name).exists()):
        raise CardError(f"`{field}` is {name!r}, a path: {expected}.")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise CardError(f"`{field}` is {name!r}: {expected} ({' '.join(str(error).split())}).") from error
    if field == "repo_id" and "/" not in name:
        raise CardError(f"`{field}` is {name!r}, without an owner: {expected}.")


def check_license(license: str | None, name: str | None, link: str | None, folder: Path):
    """Raise a CardError for a license that the Hub does not know, and for a name or a link that it would not show."""
    known = yaml.safe_load((HUB_DIR / "licenses.yaml").read_text())
    if license is None and (name or link):
        raise CardError(
            "`license` is missing: its name and link are shown beside an id of the Hub, or beside `other`."
        )
    if license is not None and license not in known:
        near = ", ".join(difflib.get_close_matches(license.lower(), known)) or "apache-2.0, mit"
        raise CardError(
            f"`license` is {license!r}, which the Hub does not know: expected one of its ids (near: {near}), or"
            " `other` with a `license_name` and a `license_link`."
        )
    if license == "other" and not (name and link):
        raise CardError(
            "`license` is 'other', which says nothing by itself: give its `license_name` and `license_link`."
        )
    if name and license != "other":
        raise CardError(f"`license_name` is {name!r}, which is for `license` 'other' only, not for {license!r}.")
    if link and not re.fullmatch(r"https?://\S+", link) and not (folder / link).is_file():
        raise CardError(f"`license_link` is {link!r}: expected an address, or a file of the folder such as LICENSE.")


def describe(folder: Path, config: FusionConfig, architecture: Architecture | None, data: ModelCardData) -> dict:
    """What the text of the card says of the folder and of its architecture."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    text = {
        "weights": (f"{size / 1e9:.1f} GB" if size > 1e9 else f"{size / 1e6:.1f} MB") if size else None,
        "dtype": str(config.dtype).removeprefix("torch.") if config.dtype else None,
        "releases": TESTED_RELEASES,
        "image_size": config.vision_config.image_size,
        "handler": (folder / "handler.py").is_file(),
        "license_name": data.license_name or f"`{data.license}`",
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


def read_question(folder: Path) -> str:
    """Return a question that fits the model: one of its fine-tuning, which `finetune.json` has, else a general one."""
    try:
        return json.loads((folder / "finetune.json").read_text(encoding="utf-8"))["examples"][0]["question"]
    except (OSError, ValueError, LookupError):
        return "What is in the picture?"


def describe_examples(examples: list[Example], question: str) -> dict:
    """Return what the text of the card says of the examples: the first image, and what was asked about it."""
    if not examples:
        return {"image": None, "question": json.dumps(question, ensure_ascii=False)}

    def cell(text: str | None) -> str:
        return " ".join(text.split()).replace("|", "\\|") if text else ""

    first = examples[0]
    return {
        "image": first.image,
        "question": json.dumps(first.question, ensure_ascii=False),
        "asked": [(cell(one.question), cell(one.answer)) for one in examples if one.image == first.image],
        "answered": any(one.answer for one in examples if one.image == first.image),
    }


def choose_examples(
    folder: Path, examples: list[dict] | str | os.PathLike | None, released: str | None, ask: bool
) -> list[Example]:
    """
    Return the examples of a card, their images written: those given, else the photograph for a released model.

    A model that was trained by others may never have seen a photograph, so that its card has none by default.
    """
    rows = read_examples(examples if examples is not None else PHOTO_EXAMPLES if released else [])
    if ask and not rows:
        raise CardError("The model cannot be asked without a question: give `examples`, with `image` and `question`.")
    written = write_examples(folder, rows)
    return answer_examples(folder, written, GENERATION_PARAMETERS["max_new_tokens"]) if ask else written


def find_results(
    architecture: Architecture | None, stage: str | None, results: list[dict] | str | os.PathLike | None
) -> list[EvalResult]:
    """Return the results that are given, else the authors' for a released final checkpoint."""
    if results:
        return read_results(results)
    return paper_results(architecture.name) if stage == "" else []


def make_metadata(
    origin: dict, architecture: Architecture | None, title: str, widget: list[dict], results: list[EvalResult]
) -> ModelCardData:
    """Return the metadata that the Hub reads; empty fields are left out of the card."""
    return ModelCardData(
        **origin,
        language="en" if architecture else None,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=["custom_code", "conversational", "vision-language", "fusion"],
        inference={"parameters": GENERATION_PARAMETERS},
        widget=widget or None,
        model_name=title if results else None,
        eval_results=results or None,
    )


def write_card(
    folder: str | os.PathLike,
    *,
    repo_id: str | None = None,
    released: str | None = None,
    name: str | None = None,
    description: str | None = None,
    base_model: str | list[str] | None = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    datasets: list[str] | None = None,
    results: list[dict] | str | os.PathLike | None = None,
    examples: list[dict] | str | os.PathLike | None = None,
    ask: bool = False,
    handler: bool = False,
) -> Path:
    """
    Write `README.md` of a FUSION folder and what belongs to it: `widget/` with the images of the widget examples,
    `.eval_results/` if there are results on datasets of the Hub, and `NOTICE` for a Llama 3.1 decoder.
    Its code runs as it stands, within the folder and, with `repo_id`, anywhere else.

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
            The Hub's id of the licence of the weights, such as `apache-2.0`, and its URL or its file in the folder.
        license_name (`str`, *optional*):
            Name of a licence that has no id; `license` is `other` then, and `license_link` needed.
        datasets (`list[str]`, *optional*):
            Hub ids of the training data.
        results (`list[dict]` or path of a YAML or JSON file, *optional*):
            Evaluation results. Each is a mapping of arguments of `huggingface_hub.EvalResult`: `dataset_name`,
            `dataset_type`, `metric_type`, `metric_value`, and others that may be left out. They replace the authors'.
        examples (`list[dict]` or path of a YAML or JSON file, *optional*):
            Widget examples: `image` (path, from the file's folder if there is a file, or a `PIL.Image`), `question`,
            and if wanted `answer` (of this model) and `title`. The images are copied to `widget/`; the first one is
            shown at the top of the card. Defaults to a photograph of a cat for a released model, else to none.
        ask (`bool`):
            Load the model and let it answer the examples that have no answer.
        handler (`bool`):
            Write `handler.py` and `requirements.txt` for Inference Endpoints, as the converter does, and the code if
            the folder lacks it.

    Returns:
        `Path`: the card.

    Raises:
        CardError: a `ValueError`: for a folder that is no FUSION model, a `released` that its config does not fit,
            an origin that the Hub would refuse, malformed results or examples, or a README.md that somebody else has
            written.
    """
    folder = Path(folder)
    config = read_config(folder)
    path = folder / "README.md"
    if path.exists() and WRITTEN_BY not in path.read_text(encoding="utf-8"):
        raise CardError(f"{path} was not written by this command and would be lost. Move it away first.")
    stage = find_stage(folder, config, released) if released else None
    architecture = find_architecture(config)
    evaluations = find_results(architecture, stage, results)
    given = {"base_model": base_model, "datasets": datasets, "license": license}
    given |= {"license_name": license_name, "license_link": license_link}
    check_origin(given | {"repo_id": repo_id}, folder)
    quantized = getattr(config, "quantization_config", None) is not None
    shown = choose_examples(folder, examples, released, ask)
    if handler:
        add_endpoint_files(folder, quantized=quantized)
    title = name or (released or repo_id or folder.resolve().name).split("/")[-1]
    origin = find_origin(architecture, released, stage, quantized, given)
    data = make_metadata(origin, architecture, title, make_widget(shown, repo_id), evaluations)
    text = describe(folder, config, architecture, data) | describe_examples(shown, read_question(folder))
    text |= {
        "name": title,
        "repo_id": repo_id,
        "released": released,
        "stage": STAGES[stage][0] if released else None,
        "unfinished": bool(stage),
        "description": description.strip() if description else None,
        "quantized": quantized,
        "own_license": license is not None,
        "paper": released and not results,
        "photo": examples is None and bool(shown),
        "results": evaluations,
    }
    write_eval_results(folder, evaluations)
    if text["llama"]:
        (folder / "NOTICE").write_text(LLAMA_NOTICE, encoding="utf-8")
    ModelCard.from_template(data, template_path=str(HUB_DIR / "card.md.jinja"), **text).save(path)
    return path
