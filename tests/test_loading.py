"""What a user's own program does: load a folder with `trust_remote_code`, in a process that has only the folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    pipeline,
)

from fusion_vlm.configuration_fusion import FusionConfig

from .helpers import LLAMA, PHI, VARIANTS, make_messages, process


# Ends a process that loads a folder with what it computed; the package is hidden, as if it were not installed.
ASK = """
import json, sys
sys.modules["fusion_vlm"] = None
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, image, output = sys.argv[1:4]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype="auto")
messages = [{"role": "user", "content": [{"type": "image", "path": image}, {"type": "text", "text": "What is it?"}]}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    processor_kwargs={"latent_grid_size": 4},
)
with torch.no_grad():
    logits = model(**inputs).logits[:, -1]
model.generate(**inputs, max_new_tokens=3, num_beams=2)
save_file({"logits": logits}, output)
if len(sys.argv) > 4:
    model.save_pretrained(sys.argv[4])
    processor.save_pretrained(sys.argv[4])
"""


def run(code: str, *arguments, cwd: Path) -> subprocess.CompletedProcess:
    """Run code in a fresh process with a module cache of its own and nothing of this repository on its path."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(cwd / "modules")}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.fixture
def image_file(tmp_path) -> Path:
    Image.effect_mandelbrot((80, 60), (-2, -1, 1, 1), 50).convert("RGB").save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.mark.parametrize("variant", VARIANTS)
def test_folder_alone_is_enough_and_is_complete_again_when_saved(variant, converted, image_file, tmp_path):
    """Converted folder -> logits and a saved copy -> the same logits from the copy alone, and a copy of that."""
    first = run(ASK, converted[variant], image_file, tmp_path / "1", tmp_path / "copy", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    second = run(ASK, tmp_path / "copy", image_file, tmp_path / "2", tmp_path / "copy of copy", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    logits = [load_file(tmp_path / name)["logits"] for name in ("1", "2")]
    assert torch.equal(logits[0], logits[1])
    for folder in ("copy", "copy of copy"):
        files = [{path.name for path in place.iterdir()} for place in (converted[variant], tmp_path / folder)]
        # `save_pretrained` writes what a model needs; these belong to the repository on the Hub.
        assert files[0] - files[1] == {"README.md", "handler.py", "requirements.txt"}
    configs = [FusionConfig.from_pretrained(folder).to_dict() for folder in (converted[variant], tmp_path / "copy")]
    for config in configs:
        for part in (config["vision_config"], config["text_config"]):
            part.pop("dtype")  # written on save by transformers
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    "auto_class", [AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM]
)
def test_every_auto_class_gives_the_model_that_answers(auto_class, converted):
    model = auto_class.from_pretrained(converted[LLAMA], trust_remote_code=True)
    assert type(model).__name__ == "FusionForConditionalGeneration"
    assert model.can_generate()
    assert model.generation_config.eos_token_id == [569, 561]


@pytest.mark.parametrize("variant", VARIANTS)
def test_loading_warns_of_nothing(variant, converted, image_file, tmp_path):
    result = run(ASK, converted[variant], image_file, tmp_path / "logits", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stderr.split("\n") if line.strip() and "Loading weights" not in line] == []


def test_two_revisions_in_one_process_run_their_own_code(converted, tmp_path):
    """Folders of one name, with equal configuration code and different modeling code."""
    for name in ("old", "new"):
        shutil.copytree(converted[PHI], tmp_path / name / "model")
    with open(tmp_path / "new" / "model" / "modeling_fusion.py", "a") as file:
        file.write("\n\nFusionForConditionalGeneration.revision = 'new'\n")
    code = """
import sys
from transformers import AutoModel
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    print(getattr(model, "revision", "old"), end=" ")
"""
    folders = [tmp_path / name / "model" for name in ("old", "new", "old")]
    result = run(code, *folders, cwd=tmp_path)
    assert result.stdout == "old new old ", result.stderr


def test_missing_trust_remote_code_says_so(converted, tmp_path):
    code = "import sys, transformers; transformers.{}.from_pretrained(sys.argv[1], trust_remote_code=False)"
    for auto_class in ("AutoProcessor", "AutoModelForImageTextToText"):
        result = run(code.format(auto_class), converted[PHI], cwd=tmp_path)
        assert result.returncode != 0
        assert "trust_remote_code=True" in result.stderr


@pytest.mark.parametrize("module", ["configuration_fusion", "modeling_fusion", "processing_fusion"])
def test_older_transformers_is_named(module, tmp_path):
    """One clear error, before anything that an older version lacks is imported."""
    code = f"""
import importlib.metadata, sys, transformers.utils.versions
version = importlib.metadata.version
importlib.metadata.version = lambda name: "5.16.1" if name == "transformers" else version(name)
for name in list(sys.modules):
    if name.startswith(("transformers.models", "transformers.image_processing_backends")):
        sys.modules[name] = None  # these must not be reached
import fusion_vlm.{module}
"""
    result = run(code, cwd=tmp_path)
    assert result.returncode != 0
    assert "ImportError: transformers>=5.20 is required" in result.stderr
    assert "found transformers==5.16.1" in result.stderr
    assert "FUSION is tested with transformers 5.20 to 5.24: pip install --upgrade transformers" in result.stderr


def test_newer_transformers_warns_once_and_runs(converted, image_file, tmp_path):
    newer = """
import importlib.metadata
version = importlib.metadata.version
importlib.metadata.version = lambda name: "5.99.0" if name == "transformers" else version(name)
"""
    result = run(newer + ASK, converted[PHI], image_file, tmp_path / "logits", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("FUSION is tested with transformers 5.20 to 5.24, and 5.99.0 is newer.") == 1
    assert "pip install 'transformers==5.24.*'" in result.stderr


def test_pipeline_answers_as_generate_does(converted, image_file, processors, models):
    pipe = pipeline("image-text-to-text", model=str(converted[LLAMA]), trust_remote_code=True)
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": str(image_file)}, {"type": "text", "text": "What is it?"}],
        }
    ]
    answer = pipe(text=messages, max_new_tokens=5, do_sample=False, return_full_text=False)[0]["generated_text"]
    processor = processors[LLAMA]
    inputs = process(processor, make_messages(["What is it?"], Image.open(image_file)))
    output = models[LLAMA].generate(**inputs, max_new_tokens=5, do_sample=False)
    assert answer == processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_public_names_are_imported_when_they_are_used():
    """`import fusion_vlm` alone loads neither torch nor transformers; every public name can be imported."""
    code = """
import sys, fusion_vlm
assert not {"torch", "transformers"} & set(sys.modules)
assert fusion_vlm.__version__ and set(dir(fusion_vlm)) == set(fusion_vlm.__all__)
for name in fusion_vlm.__all__:
    assert getattr(fusion_vlm, name) is not None, name
from fusion_vlm import FusionProcessor
from fusion_vlm.processing_fusion import FusionProcessor as same
assert FusionProcessor is same
try:
    fusion_vlm.nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'nothing'" in done.stdout
