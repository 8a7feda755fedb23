"""Conversion: the rule table on the released names, every kind of source, the output folder, and bad sources."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from fusion_vlm import convert_checkpoints
from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.convert_checkpoints import (
    RULES,
    ConversionError,
    build_text_config,
    build_vision_config,
    check_parameters,
    convert,
    main,
    map_names,
)

from .conftest import GOLDEN_DIR, LLAMA, PEAK_MEMORY, PHI, VARIANTS


ROOT = Path(convert_checkpoints.__file__).resolve().parent
RELEASED = json.loads((Path(__file__).parent / "fixtures" / "released_tensors.json").read_text())
TOWERS = {"FUSION-X": "google/siglip2-giant-opt-patch16-384", "FUSION": "google/siglip-so400m-patch14-384"}
# What the released configs say of their decoders and no tensor shape does.
DECODERS = {
    "Phi3.5": ("phi3", {"num_attention_heads": 32, "num_key_value_heads": 32}),
    "LLaMA3.1": ("llama", {"num_attention_heads": 32, "num_key_value_heads": 8}),
}


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of the Phi checkpoint to damage."""
    return Path(shutil.copytree(GOLDEN_DIR / PHI / "checkpoint", tmp_path / "source"))


@pytest.fixture(scope="module")
def reference_tensors(converted) -> dict[str, torch.Tensor]:
    return load_file(converted[PHI] / "model.safetensors")


def read_folder(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors.update(load_file(file))
    return tensors


def assert_same_tensors(actual: dict, expected: dict):
    assert actual.keys() == expected.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


def edit_config(source: Path, **changes):
    config = json.loads((source / "config.json").read_text())
    config.update(changes)
    (source / "config.json").write_text(json.dumps(config))


def edit_tensors(source: Path, edit):
    tensors = load_file(source / "model.safetensors")
    edit(tensors)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", RELEASED)
def test_released_tensors_fill_the_model(name):
    """Every released tensor of the four models is mapped or dropped on purpose, and fills our parameters exactly."""
    shapes = {tensor: torch.empty(shape, device="meta") for tensor, shape in RELEASED[name].items()}
    model, decoder = name.split("-Phi" if "Phi" in name else "-LLaMA")[0], "Phi3.5" if "Phi" in name else "LLaMA3.1"
    model_type, heads = DECODERS[decoder]
    text = {
        "hidden_size": shapes["model.norm.weight"].shape[0],
        "num_hidden_layers": len([tensor for tensor in shapes if "input_layernorm" in tensor]),
        "intermediate_size": shapes["model.layers.0.mlp.down_proj.weight"].shape[1],
        "max_position_embeddings": 131072,
        "pad_token_id": 0,
        **heads,
    }
    config = FusionConfig(
        vision_config=build_vision_config(TOWERS[model], shapes),
        text_config=build_text_config(text, model_type, shapes),
    )
    mapped = map_names(shapes)
    check_parameters(config, mapped, shapes)
    dropped = RELEASED[name].keys() - set(mapped.values())
    assert {re.sub(r"(weight|bias)$", "", tensor) for tensor in dropped} == {
        "model.vision_tower.vision_tower.vision_model.post_layernorm."
    }
    assert config.vision_config.num_hidden_layers == (39 if model == "FUSION-X" else 26)
    assert config.num_patches_per_side == (24 if model == "FUSION-X" else 27)
    assert config.interaction_layer_indices == list(range(0, 28, 3))


def test_every_rule_is_used():
    names = RELEASED["FUSION-Phi3.5-3B"]
    unused = [pattern for pattern, _ in RULES if not any(re.fullmatch(pattern, name) for name in names)]
    assert not unused


def test_output_folder_is_complete(converted):
    assert {path.name for path in converted[LLAMA].iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "configuration_fusion.py",
        "generation_config.json",
        "handler.py",
        "model.safetensors",
        "modeling_fusion.py",
        "processing_fusion.py",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "widget",
    }
    config = json.loads((converted[LLAMA] / "config.json").read_text())
    assert config["architectures"] == ["FusionForConditionalGeneration"]
    assert config["dtype"] == "float32"
    assert config["auto_map"].keys() == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForImageTextToText",
        "AutoModelForMultimodalLM",
    }
    generation = json.loads((converted[LLAMA] / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [569, 561]
    assert "max_new_tokens" not in generation


@pytest.mark.parametrize(("variant", "end_ids"), [(PHI, [513]), (LLAMA, [566, 567])])
def test_vocabulary_stays_and_token_ids_are_found(variant, end_ids, converted):
    processor = AutoProcessor.from_pretrained(converted[variant], trust_remote_code=True)
    config = FusionConfig.from_pretrained(converted[variant])
    released = json.loads((GOLDEN_DIR / variant / "checkpoint" / "config.json").read_text())
    assert len(processor.tokenizer) == config.text_config.vocab_size == released["vocab_size"]
    assert config.image_token_id == processor.tokenizer.convert_tokens_to_ids("<image>")
    assert config.latent_token_id == processor.tokenizer.convert_tokens_to_ids("<latent>")
    assert config.question_end_token_ids == processor.question_end_token_ids
    assert [token for token in config.question_end_token_ids if token >= 500] == end_ids
    assert processor.tokenizer.padding_side == "left"


def test_names_of_folders_do_not_matter(source, tmp_path, reference_tensors):
    renamed = source.rename(tmp_path / "llama-siglip2-8b")
    assert_same_tensors(read_folder(convert(renamed, tmp_path / "phi")), reference_tensors)


@pytest.mark.parametrize("layout", ["sharded safetensors", "single bin", "sharded bin"])
def test_weight_layouts_of_the_source(layout, source, tmp_path, reference_tensors):
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    stem, extension = ("pytorch_model", "bin") if "bin" in layout else ("model", "safetensors")
    write = torch.save if extension == "bin" else save_file
    if layout.startswith("single"):
        write(tensors, source / f"{stem}.{extension}")
    else:
        names = sorted(tensors)
        weight_map = {name: f"{stem}-{1 + index % 3:05}-of-00003.{extension}" for index, name in enumerate(names)}
        for file in set(weight_map.values()):
            write({name: tensors[name] for name in names if weight_map[name] == file}, source / file)
        (source / f"{stem}.{extension}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same_tensors(read_folder(convert(source, tmp_path / "out")), reference_tensors)


def test_output_shards_and_index(source, tmp_path, reference_tensors):
    output_dir = convert(source, tmp_path / "out", max_shard_size="300KB")
    files = sorted(path.name for path in output_dir.glob("*.safetensors"))
    assert len(files) > 3
    assert all((output_dir / file).stat().st_size < 400_000 for file in files)
    index = json.loads((output_dir / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == reference_tensors.keys()
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in reference_tensors.values())
    assert_same_tensors(read_folder(output_dir), reference_tensors)
    model = AutoModelForImageTextToText.from_pretrained(output_dir, trust_remote_code=True)
    assert torch.equal(model.lm_head.weight, reference_tensors["lm_head.weight"])


def test_dtype_is_converted(source, tmp_path, reference_tensors):
    output_dir = convert(source, tmp_path / "out", dtype="bfloat16")
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in reference_tensors.items()}
    assert_same_tensors(read_folder(output_dir), expected)
    model = AutoModelForImageTextToText.from_pretrained(output_dir, trust_remote_code=True)
    assert model.dtype == torch.bfloat16


def test_runs_as_a_script(source, tmp_path, reference_tensors):
    """From a folder without the package, as the README shows it; what it prints names the output folder."""
    command = [sys.executable, ROOT / "convert_checkpoints.py", source, tmp_path / "out", "--max-shard-size", "1MB"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert str(tmp_path / "out") in result.stdout
    assert "Converting: 100%" in result.stderr
    assert_same_tensors(read_folder(tmp_path / "out"), reference_tensors)


def test_script_says_what_is_wrong_without_a_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit, match="error: .*neither a folder nor the id"):
        main([str(tmp_path / "nowhere" / "at" / "all"), str(tmp_path / "out")])


class FakeHub:
    """A Hub of one repository that is a local folder: lists it, and "downloads" the files that were asked for."""

    def __init__(self, folder: Path, cache: Path):
        self.folder, self.cache, self.calls = folder, cache, []

    def list_repo_files(self, repo_id, revision=None):
        self.calls.append((repo_id, revision))
        return [path.name for path in self.folder.iterdir()]

    def snapshot_download(self, repo_id, revision=None, token=None, allow_patterns=None):
        self.calls.append((repo_id, revision, token))
        self.cache.mkdir()
        for pattern in allow_patterns:
            for path in self.folder.glob(pattern):
                shutil.copy(path, self.cache)
        return str(self.cache)


def test_hub_source_downloads_only_what_is_needed(source, tmp_path, monkeypatch, reference_tensors):
    for unneeded in ("pytorch_model.bin", "training_args.bin", "figure.png"):
        (source / unneeded).write_bytes(b"not needed")
    hub = FakeHub(source, tmp_path / "cache")
    monkeypatch.setattr(convert_checkpoints, "HfApi", lambda token=None: hub)
    monkeypatch.setattr(convert_checkpoints, "snapshot_download", hub.snapshot_download)
    output_dir = convert("owner/fusion", tmp_path / "out", revision="main", token="secret")
    assert hub.calls == [("owner/fusion", "main"), ("owner/fusion", "main", "secret")]
    assert not list(hub.cache.glob("*.bin")) and not list(hub.cache.glob("*.png"))
    assert_same_tensors(read_folder(output_dir), reference_tensors)


def test_hub_that_cannot_be_reached(tmp_path, capsys):
    """The suite runs offline, so this is what a user without a network sees: one line, no traceback."""
    with pytest.raises(SystemExit, match="error: owner/model is no folder here, and cannot be downloaded"):
        main(["owner/model", str(tmp_path / "out")])


def test_bad_shard_size(source, tmp_path):
    with pytest.raises(SystemExit, match="error: .*banana"):
        main([str(source), str(tmp_path / "out"), "--max-shard-size", "banana"])


MEASURE_MEMORY = (
    PEAK_MEMORY
    + """
import sys
from fusion_vlm.convert_checkpoints import convert

baseline = peak_memory()
convert(sys.argv[1], sys.argv[2], max_shard_size=int(sys.argv[3]))
print(peak_memory() - baseline)
"""
)


@pytest.mark.parametrize("extension", ["safetensors", "bin"])
def test_memory_is_bounded_by_a_shard_and_a_tensor(extension, source, tmp_path):
    """Of a source of 500 MB, written in shards of 64 MB, little more than that is in memory at any time."""
    hidden_size, num_layers, mebibyte = 1024, 16, 2**20
    shard_size, constant = 64 * mebibyte, 96 * mebibyte
    config = json.loads((source / "config.json").read_text())
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16}
    edit_config(source, hidden_size=hidden_size, intermediate_size=2048, num_hidden_layers=num_layers, **heads)
    rope = {key: [1.0] * 32 for key in ("short_factor", "long_factor")} | {"type": "longrope"}
    edit_config(source, rope_scaling=rope)
    tensors = widen(load_file(source / "model.safetensors"), config["hidden_size"], hidden_size, num_layers)
    (source / "model.safetensors").unlink()
    if extension == "bin":
        torch.save(tensors, source / "pytorch_model.bin")
    else:
        save_file(tensors, source / "model.safetensors")
    total, largest = sum(t.nbytes for t in tensors.values()), max(t.nbytes for t in tensors.values())
    assert total > 500 * 10**6
    del tensors
    command = [sys.executable, "-c", MEASURE_MEMORY, source, tmp_path / "out", str(shard_size)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    grown = int(result.stdout)
    assert grown < shard_size + largest + constant, f"{grown / mebibyte:.0f} MiB"


def widen(tensors: dict, old: int, new: int, num_layers: int) -> dict:
    """The same checkpoint with a wider and deeper decoder."""
    widths = {old: new, 2 * old: 2 * new, 3 * old: 3 * new, 80: 2048, 160: 4096}
    kept = {name: tensor for name, tensor in tensors.items() if "vision_tower" in name}
    for name, tensor in tensors.items():
        if "vision_tower" in name or re.match(r"model\.layers\.[1-9]", name):
            continue
        # 32 is the tower's width too: its side of a projector stays.
        shape = [widths.get(size, size) for size in tensor.shape]
        if name.startswith("model.aux_projector"):
            shape = [tensor.shape[0], *(shape[1:] if name.endswith("0.weight") else tensor.shape[1:])]
        elif name == "model.mm_projector.0.weight":
            shape = [new, tensor.shape[1]]
        for layer in range(num_layers) if name.startswith("model.layers.0.") else [0]:
            kept[name.replace("model.layers.0.", f"model.layers.{layer}.")] = torch.zeros(shape)
    return kept


def test_killed_run_leaves_nothing_that_loads(source, tmp_path):
    """Stopped with -9 while it writes shards, the conversion has made no output folder and no folder with a config."""
    code = (
        "import sys, time; from fusion_vlm import convert_checkpoints as c; save = c.save_file\n"
        "def slow_save(*args, **kwargs):\n"
        "    save(*args, **kwargs); print('saved', flush=True); time.sleep(60)\n"
        "c.save_file = slow_save; c.convert(sys.argv[1], sys.argv[2], max_shard_size=300_000)"
    )
    output_dir = tmp_path / "out" / "model"
    process = subprocess.Popen([sys.executable, "-c", code, source, output_dir], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "saved\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output_dir.exists()
    assert list(tmp_path.glob("out/**/*.safetensors")), "the run was to be killed after it wrote a shard"
    assert not list(tmp_path.glob("out/**/config.json"))


def test_failed_run_leaves_nothing(source, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(convert_checkpoints, "save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        convert(source, tmp_path / "out" / "model")
    assert list((tmp_path / "out").iterdir()) == []


def test_output_folder_must_be_empty(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ConversionError, match="exists and is not empty"):
        convert(source, tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "out" / "notes.txt").unlink()
    assert convert(source, tmp_path / "out") == tmp_path / "out"


def test_source_that_is_no_fusion_checkpoint(source, tmp_path, converted):
    with pytest.raises(ConversionError, match="Not a FUSION checkpoint.*converted already"):
        convert(converted[PHI], tmp_path / "out")
    (source / "config.json").unlink()
    with pytest.raises(ConversionError, match="has no config.json"):
        convert(source, tmp_path / "out")
    with pytest.raises(ConversionError, match="neither a folder nor the id"):
        convert(tmp_path / "not" / "there", tmp_path / "out")


def test_unknown_decoder_type(source, tmp_path):
    edit_config(source, model_type="fusion_mamba")
    with pytest.raises(ConversionError, match="'fusion_mamba' is unknown, expected one of fusion_phi, fusion_llama"):
        convert(source, tmp_path / "out")


def test_unknown_tower(source, tmp_path):
    edit_config(source, mm_vision_tower="openai/clip-vit-large-patch14")
    with pytest.raises(ConversionError, match="clip-vit-large-patch14.*expected a fixed-resolution SigLIP"):
        convert(source, tmp_path / "out")


def test_tower_that_does_not_fit_its_name(source, tmp_path):
    edit_config(source, mm_vision_tower="google/siglip2-giant-opt-patch16-512")
    with pytest.raises(ConversionError, match="1296 patches of 14, but the checkpoint has 729"):
        convert(source, tmp_path / "out")


def test_missing_weights(source, tmp_path):
    (source / "model.safetensors").unlink()
    with pytest.raises(ConversionError, match="has no weights: expected model.safetensors"):
        convert(source, tmp_path / "out")


def test_missing_tensors_are_listed(source, tmp_path):
    edit_tensors(source, lambda tensors: [tensors.pop("lm_head.weight"), tensors.pop("model.norm.weight")])
    with pytest.raises(ConversionError, match=r"missing: lm_head.weight, model.language_model.norm.weight"):
        convert(source, tmp_path / "out")


def test_unexpected_tensors_are_listed(source, tmp_path):
    edit_tensors(source, lambda tensors: tensors.update({"model.adapter.weight": torch.zeros(2)}))
    with pytest.raises(ConversionError, match="unexpected tensors: model.adapter.weight"):
        convert(source, tmp_path / "out")


def test_tensors_of_layers_that_the_config_does_not_have(source, tmp_path):
    edit_config(source, num_hidden_layers=5)
    with pytest.raises(ConversionError, match=r"unexpected: model\.layers\.5\.input_layernorm\.weight"):
        convert(source, tmp_path / "out")


def test_misshapen_tensors_are_listed_with_both_shapes(source, tmp_path):
    edit_tensors(source, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(7)}))
    with pytest.raises(ConversionError, match=r"model\.norm\.weight is \(7,\), expected \(32,\)"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("keep", [0.5, 0.001])
def test_truncated_safetensors(keep, source, tmp_path):
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ConversionError, match="Cannot read .*model.safetensors.*Is the download complete"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truncated_bin(source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    path = source / "pytorch_model.bin"
    torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConversionError, match="Cannot read .*pytorch_model.bin"):
        convert(source, tmp_path / "out")


def test_missing_shard(tmp_path):
    source = shutil.copytree(GOLDEN_DIR / LLAMA / "checkpoint", tmp_path / "source")
    Path(source, "model-00003-of-00005.safetensors").unlink()
    with pytest.raises(ConversionError, match="lists files that are not there: model-00003-of-00005.safetensors"):
        convert(source, tmp_path / "out")


def test_tokenizer_without_reserved_tokens(tmp_path):
    source = Path(shutil.copytree(GOLDEN_DIR / LLAMA / "checkpoint", tmp_path / "source"))
    text = (source / "tokenizer.json").read_text().replace("reserved_special_token", "busy_special_token")
    (source / "tokenizer.json").write_text(text)
    config = (source / "tokenizer_config.json").read_text().replace("reserved_special_token", "busy_special_token")
    (source / "tokenizer_config.json").write_text(config)
    with pytest.raises(ConversionError, match="0 unused tokens .* expected at least 2"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("variant", VARIANTS)
def test_tower_and_decoder_pairs_are_read_from_the_tensors(variant, converted):
    config = FusionConfig.from_pretrained(converted[variant])
    expected = (27, 26, 13) if variant == PHI else (24, 39, 19)
    tower = config.vision_config
    assert (config.num_patches_per_side, tower.num_hidden_layers, tower.num_hidden_layers // 2) == expected
    assert config.latent_grid_sizes == [2, 4, 6, 8, 12]
    assert config.latent_grid_size == 8
    assert config.interaction_layer_indices == ([1, 4] if variant == PHI else [0, 2, 4])
