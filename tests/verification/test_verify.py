"""`fusion-vlm verify`: the small model passes, and damaged copies of it fail with the name of the damaged part."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from fusion_vlm.commands.main import main
from fusion_vlm.small_model.grammar.render import draw_scene
from fusion_vlm.small_model.grammar.scene import Scene, SceneObject
from fusion_vlm.verification import verify as verification
from fusion_vlm.verification.questions import PICTURES, QUESTIONS
from fusion_vlm.verification.verify import verify
from fusion_vlm.verification.weights import LOST, STRONG, check_weights, fit_score

from ..helpers import GOLDEN_DIR, PHI, SMALL_MODEL
from ..tiny import tiny_model


pytestmark = pytest.mark.skipif(
    not SMALL_MODEL.exists(), reason="small_model/train.py has not written small_model/model yet"
)


# Objects of each bundled picture: shape, color, and place.
NEAR, MIDDLE, FAR = 0.18, 0.5, 0.82
SCENES = {
    "circle_star": [("circle", "red", NEAR, MIDDLE), ("star", "blue", FAR, MIDDLE)],
    "star_circle": [("star", "red", NEAR, MIDDLE), ("circle", "blue", FAR, MIDDLE)],
    "mirrored": [("star", "blue", NEAR, MIDDLE), ("circle", "red", FAR, MIDDLE)],
    "heart_cross": [("heart", "green", MIDDLE, NEAR), ("cross", "black", MIDDLE, FAR)],
    "cross_heart": [("cross", "green", MIDDLE, NEAR), ("heart", "black", MIDDLE, FAR)],
    "swapped": [("cross", "black", MIDDLE, NEAR), ("heart", "green", MIDDLE, FAR)],
    "two": [("triangle", "yellow", x, MIDDLE) for x in (NEAR, FAR)],
    "four": [("triangle", "yellow", x, y) for x in (NEAR, FAR) for y in (NEAR, FAR)],
}


def run_verify(folder: Path, **options) -> tuple[bool, str]:
    lines = []
    passed = verify(folder, print_line=lines.append, **options)
    return passed, "\n".join(lines)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(SMALL_MODEL / "model.safetensors")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Copy the small model, to damage the copy."""
    return Path(shutil.copytree(SMALL_MODEL, tmp_path / "model", symlinks=False))


def damage_tensor(tensor: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    if kind == "shuffled":
        order = torch.randperm(tensor.numel(), generator=generator)
        return tensor.flatten()[order].view_as(tensor)
    if kind == "rows shuffled":
        return tensor[torch.randperm(len(tensor), generator=generator)]
    if kind == "transposed":
        return tensor.T.contiguous() if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1] else tensor
    if kind == "zeroed":
        return torch.zeros_like(tensor)
    assert kind == "NaN"
    damaged = tensor.clone()
    damaged.view(-1)[0] = torch.nan
    return damaged


def damage(folder: Path, tensors: dict[str, torch.Tensor], prefix: str, kind: str, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    damaged = {
        name: damage_tensor(tensor, kind, generator) if name.startswith(prefix) else tensor
        for name, tensor in tensors.items()
    }
    (folder / "model.safetensors").unlink()
    save_file(damaged, folder / "model.safetensors", metadata={"format": "pt"})


def named_parts(report: str) -> set[str]:
    verdict = report.splitlines()[-1]
    assert verdict.startswith("FAIL: ")
    names = re.sub(r" \(.*?\)", "", verdict.removeprefix("FAIL: "))
    return set(names.split(", "))


@pytest.mark.parametrize("name", SCENES)
def test_pictures_show_what_the_questions_ask_for(name):
    objects = [SceneObject(shape, color, "large", x, y) for shape, color, x, y in SCENES[name]]
    drawn = draw_scene(Scene("white", objects), 336)
    assert ImageChops.difference(drawn, Image.open(PICTURES / f"{name}.png")).getbbox() is None
    assert {path.stem for path in PICTURES.iterdir()} == SCENES.keys()


def test_answers_differ_between_the_two_pictures_of_a_question():
    """A model that does not see the picture is right about one of the two at most."""
    for question in QUESTIONS:
        assert question.answer != question.other_answer
        assert {question.answer, question.other_answer} <= set(question.choices)


def test_small_model_passes_in_every_condition(capsys):
    assert main(["verify", str(SMALL_MODEL), "--time-limit", "600"]) == 0
    report = capsys.readouterr().out
    assert report.splitlines()[-1] == "PASS"
    rows = ("each question about its picture", "about the other picture, with its answer", "4 latents", "16 latents")
    for row in (*rows, "float32", "4 bits"):
        assert re.search(rf"^  {re.escape(row)} +11 of 11 ", report, re.MULTILINE), row
    assert re.search(r"with the first answer +0 of 11 +-\d\d\.", report)
    for row in ("144 latents (not trained)", "without the question in the tower", "without interaction layer 2"):
        assert row in report
    assert "damaged" not in report and "suspicious" not in report.lower() and "Skipped" not in report
    for words in ("torch ", "transformers ", "Peak memory: ", "vision_tower.layers", "interaction_layers.2"):
        assert words in report


def test_small_model_passes_with_the_code_of_its_folder(folder):
    """Through the Auto classes, in a process that has not loaded the folder's code."""
    (folder / "handler.py").write_text("# changed\n")
    command = [sys.executable, "-m", "fusion_vlm.commands.main", "verify", folder, "--trust-remote-code"]
    result = subprocess.run([*command, "--time-limit", "0"], capture_output=True, text=True, cwd=folder.parent)
    assert (result.returncode, result.stderr) == (0, "")
    assert "handler.py differ from this package" in result.stdout
    assert "Skipped: 4 latents; " in result.stdout and "; float32; 4 bits.\nPASS" in result.stdout


@pytest.mark.parametrize("options", [{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}])
def test_quantized_folder_passes_and_its_weights_are_compared(options, tmp_path):
    if "load_in_4bit" in options:
        options["bnb_4bit_use_double_quant"] = True
    config = BitsAndBytesConfig(**options)
    model = AutoModelForImageTextToText.from_pretrained(
        SMALL_MODEL, trust_remote_code=True, quantization_config=config
    )
    shutil.copytree(SMALL_MODEL, tmp_path / "model", symlinks=False, ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(tmp_path / "model")
    passed, report = run_verify(tmp_path / "model", time_limit=0)
    assert passed and "Answers in the stored quantization" in report
    parts = {part.name: part for part in check_weights(tmp_path / "model")}
    assert min(parts["interaction_layers.1"].fits.values()) > STRONG
    assert parts["decoder.layers.1"].num_parameters == 213248


PARTS = {
    "vision_tower": "model.vision_tower.",
    "multi_modal_projector": "model.multi_modal_projector.",
    "text_to_vision_projector": "model.text_to_vision_projector.",
    "decoder.embed_tokens": "model.language_model.embed_tokens.",
    **{f"interaction_layers.{index}": f"model.interaction_layers.{index}." for index in range(3)},
    **{f"decoder.layers.{index}": f"model.language_model.layers.{index}." for index in range(4)},
    **{f"vision_tower.layers.{index}": f"model.vision_tower.encoder.layers.{index}." for index in range(4)},
}
QUICK = [
    ("vision_tower", "shuffled"),
    ("vision_tower", "transposed"),
    ("multi_modal_projector", "transposed"),
    ("text_to_vision_projector", "shuffled"),
    ("interaction_layers.0", "transposed"),
    ("interaction_layers.1", "shuffled"),
    ("interaction_layers.2", "zeroed"),
    ("decoder.embed_tokens", "shuffled"),
    ("decoder.layers.2", "rows shuffled"),
    ("vision_tower.layers.1", "transposed"),
    ("text_to_vision_projector", "NaN"),
]
KINDS = ("shuffled", "rows shuffled", "transposed", "zeroed", "NaN")
ALL = [
    (part, kind, seed)
    for part in PARTS
    for kind in KINDS
    # The embedding is not square.
    if (part, kind) != ("decoder.embed_tokens", "transposed")
    for seed in (range(3) if "shuffled" in kind else (0,))
]


def assert_named(folder, tensors, part: str, kind: str, seed: int = 0):
    damage(folder, tensors, PARTS[part], kind, seed)
    passed, report = run_verify(folder, time_limit=0)
    assert not passed
    names = named_parts(report)
    assert names and all(name == part or name.startswith(f"{part}.") for name in names), report


@pytest.mark.parametrize(("part", "kind"), QUICK)
def test_damaged_part_is_named(part, kind, folder, tensors):
    assert_named(folder, tensors, part, kind)


@pytest.mark.slow
@pytest.mark.parametrize(("part", "kind", "seed"), ALL)
def test_every_damaged_part_is_named(part, kind, seed, folder, tensors):
    assert_named(folder, tensors, part, kind, seed)


def test_exit_code_of_a_damaged_folder(folder, tensors, capsys):
    damage(folder, tensors, PARTS["interaction_layers.1"], "shuffled")
    assert main(["verify", str(folder), "--time-limit", "0"]) == 1
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == "FAIL: interaction_layers.1"
    assert "Damaged: interaction_layers.1: " in output.out
    assert output.err == ""


@pytest.mark.parametrize("kind", ["shuffled", "rows shuffled", "zeroed"])
def test_damaged_head_of_its_own_is_named(kind, folder, tensors):
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    untied = {**tensors, "lm_head.weight": tensors["model.language_model.embed_tokens.weight"].clone()}
    damage(folder, untied, "lm_head", kind)
    passed, report = run_verify(folder, time_limit=0)
    assert not passed and named_parts(report) == {"lm_head"}


def test_tied_head_is_named_with_the_embedding(folder, tensors):
    damage(folder, tensors, PARTS["decoder.embed_tokens"], "rows shuffled")
    _, report = run_verify(folder, time_limit=0)
    assert report.splitlines()[-1] == "FAIL: decoder.embed_tokens (and lm_head, which is tied to it)"


def test_single_matrices_are_named(folder, tensors):
    """Of one layer, the layer is named; whole parts are easier to tell."""
    for name in (
        "model.interaction_layers.1.proj_in.weight",
        "model.language_model.layers.3.mlp.gate_proj.weight",
        "model.vision_tower.encoder.layers.2.mlp.fc1.weight",
    ):
        damage(folder, tensors, name, "shuffled")
        damaged = [part.name for part in check_weights(folder) if part.faults]
        expected = re.match(r"model\.(.+?\.\d+)\.", name.replace("encoder.", ""))[1]
        assert damaged == [expected.replace("language_model", "decoder")]


def test_doubts_alone_do_not_fail(folder, monkeypatch):
    """A projector that looks random but does its work: what is measured on small matrices may mislead."""
    original = verification.check_weights

    def doubt(path):
        parts = original(path)
        next(part for part in parts if part.name == "multi_modal_projector").doubts.append("looks random")
        return parts

    monkeypatch.setattr(verification, "check_weights", doubt)
    passed, report = run_verify(folder, time_limit=0)
    assert passed and "Suspicious: multi_modal_projector: looks random." in report


def test_fit_score_is_near_zero_for_unrelated_matrices():
    """Of 300 pairs of random matrices, none reaches the bound below which a pair is lost."""
    generator = torch.Generator().manual_seed(0)
    scores = [
        fit_score(torch.randn(96, 64, generator=generator), torch.randn(96, 80, generator=generator), generator, size)
        for size in (None, 32, 48)
        for _ in range(100)
    ]
    assert max(scores) < LOST
    assert abs(sum(scores) / len(scores)) < 0.2


@pytest.mark.parametrize("decoder", ["phi3", "llama", "qwen3"])
def test_fused_and_shared_matrices_of_a_decoder_are_told_apart(decoder, processor, tmp_path):
    """Phi-3 fuses matrices, and all three share keys between heads."""
    tiny_model(processor, decoder).save_pretrained(tmp_path)
    part = next(part for part in check_weights(tmp_path) if part.name == "decoder.layers.1")
    assert part.fits.keys() == {"q-k", "v-o", "up-down"} and part.structures.keys() == {"gate"}


def test_memory_that_is_too_small_is_told(monkeypatch):
    monkeypatch.setattr(verification, "available_memory", lambda device: 4e6)
    passed, report = run_verify(SMALL_MODEL, time_limit=0)
    assert passed and "Answers in 4 bits" in report and "float32 (needs 0.0 GB, 0.0 GB are free)" in report
    monkeypatch.setattr(verification, "available_memory", lambda device: 1e5)
    with pytest.raises(ValueError, match="does not fit into the memory of cpu"):
        run_verify(SMALL_MODEL)


@pytest.mark.parametrize(
    ("path", "words"), [(GOLDEN_DIR / PHI / "checkpoint", "has to be converted"), (GOLDEN_DIR, "no config.json")]
)
def test_what_is_no_converted_folder_is_told(path, words, capsys):
    assert main(["verify", str(path)]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("passes", [True, False])
def test_convert_verifies_what_it_wrote(passes, tmp_path, monkeypatch, capsys):
    """With the code that was copied into the folder, as users load it. A folder that fails is kept to be looked at."""
    calls = []
    monkeypatch.setattr(verification, "verify", lambda *args, **options: calls.append((args, options)) or passes)
    code = main(["convert", str(GOLDEN_DIR / PHI / "checkpoint"), str(tmp_path / "out"), "--verify"])
    assert code == (0 if passes else 1)
    assert ("did not pass the check above" in capsys.readouterr().err) != passes
    assert calls == [((tmp_path / "out",), {"trust_remote_code": True})]
    assert (tmp_path / "out" / "config.json").is_file()
