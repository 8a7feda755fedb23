"""The model card: what it says of each kind of folder, its metadata against a schema, and its code, run."""

import dataclasses
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.utils import validate_repo_id
from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from transformers import LlamaConfig, Phi3Config, SiglipVisionConfig

from fusion_vlm import convert_checkpoints
from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.convert_checkpoints import ConversionError, convert
from fusion_vlm.hub import released
from fusion_vlm.hub.card import CardError, write_card
from fusion_vlm.hub.endpoint import QUANTIZED_REQUIREMENTS, REQUIREMENTS, SHIPPED_FILES, add_endpoint_files

from ..helpers import GOLDEN_DIR, LLAMA, PHI, ROOT, SMALL_MODEL
from ..tiny import tiny_config


PHOTO = ROOT / "hub" / "chelsea.jpg"
RANDOM_MODEL = ROOT / "examples" / "random_model.py"
PHI35, LLAMA31 = "microsoft/Phi-3.5-mini-instruct", "meta-llama/Llama-3.1-8B-Instruct"
SO400M, GIANT = "google/siglip-so400m-patch14-384", "google/siglip2-giant-opt-patch16-384"
RELEASED = {
    "FUSION-Phi3.5-3B": (PHI35, SO400M),
    "FUSION-LLaMA3.1-8B": (LLAMA31, SO400M),
    "FUSION-X-Phi3.5-3B": (PHI35, GIANT),
    "FUSION-X-LLaMA3.1-8B": (LLAMA31, GIANT),
}
# What the released configs have, written down here a second time.
DECODERS = {
    PHI35: Phi3Config(vocab_size=32013, hidden_size=3072, num_hidden_layers=32, pad_token_id=0),
    LLAMA31: LlamaConfig(vocab_size=128258, hidden_size=4096, num_hidden_layers=32, num_key_value_heads=8),
}
TOWERS = {
    SO400M: SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=26, image_size=384, patch_size=14
    ),
    GIANT: SiglipVisionConfig(
        hidden_size=1536, intermediate_size=6144, num_hidden_layers=39, image_size=384, patch_size=16
    ),
}
# Of https://huggingface.co/docs/hub/repositories-licenses: those that a FUSION may come under.
LICENSES = Literal["apache-2.0", "mit", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "other"]


def is_repo_id(value: str) -> str:
    validate_repo_id(value)
    assert value.count("/") == 1
    return value


RepoId = Annotated[str, AfterValidator(is_repo_id)]
Text = Annotated[str, Field(min_length=1)]
Link = Annotated[str, Field(pattern=r"^https://\S+$")]
Tag = Literal["image-text-to-text"]


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Url(Schema):
    url: Text


class ImagePart(Schema):
    type: Literal["image_url"]
    image_url: Url


class TextPart(Schema):
    type: Literal["text"]
    text: Text


class Message(Schema):
    role: Literal["system", "user", "assistant"]
    content: Text | Annotated[list[ImagePart | TextPart], Field(min_length=1)]


class Answer(Schema):
    text: Text


class Example(Schema):
    example_title: Text
    messages: Annotated[list[Message], Field(min_length=1)]
    output: Answer | None = None


class Parameters(Schema):
    max_new_tokens: Annotated[int, Field(gt=0)]
    do_sample: bool


class Inference(Schema):
    parameters: Parameters


class Task(Schema):
    type: Tag


class Dataset(Schema):
    name: Text
    type: Text
    config: Text | None = None
    split: Text | None = None


class Metric(Schema):
    type: Text
    value: int | float
    name: Text | None = None


class Source(Schema):
    url: Link
    name: Text | None = None


class Result(Schema):
    task: Task
    dataset: Dataset
    metrics: Annotated[list[Metric], Field(min_length=1)]
    source: Source | None = None


class Model(Schema):
    name: Text
    results: Annotated[list[Result], Field(min_length=1)]


class Metadata(Schema):
    """The metadata of a FUSION's card: hub-docs' modelcard.md, with the values that fit."""

    base_model: Annotated[list[RepoId], Field(min_length=1)] | RepoId | None = None
    base_model_relation: Literal["finetune", "quantized"] | None = None
    datasets: list[RepoId] | None = None
    language: Literal["en"] | None = None
    library_name: Literal["transformers"]
    license: LICENSES | None = None
    license_name: Text | None = None
    license_link: Text | None = None
    pipeline_tag: Tag
    tags: list[Text]
    inference: Inference
    widget: Annotated[list[Example], Field(min_length=1)] | None = None
    model_index: Annotated[list[Model], Field(min_length=1, max_length=1)] | None = Field(None, alias="model-index")


def read_metadata(path: Path) -> dict:
    """Check the metadata of a card against the schema, and in what no type can say; return it."""
    metadata = yaml.safe_load(path.read_text().split("\n---\n")[0])
    Metadata.model_validate(metadata)
    assert {"custom_code", "conversational"} <= set(metadata["tags"])
    assert ("base_model" in metadata) == ("base_model_relation" in metadata)
    for example in metadata.get("widget", []):
        images = [part for part in example["messages"][0]["content"] if part["type"] == "image_url"]
        assert example["messages"][0]["role"] == "user" and len(images) == 1
        url = images[0]["image_url"]["url"]
        assert (path.parent / re.sub(r"^https://huggingface\.co/[^/]+/[^/]+/resolve/main/", "", url)).is_file()
    return metadata


def read_text(path: Path) -> str:
    """Return the text after the metadata, with line breaks as blanks."""
    return re.sub(r"\s+", " ", path.read_text().split("\n---\n", 1)[1])


@pytest.fixture
def make_folder(tmp_path):
    """Return a function that writes the config of a released model to a folder whose path names another model."""

    def make(model: str, **values) -> Path:
        decoder, tower = RELEASED[model]
        folder = tmp_path / "FUSION-X-LLaMA3.1-8B-Stage1" / model.translate(str.maketrans("XLP", "abc"))
        FusionConfig(vision_config=TOWERS[tower], text_config=DECODERS[decoder], **values).save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def tiny_folder(processor, tmp_path) -> Path:
    folder = tmp_path / "my-fusion"
    tiny_config(processor).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model", RELEASED)
def test_released_models(model, make_folder):
    decoder, tower = RELEASED[model]
    path = write_card(make_folder(model), released=f"starriver030515/{model}", repo_id="me/mine")
    metadata, text = read_metadata(path), read_text(path)
    assert metadata["base_model"] == [decoder, tower]
    assert metadata["base_model_relation"] == "finetune"
    assert metadata["license"] == ("mit" if decoder == PHI35 else "llama3.1")
    assert metadata["license_link"] in text
    assert metadata["datasets"] == ["starriver030515/FUSION-Pretrain-10M", "starriver030515/FUSION-Finetune-12M"]
    assert path.read_text().count(f"# {model}\n") == 1 and f"https://huggingface.co/starriver030515/{model}" in text
    assert metadata["model-index"][0]["name"] == model
    metrics = [metric for result in metadata["model-index"][0]["results"] for metric in result["metrics"]]
    assert len(metrics) == 23
    assert path.read_text().count("\n| ") == 24  # with the head of the table
    for promise in (
        "One image in a conversation",
        "prefix caches or chunked prefill give wrong answers",
        "what is not there",
        "synthetic",
        "No safety",
        "2504.09925",
    ):
        assert promise in text
    assert ("**Built with Llama.**" in text) == (decoder == LLAMA31)
    assert (path.parent / "NOTICE").exists() == (decoder == LLAMA31)


def test_results_are_those_of_the_source(make_folder):
    """Copied from the authors' README once more: the first and the last column, and the doubled benchmarks."""
    expected = {
        "FUSION-Phi3.5-3B": (79.5, 71.7, 1595.9, 416.5, 70.9),
        "FUSION-X-Phi3.5-3B": (80.3, 74.8, 1582.1, 440.0, 71.1),
        "FUSION-LLaMA3.1-8B": (80.5, 74.9, 1592.3, 396.1, 78.6),
        "FUSION-X-LLaMA3.1-8B": (82.0, 76.2, 1607.5, 337.2, 77.8),
    }
    for model, values in expected.items():
        path = write_card(make_folder(model), released=f"starriver030515/{model}")
        scores = {
            (result["dataset"]["name"], metric["name"]): metric["value"]
            for result in read_metadata(path)["model-index"][0]["results"]
            for metric in result["metrics"]
        }
        keys = [("MMBench (English)", "score"), ("MMBench (Chinese)", "score")]
        keys += [("MME", "perception"), ("MME", "cognition"), ("DocVQA", "score")]
        assert tuple(scores[key] for key in keys) == values


def test_eval_results_have_the_same_figures_as_the_card(make_folder):
    path = write_card(make_folder("FUSION-Phi3.5-3B"), released="starriver030515/FUSION-Phi3.5-3B")
    files = sorted((path.parent / ".eval_results").iterdir())
    entries = [entry for file in files for entry in parse_eval_result_entries(yaml.safe_load(file.read_text()))]
    in_card = [(result.dataset_type, result.metric_value) for result in ModelCard.load(path).data.eval_results]
    assert sorted((entry.dataset_id, entry.value) for entry in entries) == sorted(in_card)
    assert {entry.source_url for entry in entries} == {ModelCard.load(path).data.eval_results[0].source_url}
    assert all(len({entry["dataset"]["id"] for entry in yaml.safe_load(file.read_text())}) == 1 for file in files)


@pytest.mark.parametrize("stage", ["Stage1", "Stage1.5"])
def test_earlier_stages_have_no_results(stage, make_folder):
    released = f"starriver030515/FUSION-X-Phi3.5-3B-{stage}"
    path = write_card(make_folder("FUSION-X-Phi3.5-3B"), released=released)
    metadata, text = read_metadata(path), read_text(path)
    assert "model-index" not in metadata and not (path.parent / ".eval_results").exists()
    assert len(metadata["datasets"]) == (1 if stage == "Stage1" else 2)
    assert f"# FUSION-X-Phi3.5-3B-{stage} The {stage.replace('Stage', 'Stage ')} checkpoint" in text
    assert "before the last stage" in text


def test_fine_tuned_model_does_not_get_the_results_of_the_released_one(make_folder):
    """It has the same config; its license and base models follow from that, figures and data do not."""
    path = write_card(make_folder("FUSION-LLaMA3.1-8B"), name="Mine")
    metadata, text = read_metadata(path), read_text(path)
    assert "model-index" not in metadata and "datasets" not in metadata and "## Results" not in text
    assert metadata["license"] == "llama3.1" and metadata["base_model"] == [LLAMA31, SO400M]
    assert "with the architecture of [FUSION-LLaMA3.1-8B]" in text and "are not claimed for it" in text
    path = write_card(path.parent, base_model="starriver030515/FUSION-LLaMA3.1-8B", datasets=["me/data"])
    metadata = read_metadata(path)
    assert metadata["base_model"] == "starriver030515/FUSION-LLaMA3.1-8B" and metadata["datasets"] == ["me/data"]


@pytest.mark.parametrize("released", ["starriver030515/FUSION-X-Phi3.5-3B", "FUSION-Phi3.5-3B", "me/FUSION-Phi3.5-3B"])
def test_released_id_that_does_not_fit_the_config(released, make_folder):
    with pytest.raises(CardError, match=f"not that of '{released}', but fits: starriver030515/FUSION-Phi3.5-3B, "):
        write_card(make_folder("FUSION-Phi3.5-3B"), released=released)


def test_quantized_folder(make_folder):
    folder = make_folder(
        "FUSION-Phi3.5-3B", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
    )
    path = write_card(folder, released="starriver030515/FUSION-Phi3.5-3B")
    metadata, text = read_metadata(path), read_text(path)
    assert metadata["base_model"] == ["starriver030515/FUSION-Phi3.5-3B"]
    assert metadata["base_model_relation"] == "quantized" and metadata["license"] == "mit"
    assert "in 4 bits already" in text and "nor in 4 bits" in text and path.read_text().count("```python") == 1


def test_any_other_folder_claims_nothing_that_was_not_given(tiny_folder):
    path = write_card(tiny_folder)
    metadata, text = read_metadata(path), read_text(path)
    assert not {"base_model", "license", "datasets", "language", "model-index", "widget"} & metadata.keys()
    assert not (tiny_folder / "widget").exists() and "](widget/" not in text
    assert text.startswith(" # my-fusion A FUSION vision-language model ([arXiv")
    for word in ("Llama", "Phi", "FLUX", "SigLIP", "## Results", "## Training"):
        assert word not in text
    assert "A license of the weights was not stated" in text


def test_facts_that_are_handed_in(tiny_folder, tmp_path):
    shutil.copy(PHOTO, tmp_path / "cat.jpg")
    examples = [{"image": "cat.jpg", "question": 'Is it "big"?', "answer": "no"}]
    results = [
        {"dataset_name": "easy-VQA", "dataset_type": "easy-vqa", "metric_type": "accuracy", "metric_value": 0.98}
    ]
    results += [{**results[0], "dataset_name": "Scenes", "dataset_type": "me/scenes", "dataset_split": "test"}]
    (tmp_path / "examples.yaml").write_text(yaml.safe_dump(examples))
    (tmp_path / "results.json").write_text(json.dumps(results))
    path = write_card(
        tiny_folder,
        name="Tiny",
        description="Trained from **nothing**.",
        license="apache-2.0",
        results=tmp_path / "results.json",
        examples=tmp_path / "examples.yaml",
    )
    metadata, text = read_metadata(path), read_text(path)
    assert metadata["license"] == "apache-2.0" and "base_model" not in metadata
    assert metadata["widget"][0]["output"] == {"text": "no"}
    assert metadata["widget"][0]["messages"][0]["content"][1]["text"] == 'Is it "big"?'
    assert (tiny_folder / "widget" / "cat.jpg").read_bytes() == PHOTO.read_bytes()
    assert [result["dataset"]["type"] for result in metadata["model-index"][0]["results"]] == ["easy-vqa", "me/scenes"]
    assert "Trained from **nothing**." in text and "| Scenes (test) | accuracy | 0.98 |" in text
    assert [file.name for file in (tiny_folder / ".eval_results").iterdir()] == ["scenes.yaml"]
    assert "photograph in" not in text


def test_repository_is_named_where_it_is_known(tiny_folder):
    assert 'folder = "."  #' in python_blocks(write_card(tiny_folder))[0]
    examples = [{"image": PHOTO, "question": "What is it?"}]
    path = write_card(tiny_folder, repo_id="me/tiny-fusion", examples=examples)
    assert 'snapshot_download("me/tiny-fusion")' in python_blocks(path)[0] and "# tiny-fusion\n" in path.read_text()
    image = read_metadata(path)["widget"][0]["messages"][0]["content"][0]
    assert image["image_url"]["url"] == "https://huggingface.co/me/tiny-fusion/resolve/main/widget/chelsea.jpg"


def test_picture_is_at_the_top_with_what_was_asked_and_answered(tiny_folder):
    examples = [
        {"image": PHOTO, "question": "How many?\nOne word | digit.", "answer": "1"},
        {"image": PHOTO, "question": "Which?"},
    ]
    text = write_card(tiny_folder, examples=examples).read_text().split("\n---\n", 1)[1]
    top = text[: text.index("## Use")]
    assert "![The picture of the example](widget/chelsea.jpg)" in top
    assert "| How many? One word \\| digit. | 1 |" in top and "| Which? | not recorded |" in top
    text = write_card(tiny_folder, examples=examples[1:]).read_text()
    assert "To ask about this picture: *Which?*" in text and "the model's answer" not in text


def test_model_of_others_does_not_get_the_photograph(make_folder, tiny_folder):
    """A cat says nothing of a model that was trained on something else, also with the sizes of a released one."""
    for folder in (make_folder("FUSION-Phi3.5-3B"), tiny_folder):
        path = write_card(folder)
        assert "widget" not in read_metadata(path) and "van der Walt" not in path.read_text()
    path = write_card(make_folder("FUSION-Phi3.5-3B"), released="starriver030515/FUSION-Phi3.5-3B")
    assert "](widget/chelsea.jpg)" in path.read_text() and "van der Walt" in path.read_text()


def test_question_of_a_fine_tuned_folder_is_one_that_it_has_learned(tiny_folder):
    """A model of few questions may answer nothing to another."""
    assert "What is in the picture?" in read_text(write_card(tiny_folder))
    report = {"examples": [{"question": 'Wohin zeigt "er"?'}]}
    (tiny_folder / "finetune.json").write_text(json.dumps(report))
    assert '"text": "Wohin zeigt \\"er\\"?"' in read_text(write_card(tiny_folder))
    (tiny_folder / "finetune.json").unlink()


def test_examples_of_an_earlier_card_are_not_kept(tiny_folder):
    write_card(tiny_folder, examples=[{"image": PHOTO, "question": "What animal is this?", "answer": "a cat"}])
    path = write_card(tiny_folder)
    assert "widget" not in read_metadata(path) and "cat" not in python_blocks(path)[0]


def test_images_of_examples_do_not_overwrite_each_other(tiny_folder, tmp_path):
    """Two files of one name, one that lies in `widget/` already, a name that no URL takes, and an image in memory."""
    colors = {}
    for number, name in enumerate(("a/one.png", "b/one.png", "my-fusion/widget/one.png", "c/my dice (1).png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name)
        colors[tmp_path / name] = (number, 0, 0)
    examples = [{"image": path, "question": "What?"} for path in (*colors, tmp_path / "a/one.png")]
    examples.append({"image": Image.new("RGB", (4, 4), (9, 0, 0)), "question": "What?"})
    metadata = read_metadata(write_card(tiny_folder, examples=examples))
    urls = [entry["messages"][0]["content"][0]["image_url"]["url"] for entry in metadata["widget"]]
    written = [Image.open(tiny_folder / url).getpixel((0, 0)) for url in urls]
    assert written == [*colors.values(), (0, 0, 0), (9, 0, 0)]
    assert urls[4] == urls[0] and urls[2] == "widget/one.png" and urls[3] == "widget/my-dice-1.png"


def test_handler_is_mentioned_if_it_is_there(tiny_folder):
    assert "handler.py" not in read_text(write_card(tiny_folder))
    assert not (tiny_folder / "requirements.txt").exists()
    assert "`handler.py` serves the model" in read_text(write_card(tiny_folder, handler=True))


def test_trained_folder_gets_the_files_of_a_converted_one(tiny_folder, converted):
    write_card(tiny_folder, handler=True)
    for name in (*SHIPPED_FILES, "requirements.txt"):
        assert (tiny_folder / name).read_bytes() == (converted[LLAMA] / name).read_bytes(), name


def test_code_and_requirements_of_the_folder_stay(tiny_folder):
    """The weights may need the code that lies beside them; an old handler is replaced."""
    for name in ("modeling_fusion.py", "handler.py"):
        (tiny_folder / name).write_text("# older\n")
    (tiny_folder / "requirements.txt").write_text("--pre\nPillow==12.0\neinops\n")
    add_endpoint_files(tiny_folder, quantized=True)
    add_endpoint_files(tiny_folder, quantized=True)
    assert (tiny_folder / "modeling_fusion.py").read_text() == "# older\n"
    assert (tiny_folder / "handler.py").read_text() == (ROOT / "handler.py").read_text()
    lines = (tiny_folder / "requirements.txt").read_text().splitlines()
    assert lines == ["--pre", "Pillow==12.0", "einops", *REQUIREMENTS[:2], *QUANTIZED_REQUIREMENTS]


def test_requirements_of_the_handler_are_those_of_the_package():
    """Else an endpoint would install a release that the package has left behind."""
    required = (ROOT / "setup.cfg").read_text().split("install_requires =")[1].split("[options.package_data]")[0]
    assert {*REQUIREMENTS, *QUANTIZED_REQUIREMENTS} <= set(required.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"results": [{"dataset_name": "easy-VQA", "value": 1}]},
            "cannot be used: .*Expected the fields of .*EvalResult",
        ),
        ({"results": {"easy-VQA": 1}}, "results must be a list of mappings"),
        ({"results": "nowhere.yaml"}, "Cannot read the results from nowhere.yaml"),
        ({"examples": [{"image": PHOTO, "text": "What?"}]}, "wrong fields, expected image and question"),
        ({"examples": [{"image": "nowhere.png", "question": "What?"}]}, "no image: nowhere.png is not there"),
        ({"examples": [{"image": Path(__file__), "question": "What?"}]}, "test_card.py cannot be read"),
        ({"examples": [{"image": PHOTO, "question": "Two?", "answer": False}]}, "`answer` .* is no text: quote it"),
        ({"ask": True}, "cannot be asked without a question"),
    ],
)
def test_bad_data_is_refused_by_name(arguments, message, tiny_folder):
    with pytest.raises(CardError, match=message):
        write_card(tiny_folder, **arguments)
    assert not (tiny_folder / "README.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"base_model": "out/missing/model"},
            "`base_model` is 'out/missing/model', a path: expected an id of the Hub",
        ),
        ({"base_model": ["me/model", "/data/siglip"]}, "`base_model` is '/data/siglip', a path"),
        ({"base_model": "tests"}, "`base_model` is 'tests', a path"),
        ({"datasets": ["../rows.json"]}, "`datasets` is '../rows.json', a path"),
        ({"license": "Apache 2.0"}, "`license` is 'Apache 2.0', which the Hub does not know.*near: apache-2.0"),
        ({"base_model": "https://huggingface.co/me/model"}, "an address: expected an id of the Hub"),
        ({"base_model": "me/model--2"}, "'me/model--2': expected an id of the Hub"),
        ({"repo_id": "my-model"}, "'my-model', without an owner"),
        ({"license": "mine"}, "or `other` with a `license_name` and a `license_link`"),
        (
            {"license": "other", "license_link": "https://example.org"},
            "says nothing by itself: give its `license_name`",
        ),
        ({"license": "other", "license_name": "mine"}, "says nothing by itself: give its `license_name`"),
        ({"license_link": "https://example.org"}, "`license` is missing"),
        ({"license": "mit", "license_name": "mine"}, "`license_name` is 'mine', which is for `license` 'other' only"),
        ({"license": "mit", "license_link": "LICENSE"}, "`license_link` is 'LICENSE': expected an address, or a file"),
    ],
)
def test_origin_that_the_hub_would_refuse(arguments, message, tiny_folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(CardError, match=message):
        write_card(tiny_folder, **arguments)


def test_license_without_an_id_is_shown_by_its_name(tiny_folder):
    (tiny_folder / "LICENSE").write_text("Do as you like.")
    path = write_card(tiny_folder, license="other", license_name="as-you-like", license_link="LICENSE")
    metadata = read_metadata(path)
    assert [metadata[key] for key in ("license", "license_name", "license_link")] == [
        "other",
        "as-you-like",
        "LICENSE",
    ]
    assert "The weights are under [as-you-like](LICENSE)." in read_text(path)


def test_card_of_somebody_else_is_not_overwritten(tiny_folder):
    (tiny_folder / "README.md").write_text("# My notes\n")
    with pytest.raises(CardError, match="README.md was not written by this command"):
        write_card(tiny_folder)
    assert (tiny_folder / "README.md").read_text() == "# My notes\n"


def test_folder_that_is_no_fusion(tmp_path):
    with pytest.raises(CardError, match="There is no model in .*: no config.json"):
        write_card(tmp_path)
    with pytest.raises(CardError, match="is a released checkpoint. It has to be converted first"):
        write_card(GOLDEN_DIR / PHI / "checkpoint")


class TestConverter:
    """Here the golden checkpoint is a released model: its sizes are those that the card looks for."""

    @pytest.fixture(autouse=True)
    def golden_is_released(self, monkeypatch):
        sizes = {"model_type": "phi3", "hidden_size": 32, "vocab_size": 525}
        monkeypatch.setattr(released, "DECODERS", (dataclasses.replace(released.DECODERS[0], sizes=sizes),))
        monkeypatch.setattr(released, "TOWERS", (dataclasses.replace(released.TOWERS[0], sizes={"hidden_size": 32}),))

    source = GOLDEN_DIR / PHI / "checkpoint"

    def test_hub_id_of_the_source_names_the_checkpoint(self, tmp_path, monkeypatch):
        monkeypatch.setattr(convert_checkpoints, "find_source", lambda *args, **kwargs: self.source)
        hub_id = "starriver030515/FUSION-Phi3.5-3B"
        folder = convert(hub_id, tmp_path / "a", repo_id="me/mine")
        assert len(read_metadata(folder / "README.md")["model-index"][0]["results"]) == 22
        assert 'snapshot_download("me/mine")' in (folder / "README.md").read_text()
        folder = convert("somebody/FUSION-Phi3.5-3B", tmp_path / "b")
        assert "model-index" not in read_metadata(folder / "README.md")

    def test_local_folder_needs_to_be_called_a_copy(self, tmp_path):
        folder = convert(self.source, tmp_path / "FUSION-Phi3.5-3B")
        assert "model-index" not in read_metadata(folder / "README.md")
        folder = convert(self.source, tmp_path / "b", copy_of="starriver030515/FUSION-Phi3.5-3B")
        assert "model-index" in read_metadata(folder / "README.md")
        with pytest.raises(ConversionError, match="is no copy of starriver030515/FUSION-X-Phi3.5-3B: its sizes are"):
            convert(self.source, tmp_path / "c", copy_of="starriver030515/FUSION-X-Phi3.5-3B")
        assert not (tmp_path / "c").exists()


def test_converted_folder_of_other_sizes_is_not_taken_for_a_released_model(converted):
    metadata = read_metadata(converted[LLAMA] / "README.md")
    assert "model-index" not in metadata and "base_model" not in metadata


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def run_code(card_path: Path, folder: Path, cache: Path) -> list[str]:
    """Run all Python of a card as pasted, in one process, offline, from a folder. Return the lines that it prints."""
    code = "\n".join([*python_blocks(card_path), "print(type(model.get_input_embeddings()).__name__)"])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "PYTHONWARNINGS": "ignore"}
    environment.pop("HF_HUB_CACHE", None)
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory) -> Path:
    return runpy.run_path(str(RANDOM_MODEL))["write_small_model"](tmp_path_factory.mktemp("card") / "small")


@pytest.mark.parametrize("kind", ["with an example", "without one", "of a repository"])
def test_code_runs_as_pasted_in_the_folder(kind, small_folder, tmp_path):
    """Usage and 4 bits, one after the other; nothing in it stands for a file that is not there."""
    examples = None if kind == "without one" else [{"image": PHOTO, "question": 'What is "it"?'}]
    repo_id = "me/small" if kind == "of a repository" else None
    path = write_card(small_folder, examples=examples, repo_id=repo_id)
    usage = python_blocks(path)[0]
    assert len(usage.splitlines()) <= 17 and "photo.jpg" not in usage
    assert ("widget/chelsea.jpg" in usage) == (examples is not None)
    assert run_code(path, small_folder, tmp_path)[-1] == "Embedding"


def test_code_runs_anywhere_with_the_id_of_the_repository(small_folder, tmp_path):
    """From an empty folder; the repository is in the cache of the Hub client, as after a download."""
    path = write_card(small_folder, examples=[{"image": PHOTO, "question": "What is it?"}], repo_id="me/small")
    repository = tmp_path / "hub" / "models--me--small"
    shutil.copytree(small_folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (tmp_path / "empty").mkdir()
    assert run_code(path, tmp_path / "empty", tmp_path)[-1] == "Embedding"


def test_code_of_the_shipped_small_model_gives_the_answer_on_its_card(tmp_path):
    folder = SMALL_MODEL
    metadata = read_metadata(folder / "README.md")
    assert run_code(folder / "README.md", folder, tmp_path)[0] == metadata["widget"][0]["output"]["text"] == "blue"


def test_model_answers_the_examples_that_have_no_answer(tmp_path):
    """The shipped small model, asked about a picture that is not on its card."""
    folder = tmp_path / "tiny"
    shutil.copytree(SMALL_MODEL, folder)
    hint = "Answer with a single word or phrase."
    row = {"image": ROOT / "examples" / "images" / "stars.png", "question": f"Where is the circle?\n{hint}"}
    metadata = read_metadata(write_card(folder, examples=[row, {**row, "answer": "there"}], ask=True))
    assert [entry["output"]["text"] for entry in metadata["widget"]] == ["lower left", "there"]


NODE_CHECK = """
const tasks = require("@huggingface/tasks");
const card = JSON.parse(require("fs").readFileSync(0));
const model = {
    ...card, id: "me/mine", inference: "", config: { architectures: ["FusionForConditionalGeneration"] },
    transformersInfo: { auto_model: "AutoModelForImageTextToText", processor: "AutoProcessor" },
};
console.log(JSON.stringify({
    pipeline: tasks.PIPELINE_TYPES.includes(card.pipeline_tag),
    library: tasks.ALL_MODEL_LIBRARY_KEYS.includes(card.library_name),
    task: tasks.LIBRARY_TASK_MAPPING[card.library_name].includes(card.pipeline_tag),
    results: card["model-index"][0].results.every(result => tasks.PIPELINE_TYPES.includes(result.task.type)),
    snippet: [tasks.MODEL_LIBRARIES_UI_ELEMENTS[card.library_name].snippets(model)].flat().join("\\n"),
}));
"""


@pytest.mark.network
@pytest.mark.skipif(not shutil.which("npm"), reason="needs node and npm")
def test_metadata_against_the_hubs_own_package(make_folder, tmp_path):
    """`@huggingface/tasks` is what the Hub's pages are made with: its lists, its snippet, and its types by `tsc`."""
    path = write_card(make_folder("FUSION-Phi3.5-3B"), released="starriver030515/FUSION-Phi3.5-3B", repo_id="me/mine")
    metadata = read_metadata(path)
    node = tmp_path / "node"
    node.mkdir()
    (node / "package.json").write_text("{}")
    packages = ["@huggingface/tasks@0.21", "typescript@5"]
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", *packages], cwd=node, check=True)
    (node / "check.cjs").write_text(NODE_CHECK)
    command = ["node", "check.cjs"]
    result = subprocess.run(command, cwd=node, input=json.dumps(metadata), capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    snippet = found.pop("snippet")
    assert found == {"pipeline": True, "library": True, "task": True, "results": True}
    assert 'AutoModelForImageTextToText.from_pretrained("me/mine", trust_remote_code=True' in snippet

    typed = {"widgetData": metadata["widget"], "tags": metadata["tags"], "pipeline_tag": metadata["pipeline_tag"]}
    typed["cardData"] = {key: metadata[key] for key in ("inference", "base_model")}
    source = f"""import type {{ ModelData, WidgetExampleChatInput }} from "@huggingface/tasks";
const model: Partial<ModelData> = {json.dumps(typed)};
const widget: WidgetExampleChatInput[] = {json.dumps(metadata["widget"])};
"""
    options = ["--noEmit", "--strict", "--module", "nodenext", "--skipLibCheck"]
    for text, passes in ((source, True), (source.replace('"messages"', '"massages"'), False)):
        (node / "card.mts").write_text(text)
        check = subprocess.run(["npx", "tsc", *options, "card.mts"], cwd=node, capture_output=True, text=True)
        assert (check.returncode == 0) == passes, check.stdout
