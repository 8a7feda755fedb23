"""
Write the model card of a FUSION folder.

The card is README.md with the metadata that the Hub reads. Beside it are the images of the widget, `.eval_results/`
and, for a Llama decoder, the notice that its license asks for. The converter calls `write_card` for every folder that
it writes, and `fusion-vlm card FOLDER` for any other one.
"""

import difflib
import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

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
from fusion_vlm.hub.endpoint import HANDLER, add_endpoint_files
from fusion_vlm.hub.examples import CardError, Example, answer_examples, read_examples, read_rows, write_examples
from fusion_vlm.hub.measured import EVAL_TASK_ID, PIPELINE_TAG, show_runs
from fusion_vlm.hub.names import ModelNameError, find_folder, refuse_adapter
from fusion_vlm.hub.released import AUTHORS, Architecture, Stage, find_architecture, find_released


HUB_DIR = Path(__file__).resolve().parent
PHOTO = HUB_DIR / "chelsea.jpg"
GENERATION_PARAMETERS = {"max_new_tokens": 128, "do_sample": False}
WRITTEN_BY = "<!-- Written by fusion_vlm/hub/card.py"
LLAMA_NOTICE = (
    "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright \N{COPYRIGHT SIGN} Meta Platforms, Inc."
    " All Rights Reserved.\n"
)


PHOTO_EXAMPLES = [
    {"image": PHOTO, "question": "What animal is this?", "title": "A short answer"},
    {"image": PHOTO, "question": "Describe the picture in one sentence.", "title": "A description"},
]


@dataclass(frozen=True)
class Origin:
    """
    Metadata of where the weights come from; the arguments of `write_card` of the same names.

    Args:
        base_model_relation (`str`, *optional*):
            `"quantized"` or `"finetune"`. Without it, the Hub takes several base models for a merge.
    """

    base_model: str | list[str] | None = None
    datasets: list[str] | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_model_relation: str | None = None


@dataclass(frozen=True)
class CardText:
    """
    The variables of card.md.jinja, beside the metadata.

    Args:
        name (`str`): the title.
        architecture (`Architecture`, *optional*): the released model of the same sizes.
        released (`str`, *optional*), stage (`Stage`, *optional*): the released checkpoint that the weights are.
        repo_id, description (`str`, *optional*): as given to `write_card`.
        weights (`str`, *optional*): the size of the weights, such as `"8.9 GB"`.
        dtype (`str`, *optional*): dtype of the weights.
        quantized (`bool`): whether the weights are in 4 bits.
        image_size (`int`): side of the base image.
        has_handler (`bool`): whether the folder holds handler.py.
        license_name (`str`): the license in words.
        has_own_license (`bool`): whether the license was given, not taken from the decoder.
        results (`list[EvalResult]`): evaluation results.
        are_authors_results (`bool`): whether `results` are what the authors report.
        has_photo (`bool`): whether the examples are about the photograph of this package.
        image (`str`, *optional*): the path of the image of the first example.
        question (`str`): the question of the first example, as a literal of Python.
        asked (`list[tuple[str, str]]`): the questions about `image` and their answers, as cells of a table.
        is_answered (`bool`): whether one of `asked` has an answer.
    """

    name: str
    architecture: Architecture | None
    released: str | None
    stage: Stage | None
    repo_id: str | None
    description: str | None
    weights: str | None
    dtype: str | None
    quantized: bool
    image_size: int
    has_handler: bool
    license_name: str
    has_own_license: bool
    results: list[EvalResult]
    are_authors_results: bool
    has_photo: bool
    image: str | None
    question: str
    asked: list[tuple[str, str]]
    is_answered: bool
    # Facts of this package.
    authors: str = AUTHORS
    releases: tuple[str, str] = TESTED_RELEASES
    max_new_tokens: int = GENERATION_PARAMETERS["max_new_tokens"]


def read_authors_results(name: str) -> list[EvalResult]:
    """Read the results that the authors report for a released model, from results.yaml."""
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
    """Read evaluation results from rows, or from a YAML or JSON file of rows."""
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
    Write `.eval_results/*.yaml` for the results on datasets of the Hub.

    Each dataset has a file of its own, because the Hub drops a whole file if it does not know one of the entries. It
    shows registered benchmarks only.
    """
    files: dict[str, list[EvalResultEntry]] = {}
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


def read_config(folder: str | os.PathLike) -> FusionConfig:
    """Return the config of a folder, or raise a CardError if no FUSION is in it."""
    try:
        folder = find_folder(folder)
        refuse_adapter(folder)
    except ModelNameError as error:
        raise CardError(str(error)) from error
    return FusionConfig.from_pretrained(folder)


def find_stage(folder: Path, config: FusionConfig, released: str) -> Stage:
    """Return the stage of a released checkpoint, whose config has to be that of the folder."""
    checkpoints = find_released(config)
    if released not in checkpoints:
        fitting = ", ".join(checkpoints) or "no released model"
        raise CardError(f"The config of {folder} is not that of {released!r}, but fits: {fitting}.")
    return checkpoints[released]


def find_origin(
    given: Origin, architecture: Architecture | None, released: str | None, stage: Stage | None, quantized: bool
) -> Origin:
    """Complete the origin that was given by what the architecture and the released checkpoint tell."""
    found: dict[str, Any] = {}
    if architecture and not given.license:
        found["license"] = architecture.decoder.license_id
        found["license_link"] = architecture.decoder.license_link
    if stage and not given.datasets:
        found["datasets"] = list(stage.datasets)
    if released and quantized and not given.base_model:
        found["base_model"] = [released]
    elif architecture and not given.base_model:
        found["base_model"] = [architecture.decoder.hub_id, architecture.tower.hub_id]
    if given.base_model or found.get("base_model"):
        # Stated, because the Hub takes several base models for a merge otherwise.
        was_quantized_here = quantized and (released or given.base_model)
        found["base_model_relation"] = "quantized" if was_quantized_here else "finetune"
    return replace(given, **found)


def check_origin(given: Origin, repo_id: str | None, folder: Path):
    """
    Check the origin that a card states, as the Hub does when the folder is uploaded.

    Raises:
        CardError: for a base model, data set or repository that is no id of the Hub, such as a local path, and for a
            license that the Hub does not know, or that it could not show.
    """
    for field, names in {"base_model": given.base_model, "datasets": given.datasets, "repo_id": repo_id}.items():
        for name in [names] if isinstance(names, str) else names or []:
            check_hub_id(field, name)
    check_license(given, folder)


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


def check_license(given: Origin, folder: Path):
    """Raise a CardError for a license that the Hub does not know, and for a name or a link that it would not show."""
    known = yaml.safe_load((HUB_DIR / "licenses.yaml").read_text())
    license_id, name, link = given.license, given.license_name, given.license_link
    if license_id is None and (name or link):
        raise CardError(
            "`license` is missing: its name and link are shown beside an id of the Hub, or beside `other`."
        )
    if license_id is not None and license_id not in known:
        near = ", ".join(difflib.get_close_matches(license_id.lower(), known)) or "apache-2.0, mit"
        raise CardError(
            f"`license` is {license_id!r}, which the Hub does not know: expected one of its ids (near: {near}), or"
            " `other` with a `license_name` and a `license_link`."
        )
    if license_id == "other" and not (name and link):
        raise CardError(
            "`license` is 'other', which says nothing by itself: give its `license_name` and `license_link`."
        )
    if name and license_id != "other":
        raise CardError(f"`license_name` is {name!r}, which is for `license` 'other' only, not for {license_id!r}.")
    if link and not re.fullmatch(r"https?://\S+", link) and not (folder / link).is_file():
        raise CardError(f"`license_link` is {link!r}: expected an address, or a file of the folder such as LICENSE.")


def check_old_card(path: Path):
    """Raise a CardError if there is a card that was written by hand."""
    if path.exists() and WRITTEN_BY not in path.read_text(encoding="utf-8"):
        raise CardError(f"{path} was not written by this command and would be lost. Move it away first.")


def is_quantized(config: FusionConfig) -> bool:
    """Return whether the weights that belong to a config are quantized."""
    return getattr(config, "quantization_config", None) is not None


def describe_folder(folder: Path, config: FusionConfig) -> dict:
    """Return the variables of `CardText` about the files of a folder and their config."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {
        "weights": (f"{size / 1e9:.1f} GB" if size > 1e9 else f"{size / 1e6:.1f} MB") if size else None,
        "dtype": str(config.dtype).removeprefix("torch.") if config.dtype else None,
        "quantized": is_quantized(config),
        "image_size": config.vision_config.image_size,
        "has_handler": (folder / HANDLER).is_file(),
    }


def describe_license(origin: Origin, architecture: Architecture | None) -> str:
    """Return the license in words: the decoder's where the weights come under it, else the given name or id."""
    if architecture and origin.license == architecture.decoder.license_id:
        return architecture.decoder.license_name
    return origin.license_name or f"`{origin.license}`"


def read_question(folder: Path) -> str:
    """Return a question that fits the model: one of its fine-tuning, which `finetune.json` has, else a general one."""
    try:
        return json.loads((folder / "finetune.json").read_text(encoding="utf-8"))["examples"][0]["question"]
    except (OSError, ValueError, LookupError):
        return "What is in the picture?"


def describe_examples(examples: list[Example], question: str) -> dict:
    """Return the variables of `CardText` about the first image and the questions about it."""
    if not examples:
        question = json.dumps(question, ensure_ascii=False)
        return {"image": None, "question": question, "asked": [], "is_answered": False}

    def to_cell(text: str | None) -> str:
        return " ".join(text.split()).replace("|", "\\|") if text else ""

    first = examples[0]
    shown = [example for example in examples if example.image == first.image]
    return {
        "image": first.image,
        "question": json.dumps(first.question, ensure_ascii=False),
        "asked": [(to_cell(example.question), to_cell(example.answer)) for example in shown],
        "is_answered": any(example.answer for example in shown),
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
    architecture: Architecture | None, stage: Stage | None, results: list[dict] | str | os.PathLike | None
) -> list[EvalResult]:
    """Return the results that are given, else the authors' for a released final checkpoint."""
    if results:
        return read_results(results)
    return read_authors_results(architecture.name) if architecture and stage and stage.is_final else []


def make_metadata(
    origin: Origin, architecture: Architecture | None, title: str, widget: list[dict], results: list[EvalResult]
) -> ModelCardData:
    """Return the metadata that the Hub reads; empty fields are left out of the card."""
    return ModelCardData(
        **asdict(origin),
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
    Write `README.md` of a FUSION folder, and the files that it shows.

    These are `widget/` with the images of the widget examples, `.eval_results/` if there are results on datasets of
    the Hub, and `NOTICE` for a Llama 3.1 decoder. What `fusion-vlm evaluate --write-card` measured stays.
    The code in the card runs as it stands, within the folder and, with `repo_id`, anywhere else.

    A folder with the sizes of a released model gets the base models and the license of that model. It gets the
    authors' results, data and stage only with `released`, because a fine-tuned model has the same sizes. For any other
    folder the card claims only what is given here.

    Args:
        folder (`str` or `os.PathLike`):
            A folder with a config.json of `model_type` fusion_vl. A card that this function wrote before is replaced.
        repo_id (`str`, *optional*):
            The Hub repository that the folder is meant for, `owner/name`; for the usage code and the widget's images.
        released (`str`, *optional*):
            Hub id of the released checkpoint that the weights are, such as `starriver030515/FUSION-Phi3.5-3B-Stage1`.
        name (`str`, *optional*):
            Title. Defaults to the name of `released`, of `repo_id` or of the folder.
        description (`str`, *optional*):
            A paragraph of Markdown for the introduction, such as what the model was trained on.
        base_model (`str` or `list[str]`, *optional*):
            Hub ids of what the model was trained from.
        license, license_link (`str`, *optional*):
            The Hub's id of the license of the weights, such as `apache-2.0`, and its URL or its file in the folder.
        license_name (`str`, *optional*):
            Name of a license that has no id; `license` is `other` then, and `license_link` needed.
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
        CardError: for a folder that is no FUSION model, a `released` that its config does not fit,
            an origin that the Hub would refuse, malformed results or examples, or a README.md that was not
            written by this function.
    """
    config = read_config(folder)
    folder = Path(folder).expanduser()
    path = folder / "README.md"
    check_old_card(path)
    stage = find_stage(folder, config, released) if released else None
    architecture = find_architecture(config)
    found_results = find_results(architecture, stage, results)
    given = Origin(base_model, datasets, license, license_name, license_link)
    check_origin(given, repo_id, folder)
    quantized = is_quantized(config)
    shown = choose_examples(folder, examples, released, ask)
    if handler:
        add_endpoint_files(folder, quantized=quantized)
    title = name or (released or repo_id or folder.resolve().name).split("/")[-1]
    origin = find_origin(given, architecture, released, stage, quantized)
    text = CardText(
        name=title,
        architecture=architecture,
        released=released,
        stage=stage,
        repo_id=repo_id,
        description=description.strip() if description else None,
        **describe_folder(folder, config),
        license_name=describe_license(origin, architecture),
        has_own_license=license is not None,
        results=found_results,
        are_authors_results=bool(released and not results),
        has_photo=examples is None and bool(shown),
        **describe_examples(shown, read_question(folder)),
    )
    write_eval_results(folder, found_results)
    if architecture and architecture.is_llama:
        (folder / "NOTICE").write_text(LLAMA_NOTICE, encoding="utf-8")
    data = make_metadata(origin, architecture, title, make_widget(shown, repo_id), found_results)
    ModelCard.from_template(data, template_path=str(HUB_DIR / "card.md.jinja"), **vars(text)).save(path)
    show_runs(folder)
    return path
