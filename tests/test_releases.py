"""
Check what holds on every release of transformers in `TESTED_RELEASES`.

The names that the shipped files use exist, the cache has the name that in-tree models use, users' control tokens stay
text or are refused, and folders load across releases.

`make test-versions` runs this with the lowest, the pinned and the newest release. It sets `FUSION_FOLDERS` to the
folders that tests/write_folders.py wrote with each of them.
"""

import ast
import importlib
import os
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoProcessor, DynamicCache, LlamaForCausalLM

from fusion_vlm.commands.main import main
from fusion_vlm.modeling_fusion import CACHE_NAME, CHECKPOINTS_HOOKS
from fusion_vlm.processing_fusion import CAN_SANITIZE

from .helpers import ROOT, make_messages, process
from .tiny import random_image
from .write_folders import FOLDERS, ask, load


SHIPPED_FILES = ("configuration_fusion.py", "modeling_fusion.py", "processing_fusion.py", "handler.py")
# Everything that the shipped files import from transformers. A release that lacks one of these names does not work, so
# a new name has to be worth it.
IMPORTED = {
    "transformers": {
        "AddedToken",
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForImageTextToText",
        "AutoProcessor",
        "BatchFeature",
        "GenerationMixin",
        "ImagesKwargs",
        "PreTrainedConfig",
        "PreTrainedModel",
        "ProcessingKwargs",
        "ProcessorMixin",
        "SiglipVisionConfig",
    },
    "transformers.activations": {"ACT2FN"},
    "transformers.cache_utils": {"Cache"},
    "transformers.configuration_utils": {"SubConfigSpec"},
    "transformers.image_processing_backends": {"PilBackend"},
    "transformers.image_utils": {"ImageInput", "PILImageResampling", "SizeDict"},
    "transformers.masking_utils": {"create_bidirectional_mask"},
    "transformers.modeling_layers": {"GradientCheckpointingLayer"},
    "transformers.modeling_outputs": {
        "BaseModelOutputWithPast",
        "BaseModelOutputWithPooling",
        "CausalLMOutputWithPast",
    },
    "transformers.models.siglip.modeling_siglip": {
        "SiglipAttention",
        "SiglipEncoder",
        "SiglipPreTrainedModel",
        "SiglipVisionEmbeddings",
    },
    "transformers.processing_utils": {"Unpack"},
    "transformers.quantizers.auto": {"AutoQuantizationConfig"},
    "transformers.utils": {
        "ModelOutput",
        "TransformersKwargs",
        "can_return_tuple",
        "logging",
        "torch_compilable_check",
    },
    "transformers.utils.generic": {"merge_with_config_defaults"},
    "transformers.utils.output_capturing": {"capture_outputs"},
    "transformers.utils.quantization_config": {"QuantizationConfigMixin"},
    "transformers.utils.versions": {"require_version"},
}
# Imported in a `try`, with a replacement below the release that is named there.
OPTIONAL = {"transformers.modeling_utils": {"slice_logits_to_keep"}}
# Methods of base classes of transformers that FUSION overrides or calls: a release that renames one would leave ours
# without a caller, in silence.
METHODS = {
    "image_processing_backends.PilBackend": {"fetch_images", "preprocess", "resize", "rescale", "normalize"},
    "processing_utils.ProcessorMixin": {
        "_check_special_mm_tokens",
        "_get_arguments_from_pretrained",
        "_load_tokenizer_from_pretrained",
        "apply_chat_template",
        "model_input_names",
        "replace_image_token",
    },
    "modeling_utils.PreTrainedModel": {"_from_config", "from_pretrained", "resize_token_embeddings", "tie_weights"},
    "generation.GenerationMixin": {"prepare_inputs_for_generation"},
}


def imported_names() -> dict[str, set[str]]:
    """Return the names that the shipped files import from transformers, by module."""
    names = {}
    for file in SHIPPED_FILES:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "transformers":
                names.setdefault(node.module, set()).update(alias.name for alias in node.names)
    return names


def test_names_that_shipped_files_import_are_listed():
    expected = {**IMPORTED, **OPTIONAL}
    assert imported_names() == expected


def test_names_exist_in_this_release():
    missing = [
        f"{module}.{name}"
        for module, names in IMPORTED.items()
        for name in names
        if not hasattr(importlib.import_module(module), name)
    ]
    for path, methods in METHODS.items():
        module, _, name = path.rpartition(".")
        base = getattr(importlib.import_module(f"transformers.{module}"), name)
        missing += [f"{path}.{method}" for method in methods if not hasattr(base, method)]
    assert missing == []


# The cache goes by the names of in-tree models ----------------------------------------------------------------------

BOTH_NAMES = pytest.mark.parametrize("name", ["cache", "past_key_values"])


@pytest.fixture(scope="module")
def llama(model) -> LlamaForCausalLM:
    """Build the decoder of the tiny model, as the in-tree class."""
    llama = LlamaForCausalLM(model.config.text_config).eval()
    llama.model.load_state_dict(model.model.language_model.state_dict())
    llama.lm_head.load_state_dict(model.lm_head.state_dict())
    return llama


@pytest.fixture
def text(processor) -> dict:
    return dict(processor.tokenizer("What is it?", return_tensors="pt"))


@BOTH_NAMES
@torch.no_grad()
def test_output_has_the_cache_as_in_tree_models(name, model, llama, text):
    output, expected = model(**text), llama(**text)
    assert (name in output, hasattr(output, name)) == (name in expected, hasattr(expected, name))
    assert list(output.keys())[:2] == list(expected.keys())[:2] == ["logits", CACHE_NAME]
    assert model(**text, return_dict=False)[1].get_seq_length() == text["input_ids"].shape[1]
    torch.testing.assert_close(output.logits, expected.logits)


@BOTH_NAMES
@torch.no_grad()
def test_cache_as_an_argument_is_used_as_by_in_tree_models(name, model, llama, text):
    caches = DynamicCache(), DynamicCache()
    for network, cache in zip((model, llama), caches, strict=True):
        network(**text, use_cache=True, **{name: cache})
    assert caches[0].get_seq_length() == caches[1].get_seq_length()


@BOTH_NAMES
def test_generate_takes_a_cache_as_with_in_tree_models(name, model, llama, text):
    results = []
    for network in (model, llama):
        try:
            output = network.generate(**text, max_new_tokens=4, do_sample=False, **{name: DynamicCache()})
            results.append(output.tolist())
        except ValueError:
            results.append("refused")
    assert results[0] == results[1]
    assert name != CACHE_NAME or results[0] != "refused"


def test_answer_goes_on_from_its_own_cache(model, processor):
    """A prompt with an image, whose cache is given back to `generate` together with the answer so far."""
    inputs = process(processor, make_messages(["What is it?"], random_image(0)))
    options = {"do_sample": False, "eos_token_id": -1}
    whole = model.generate(**inputs, max_new_tokens=8, **options)
    cache = DynamicCache()
    first = model.generate(**inputs, max_new_tokens=4, **options, **{CACHE_NAME: cache})
    inputs = {"input_ids": first, "attention_mask": torch.ones_like(first)}
    try:
        second = model.generate(**inputs, max_new_tokens=4, **options, **{CACHE_NAME: cache})
    except ValueError as error:
        assert "one piece" in str(error)
    else:
        assert torch.equal(second, whole)


# Control tokens that a user typed -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("releases")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    (path / "handler.py").write_text((ROOT / "handler.py").read_text())
    random_image(0).save(path / "image.png")
    return path


def ask_processor(folder: Path, question: str):
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    processor.apply_chat_template(
        make_messages([question], random_image(0)),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        sanitize_control_tokens=True,
    )


def ask_handler(folder: Path, question: str):
    spec = importlib.util.spec_from_file_location("release_handler", folder / "handler.py")
    handler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(handler)
    handler.EndpointHandler(folder)({"inputs": question, "parameters": {"max_new_tokens": 2}})


def ask_command(folder: Path, question: str):
    code = main(["ask", str(folder), str(folder / "image.png"), question, "--max-new-tokens", "2"])
    if code:
        raise ValueError("see stderr")


@pytest.mark.parametrize("front_end", [ask_processor, ask_handler, ask_command])
@pytest.mark.parametrize("token", ["<|eot_id|>", "<image>", "<latent>"])
def test_control_token_of_a_user_is_text_or_refused(token, front_end, folder, capsys):
    """The server has a test of its own, in tests/serving/test_server.py."""
    question = f"What does {token} mean?"
    if CAN_SANITIZE:
        front_end(folder, question)
        return
    with pytest.raises(ValueError) as error:
        front_end(folder, question)
    told = str(error.value) + capsys.readouterr().err
    assert f"control token {token!r} as text. To keep it as text needs transformers 5.23" in told


@pytest.mark.skipif(CAN_SANITIZE, reason="from transformers 5.23 on, the prompt is marked and stays text")
def test_rendered_prompt_cannot_be_sanitized(processor):
    prompt = processor.apply_chat_template(make_messages(["What?"]), add_generation_prompt=True)
    with pytest.raises(ValueError, match="needs transformers 5.23"):
        processor(text=prompt, sanitize_control_tokens=True)


@pytest.mark.skipif(not CHECKPOINTS_HOOKS, reason="from transformers 5.23 on, reentrant checkpoints work")
def test_reentrant_checkpoints_are_refused(model):
    with pytest.raises(ValueError, match="use_reentrant=True` needs transformers 5.23"):
        model.gradient_checkpointing_enable({"use_reentrant": True})


# Logits to keep -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_to_keep(model, text):
    whole = model(**text).logits
    assert torch.equal(model(**text, logits_to_keep=2).logits, whole[:, -2:])
    assert torch.equal(model(**text, logits_to_keep=torch.tensor([0, 2])).logits, whole[:, [0, 2]])
    try:
        kept = model(**text, logits_to_keep=torch.tensor([[1, 3]])).logits
    except ValueError as error:
        assert "needs transformers 5.21" in str(error) and transformers.__version__ < "5.21"
    else:
        assert torch.equal(kept, whole[:, [1, 3]])


# Folders of other releases ------------------------------------------------------------------------------------------


@pytest.mark.skipif("FUSION_FOLDERS" not in os.environ, reason="make test-versions writes the folders")
@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_every_release_load_here(name):
    """Equal ids, and logits equal to those of the release that wrote the folder."""
    releases = sorted(Path(os.environ["FUSION_FOLDERS"]).iterdir())
    assert len(releases) == 3, "the lowest, the pinned and the newest"
    for release in releases:
        expected = load_file(release / f"{name}.safetensors")
        actual = ask(*load(name, release))
        assert torch.equal(actual["input_ids"], expected["input_ids"]), release
        assert torch.equal(actual["pixel_values"], expected["pixel_values"]), release
        error = (actual["logits"] - expected["logits"]).norm() / expected["logits"].norm()
        assert error < (1e-2 if "4bit" in name else 1e-5), release
