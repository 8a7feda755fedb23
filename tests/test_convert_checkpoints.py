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
from fusion_vlm.commands.main import main
from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.convert_checkpoints import (
    RULES,
    ConversionError,
    build_text_config,
    build_vision_config,
    check_parameters,
    convert,
    map_names,
)

from .helpers import FIXTURES, GOLDEN_DIR, LLAMA, PEAK_MEMORY, PHI, VARIANTS


ROOT = Path(convert_checkpoints.__file__).resolve().parent
RELEASED = json.loads((FIXTURES / "released_tensors.json").read_text())
TOWERS = {"FUSION-X": "google/siglip2-giant-opt-patch16-384", "FUSION": "google/siglip-so400m-patch14-384"}
# What the released configs say of their decoders and no tensor shape does.
DECODERS = {
    "Phi3.5": ("phi3", {"num_attention_heads": 32, "num_key_value_heads": 32}),
    "LLaMA3.1": ("llama", {"num_attention_heads": 32, "num_key_value_heads": 8}),
}


@pytest.fixture
def source(tmp_path) -> Path:
    """Copy the Phi checkpoint, to damage the copy."""
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


def remove_fields(source: Path, *fields: str, file: str = "config.json"):
    config = json.loads((source / file).read_text())
    for field in fields:
        del config[field]
    (source / file).write_text(json.dumps(config))


def write_bin(source: Path, content):
    """Replace the weights by a file of `torch.save`."""
    (source / "model.safetensors").unlink()
    torch.save(content, source / "pytorch_model.bin")


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
        "requirements.txt",
        "tokenizer.json",
        "tokenizer_config.json",
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
    assert main(["convert", str(tmp_path / "nowhere" / "at" / "all"), str(tmp_path / "out")]) == 1
    assert re.fullmatch("error: There is no folder .*nowhere.*\n", capsys.readouterr().err)


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
    assert main(["convert", "owner/model", str(tmp_path / "out")]) == 1
    assert re.fullmatch(
        "error: There is no folder owner/model. The Hub is switched off .*\\n", capsys.readouterr().err
    )


def test_bad_shard_size(source, tmp_path, capsys):
    assert main(["convert", str(source), str(tmp_path / "out"), "--max-shard-size", "banana"]) == 1
    assert re.match("error: .*banana", capsys.readouterr().err)


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
    """Write the same checkpoint with a wider and deeper decoder."""
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
    with pytest.raises(ConversionError, match="There is no folder .*not is not there either"):
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
    down = "model.layers.2.mlp.down_proj.weight"
    edit_tensors(source, lambda tensors: [tensors.pop(down), tensors.pop("model.norm.weight")])
    missing = r"missing: model.language_model.layers.2.mlp.down_proj.weight, model.language_model.norm.weight"
    with pytest.raises(ConversionError, match=missing):
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


# Unexpected, but harmless: each changed copy converts to the same model as the unchanged checkpoint.

TOWER = "model.vision_tower.vision_tower.vision_model."


@pytest.fixture
def assert_unchanged(source, tmp_path, converted, reference_tensors, caplog):
    """Convert `source`, compare tensors and configs with those of the unchanged copy, and look for a notice."""

    def check(notice: str | None, **options):
        output_dir = convert(source, tmp_path / "out", **options)
        assert_same_tensors(read_folder(output_dir), reference_tensors)
        for file in ("config.json", "generation_config.json", "tokenizer.json", "processor_config.json"):
            assert (output_dir / file).read_text() == (converted[PHI] / file).read_text(), file
        notices = [record.getMessage() for record in caplog.records if record.getMessage().startswith("notice: ")]
        assert any(notice in text for text in notices) if notice else not notices, notices

    return check


def test_known_checkpoint_needs_no_notice(assert_unchanged):
    assert_unchanged(None)


BUFFERS = {
    f"{TOWER}embeddings.position_ids": torch.arange(729)[None],
    "model.rotary_emb.inv_freq": torch.ones(4),
    "model.layers.3.self_attn.rotary_emb.inv_freq": torch.ones(4, dtype=torch.bfloat16),
    "model.layers.0.self_attn.rotary_emb.long_inv_freq": torch.ones(4, dtype=torch.float64),
    "model.layers.0.self_attn.rotary_emb.cos_cached": torch.ones(4, 4, dtype=torch.float16),
    "model.layers.0.self_attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
    "model.vision_sampler_layers.0.layers.0.num_updates": torch.tensor(3, dtype=torch.int32),
    "model.causal_mask": torch.ones(2, 2, dtype=torch.uint8),
}


@pytest.mark.parametrize("extension", ["safetensors", "bin"])
def test_buffers_are_dropped_and_listed(extension, source, assert_unchanged):
    edit_tensors(source, lambda tensors: tensors.update(BUFFERS))
    if extension == "bin":
        write_bin(source, load_file(source / "model.safetensors"))
    assert_unchanged(f"dropped {len(BUFFERS)} buffers: {', '.join(sorted(BUFFERS))}")


def test_unused_parts_of_the_tower_are_dropped(source, assert_unchanged):
    """What a whole SigLIP checkpoint has: its head, text model and scales, and the last layer."""

    def edit(tensors):
        for name in list(tensors):
            if f"{TOWER}encoder.layers.25." in name:
                tensors[name.replace("layers.25", "layers.26")] = torch.full_like(tensors[name], 7.0)
        tensors[f"{TOWER}head.attention.in_proj_weight"] = torch.ones(96, 32)
        tensors[f"{TOWER}head.probe"] = torch.ones(1, 1, 32)
        tensors["model.vision_tower.vision_tower.text_model.embeddings.token_embedding.weight"] = torch.ones(9, 32)
        tensors["model.vision_tower.vision_tower.logit_scale"] = torch.ones(1)

    edit_tensors(source, edit)
    assert_unchanged("dropped the tower's layers from 26 on")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"module.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"policy.net.{name}",
        lambda name: name.replace("layers.", "layers._orig_mod.", 1),
        lambda name: name.replace("model.", "model.model.", 1),
        lambda name: name.removeprefix("model."),
        lambda name: name.replace("vision_tower.vision_tower.vision_model.", "vision_tower.vision_tower."),
        lambda name: name.replace("vision_tower.vision_tower.", "vision_tower.module."),
    ],
)
def test_wrappers_of_names_are_removed(wrap, source, assert_unchanged):
    def edit(tensors):
        renamed = {wrap(name): tensor for name, tensor in tensors.items()}
        assert renamed.keys() != tensors.keys()
        tensors.clear()
        tensors.update(renamed)

    edit_tensors(source, edit)
    towers = "vision_model" not in wrap(f"{TOWER}x") and "module" not in wrap(f"{TOWER}x")
    assert_unchanged(None if towers else "removed wrappers from")


def test_two_tensors_for_one_parameter_are_refused(source, tmp_path):
    edit_tensors(source, lambda tensors: tensors.update({"module.model.norm.weight": torch.zeros(32)}))
    with pytest.raises(ConversionError, match="two tensors for model.norm.weight: "):
        convert(source, tmp_path / "out")


def test_files_of_training_beside_the_weights_do_not_matter(source, assert_unchanged):
    for name in ("training_args.bin", "mm_projector.bin", "trainer_state.json", "optimizer.pt", "rng_state_0.pth"):
        (source / name).write_bytes(b"not read")
    (source / "global_step10").mkdir()
    (source / "checkpoint-100").mkdir()
    shutil.copy(source / "model.safetensors", source / "checkpoint-100")
    assert_unchanged(None)


def test_weights_in_both_forms(source, assert_unchanged):
    torch.save({"other": torch.zeros(2)}, source / "pytorch_model.bin")
    assert_unchanged("took the .safetensors files, not the .bin files")


def test_shards_without_an_index(source, assert_unchanged, tmp_path):
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(tensors)
    for index in range(2):
        save_file(
            {name: tensors[name] for name in names[index::2]}, source / f"model-0000{index + 1}-of-00002.safetensors"
        )
    assert_unchanged("the shards have no index; took all 2")
    (source / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConversionError, match="has 1 of 2 shards .* Is the download complete"):
        convert(source, tmp_path / "other")


@pytest.mark.parametrize("form", ["nested", "old format", "parameters", "other entries"])
def test_forms_of_bin_files(form, source, assert_unchanged):
    tensors = load_file(source / "model.safetensors")
    if form == "parameters":
        tensors = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
        name = "model.aux_projector.2.weight"
        tensors[name] = torch.nn.Parameter(tensors[name].T.contiguous().T)  # not contiguous
    if form == "other entries":
        tensors["step"] = 3
    write_bin(source, {"state_dict": tensors, "epoch": 1} if form == "nested" else tensors)
    if form == "old format":
        torch.save(tensors, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_unchanged("dropped what is no tensor in pytorch_model.bin: step" if form == "other entries" else None)


@pytest.mark.parametrize("are_null", [False, True])
def test_missing_fields_with_one_sensible_value(are_null, source, assert_unchanged, caplog):
    layers = ("num_of_vision_sampler_layers", "num_hidden_layers")
    fields = (
        "query_len",
        "window_size",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_key_value_heads",
        *layers,
    )
    if are_null:
        edit_config(source, **dict.fromkeys(fields))
    else:
        remove_fields(source, *fields)
    assert_unchanged("config.json has no query_len; took ")
    assert all(f"config.json has no {field}; took " in caplog.text for field in fields)


def test_config_without_a_model_type(source, assert_unchanged):
    remove_fields(source, "model_type")
    assert_unchanged("took fusion_phi by its architectures")


@pytest.mark.parametrize("field", ["rope_theta", "rms_norm_eps", "rope_scaling", "num_attention_heads"])
def test_missing_field_that_changes_numbers_is_asked_for(field, source, assert_unchanged, tmp_path):
    value = json.loads((source / "config.json").read_text())[field]
    remove_fields(source, field)
    with pytest.raises(ConversionError, match=f"lacks {field}, which changes what the model computes.*--set"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert_unchanged(None, overrides={field: value})


def test_interaction_layers_are_guessed_for_the_released_depth_only(source, assert_unchanged, tmp_path, caplog):
    remove_fields(source, "start_of_vision_sampler_layers", "stride_of_vision_sampler_layers")
    with pytest.raises(ConversionError, match="lacks start_of_vision_sampler_layers, stride_of"):
        convert(source, tmp_path / "out")
    shapes = {name: torch.empty(shape, device="meta") for name, shape in RELEASED["FUSION-Phi3.5-3B"].items()}
    released = {
        **json.loads((source / "config.json").read_text()),
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    }
    for field in ("hidden_size", "num_hidden_layers", "num_of_vision_sampler_layers"):
        del released[field]
    filled = convert_checkpoints.fill_config(released, shapes)
    assert (filled["start_of_vision_sampler_layers"], filled["stride_of_vision_sampler_layers"]) == (0, 3)
    caplog.clear()
    overrides = {"start_of_vision_sampler_layers": 1, "stride_of_vision_sampler_layers": 3}
    assert_unchanged(None, overrides=overrides)


@pytest.mark.parametrize(
    "name",
    [
        "/data/siglip_so400m",
        "./checkpoints/vision-tower/checkpoint-1200",
        "/home/eclipse/tower",
        None,
        "/mnt/models--google--siglip-so400m-patch14-384/snapshots/9fd5/",
        "google/siglip-so400m-patch14-384-finetuned",
    ],
)
def test_tower_of_another_name_is_told_by_its_tensors(name, source, assert_unchanged):
    edit_config(source, mm_vision_tower=name)
    named = name is not None and "patch14-384" in name
    assert_unchanged(None if named else "by its 26 layers and 729 patches of 14, took it for siglip so400m")


@pytest.mark.parametrize("last", [24, 28])
def test_tower_of_another_depth_is_refused(last, source, tmp_path):
    def edit(tensors):
        for name in list(tensors):
            if f"{TOWER}encoder.layers.25." in name:
                for index in range(26, last):
                    tensors[name.replace("layers.25", f"layers.{index}")] = tensors[name].clone()
                if last == 24:
                    del tensors[name]

    edit_tensors(source, edit)
    number = 25 if last == 24 else last
    with pytest.raises(ConversionError, match=f"FUSION uses 26 of 27 layers, but the checkpoint has {number} layers"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window_size", 0),
        ("window_size", "3"),
        ("num_of_vision_sampler_layers", "2"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("num_attention_heads", 5),
        ("query_len", "many"),
        ("stride_of_vision_sampler_layers", 30),
    ],
)
def test_values_that_cannot_be_meant_are_named(field, value, source, tmp_path):
    edit_config(source, **{field: value})
    words = {"rope_scaling": "rope_parameters", "num_attention_heads": "rope_parameters", "query_len": "many"}
    words["stride_of_vision_sampler_layers"] = "interaction_layer_indices"
    with pytest.raises(ConversionError, match=words.get(field, f"`{field}` is {value!r}")) as error:
        convert(source, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_missing_vocabulary(source, tmp_path):
    (source / "tokenizer.model").unlink()
    with pytest.raises(ConversionError, match="has no vocabulary: expected tokenizer.json or tokenizer.model"):
        convert(source, tmp_path / "out")


def test_tower_is_named_by_an_option(source, tmp_path, assert_unchanged):
    edit_config(source, mm_vision_tower="my-clip-like-tower")
    with pytest.raises(ConversionError, match="my-clip-like-tower.*--vision-tower"):
        convert(source, tmp_path / "out")
    assert_unchanged(None, vision_tower="google/siglip-so400m-patch14-384")


def test_options_of_the_command_line(source, tmp_path, converted, capsys):
    edit_config(source, mm_vision_tower="the-clip", window_size=5)
    remove_fields(source, "rope_theta")
    tower = ["--vision-tower", "google/siglip-so400m-patch14-384"]
    main(["convert", str(source), str(tmp_path / "out"), *tower, "--set", "window_size=3", "rope_theta=10000.0"])
    assert (tmp_path / "out" / "config.json").read_text() == (converted[PHI] / "config.json").read_text()
    remove_fields(source, "query_len")
    main(
        [
            "convert",
            str(source),
            str(tmp_path / "second"),
            *tower,
            "--set",
            "window_size=3",
            "--set",
            "rope_theta=10000.0",
        ]
    )
    assert "notice: config.json has no query_len; took " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["convert", str(source), str(tmp_path / "third"), "--set", "window_size"])
    assert "expected KEY=VALUE, got 'window_size'" in capsys.readouterr().err


def test_override_of_no_field_is_refused(source, tmp_path):
    with pytest.raises(ConversionError, match="No field of the config has the name windowsize"):
        convert(source, tmp_path / "out", overrides={"windowsize": 3})


def test_vocabulary_is_that_of_the_embedding(source, assert_unchanged):
    edit_config(source, vocab_size=32064)
    assert_unchanged("config.json says vocab_size 32064; took the 525 rows of the embedding")


@pytest.mark.parametrize("query_len", ["4,16,36,64,144", [4, 16, 36, 64, 144]])
def test_forms_of_latent_counts(query_len, source, assert_unchanged):
    edit_config(source, query_len=query_len)
    assert_unchanged(None)


def test_latent_counts_have_to_be_squares(source, tmp_path):
    edit_config(source, query_len="4,15")
    with pytest.raises(ConversionError, match="`query_len` is '4,15', expected square numbers"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("says_so", [False, True])
def test_missing_head_is_tied(says_so, source, tmp_path, caplog):
    """The model then computes what it does with a head that equals the embedding."""
    embedding = load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(source, lambda tensors: tensors.update({"lm_head.weight": embedding}))
    expected = AutoModelForImageTextToText.from_pretrained(
        convert(source, tmp_path / "untied"), trust_remote_code=True
    )
    edit_config(source, tie_word_embeddings=says_so)
    edit_tensors(source, lambda tensors: tensors.pop("lm_head.weight"))
    output_dir = convert(source, tmp_path / "tied")
    tied = AutoModelForImageTextToText.from_pretrained(output_dir, trust_remote_code=True)
    assert tied.config.tie_word_embeddings and tied.lm_head.weight is tied.get_input_embeddings().weight
    assert torch.equal(tied.lm_head.weight, expected.lm_head.weight)
    assert "lm_head.weight" not in read_folder(output_dir)
    assert ("tied the head to the embedding" in caplog.text) == (not says_so)


def test_missing_head_of_another_size_is_refused(source, tmp_path):
    edit_config(source, vocab_size=600)
    edit_tensors(source, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ConversionError, match="no lm_head.weight, and its embedding of 525 rows .* vocab_size 600"):
        convert(source, tmp_path / "out")


def test_missing_embedding_is_listed(source, tmp_path):
    edit_tensors(source, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    with pytest.raises(ConversionError, match="missing: model.language_model.embed_tokens.weight"):
        convert(source, tmp_path / "out")


def test_tied_head_that_differs_is_refused(source, tmp_path, assert_unchanged):
    edit_config(source, tie_word_embeddings=True)
    with pytest.raises(ConversionError, match="lm_head.weight and model.embed_tokens.weight differ"):
        convert(source, tmp_path / "out")
    assert_unchanged(None, overrides={"tie_word_embeddings": False})


@pytest.mark.parametrize(
    "values",
    [
        {"do_sample": False, "temperature": 0.2, "top_p": 0.9},
        {"do_sample": True, "temperature": 0.0},
        {"temperature": None, "pad_token_id": None, "do_sample": None},
    ],
)
def test_generation_config_that_does_not_validate(values, source, assert_unchanged):
    config = json.loads((source / "generation_config.json").read_text())
    (source / "generation_config.json").write_text(json.dumps(config | values))
    assert_unchanged(None if None in values.values() else "of the generation config")


def test_tensors_of_several_dtypes_are_kept(source, tmp_path, reference_tensors, caplog):
    """As in a checkpoint in half precision whose projectors were trained in float32."""

    def edit(tensors):
        for name in tensors:
            if "projector" not in name and "embed_tokens" not in name:
                tensors[name] = tensors[name].to(torch.bfloat16)

    edit_tensors(source, edit)
    edit_config(source, torch_dtype="torch.bfloat16")
    output_dir = convert(source, tmp_path / "out")
    tensors = read_folder(output_dir)
    assert json.loads((output_dir / "config.json").read_text())["dtype"] == "bfloat16"
    for name, expected in reference_tensors.items():
        kept = "projector" in name or "embed_tokens" in name
        assert torch.equal(tensors[name], expected if kept else expected.to(torch.bfloat16)), name
    assert "9 tensors are not of dtype bfloat16" in caplog.text
    assert_same_tensors(
        read_folder(convert(source, tmp_path / "even", dtype="torch.bfloat16")),
        {name: tensor.to(torch.bfloat16) for name, tensor in reference_tensors.items()},
    )


def test_tokenizer_without_the_frame_tokens(tmp_path, converted, caplog):
    """As the decoder's own tokenizer, which the reference adds two tokens to."""
    source = Path(shutil.copytree(GOLDEN_DIR / LLAMA / "checkpoint", tmp_path / "source"))
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    frames = ("<vision_start>", "<vision_end>")
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] not in frames]
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((source / "tokenizer_config.json").read_text())
    decoder = config["added_tokens_decoder"]
    config["added_tokens_decoder"] = {key: token for key, token in decoder.items() if token["content"] not in frames}
    config.pop("additional_special_tokens", None)
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (source / "special_tokens_map.json").unlink()
    output_dir = convert(source, tmp_path / "out")
    assert "took the last two rows of the embedding" in caplog.text
    processors = [
        AutoProcessor.from_pretrained(folder, trust_remote_code=True) for folder in (output_dir, converted[LLAMA])
    ]
    vocabularies = [processor.tokenizer.get_vocab() for processor in processors]
    assert vocabularies[0] == vocabularies[1]


def test_tokenizer_of_another_model(source, tmp_path):
    edit_config(source, vocab_size=520)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    edit_tensors(source, lambda tensors: tensors.update({name: tensors[name][:520].clone() for name in names}))
    with pytest.raises(ConversionError, match="tokenizer has 525 tokens, but the embedding has 520 rows"):
        convert(source, tmp_path / "out")


# What would change the model, or cannot be read, is refused in words that fit, and leaves no folder.

QUANTIZED = {
    "int8 weight": {"model.layers.1.mlp.down_proj.weight": torch.ones(32, 80, dtype=torch.int8)},
    "packed 4 bits": {
        "model.layers.1.mlp.down_proj.weight": torch.ones(1280, 1, dtype=torch.uint8),
        "model.layers.1.mlp.down_proj.weight.absmax": torch.ones(40),
        "model.layers.1.mlp.down_proj.weight.quant_state.bitsandbytes__nf4": torch.ones(80, dtype=torch.uint8),
    },
    "float8 with scales": {
        "model.layers.1.mlp.down_proj.weight": torch.ones(32, 80).to(torch.float8_e4m3fn),
        "model.layers.1.mlp.down_proj.weight_scale": torch.ones(1),
    },
    "gptq": {
        "model.layers.1.mlp.down_proj.qweight": torch.ones(10, 32, dtype=torch.int32),
        "model.layers.1.mlp.down_proj.scales": torch.ones(1, 32, dtype=torch.float16),
    },
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_weights_are_refused(kind, source, tmp_path):
    edit_tensors(source, lambda tensors: tensors.update(QUANTIZED[kind]))
    with pytest.raises(
        ConversionError, match=r"checkpoint is quantized, not in floats: model\.layers\.1\.mlp\.down_proj"
    ):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.self_attn.o_proj.lora_A.default.weight",
        "model.layers.0.self_attn.o_proj.lora_B.weight",
        "model.layers.0.self_attn.o_proj.base_layer.weight",
        "model.mm_projector.modules_to_save.default.0.weight",
        "model.layers.0.mlp.down_proj.ia3_l",
    ],
)
def test_adapters_are_refused(name, source, tmp_path):
    edit_tensors(source, lambda tensors: tensors.update({name: torch.zeros(2, 2)}))
    with pytest.raises(ConversionError, match="has adapter tensors: .* Merge them into the weights first"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("beside", [True, False])
def test_adapter_files_are_refused(beside, source, tmp_path):
    (source / "adapter_config.json").write_text("{}")
    if not beside:
        (source / "model.safetensors").unlink()
    with pytest.raises(ConversionError, match="(?i)adapter.*merge"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("model_type", ["llava_llama", "phi3", "siglip_vision_model"])
def test_config_of_another_architecture(model_type, source, tmp_path):
    edit_config(source, model_type=model_type, architectures=["Other"])
    match = f"Not a FUSION checkpoint: the model_type .* is '{model_type}' .architectures: Other., expected fusion_phi"
    with pytest.raises(ConversionError, match=match):
        convert(source, tmp_path / "out")


def test_decoder_tensor_too_many(source, tmp_path):
    edit_tensors(source, lambda tensors: tensors.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}))
    with pytest.raises(ConversionError, match=r"unexpected: model\.layers\.0\.self_attn\.q_norm\.weight"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1539424\n"
PAGE = b"<!DOCTYPE html><html><body>Sign in</body></html>"
BROKEN_FILES = {
    "pointer": ("model.safetensors", POINTER, "a git-lfs pointer.*git lfs pull"),
    "pointer for the tokenizer": ("tokenizer.model", POINTER, "tokenizer.model: this is a git-lfs pointer"),
    "pointer for the config": ("config.json", POINTER, "config.json is not valid JSON: this is a git-lfs pointer"),
    "page": ("model.safetensors", PAGE, "a web page, not the file itself"),
    "empty": ("model.safetensors", b"", "the file is empty. Is the download complete"),
    "other content": ("model.safetensors", b"\xff" * 4096, "not a safetensors file, or its header is damaged"),
    "wrong header": ("model.safetensors", (4).to_bytes(8, "little") + b"[12]" + b"0" * 99, "its header is damaged"),
    "a list": ("config.json", b"[1, 2]", "config.json holds a list, expected an object"),
}


@pytest.mark.parametrize("kind", BROKEN_FILES)
def test_file_is_something_else(kind, source, tmp_path):
    file, content, words = BROKEN_FILES[kind]
    (source / file).write_bytes(content)
    with pytest.raises(ConversionError, match=words) as error:
        convert(source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_truncated_file_says_how_much_is_missing(source, tmp_path):
    path = source / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(
        ConversionError, match=f"cut off, it has {size - 1000} of {size} bytes. Is the download complete"
    ):
        convert(source, tmp_path / "out")


class Arguments:
    """Like the training arguments that lie beside weights: an object of a class."""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Arguments(), "other Python objects than tensors"),
        ([torch.zeros(2)], "no tensors by name, but a list"),
        ({"optimizer": {"lr": 1.0}}, "no tensors by name, but a dict"),
    ],
)
def test_bin_with_other_content(content, words, source, tmp_path):
    write_bin(source, content)
    with pytest.raises(ConversionError, match=words):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("extension", ["safetensors", "bin"])
def test_files_with_the_wrong_extension(extension, source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    if extension == "safetensors":
        # Beside it first: the tensors are mapped from the file that would be overwritten.
        torch.save(tensors, source / "weights")
        (source / "weights").replace(source / "model.safetensors")
    else:
        (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ConversionError, match="Rename it to"):
        convert(source, tmp_path / "out")


def test_index_that_is_none(source, tmp_path):
    (source / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ConversionError, match="it has no weight_map"):
        convert(source, tmp_path / "out")


def test_index_that_lists_tensors_that_are_nowhere(source, tmp_path):
    names = [*load_file(source / "model.safetensors"), "model.layers.9.mlp.weight"]
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConversionError, match="lists tensors that its files lack: model.layers.9.mlp.weight"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "words"),
    [("mm_projector.bin", "holds the projector only"), ("checkpoint-500", "convert one of checkpoint-500")],
)
def test_folder_without_the_whole_model(name, words, source, tmp_path):
    (source / "model.safetensors").unlink()
    if "." in name:
        torch.save({}, source / name)
    else:
        (source / name).mkdir()
    with pytest.raises(ConversionError, match=words):
        convert(source, tmp_path / "out")
