"""`fusion-vlm finetune`: from a table to a folder that loads, and what is said about whatever is in the way."""

import argparse
import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from fusion_vlm.commands.main import main
from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.hub.loading import load
from fusion_vlm.modeling_fusion import CHECKPOINTS_HOOKS, FusionForConditionalGeneration
from fusion_vlm.rows.table import BadRowsError
from fusion_vlm.training.finetune import finetune
from fusion_vlm.training.finetune import model as model_module
from fusion_vlm.training.finetune import run as run_module
from fusion_vlm.training.finetune import settings as settings_module
from fusion_vlm.training.finetune.answers import AnswerMetrics, most_frequent_share, normalize_answer
from fusion_vlm.training.finetune.progress import ProgressLines
from fusion_vlm.training.finetune.report import choose_examples, format_report
from fusion_vlm.training.finetune.settings import UNFINISHED, choose_epochs, choose_learning_rate
from fusion_vlm.training.trainer import FusionTrainingArguments

from ..helpers import SMALL_MODEL, make_messages, process, relative_error
from ..tiny import last_logits, random_image, tiny_model


QUICK = {"epochs": 2, "batch_size": 4, "device": "cpu"}
OPTIONS = ("--epochs", "2", "--batch-size", "4", "--device", "cpu")
ONCE = ("--epochs", "1", *OPTIONS[2:])


@pytest.fixture(scope="module")
def base(processor, tmp_path_factory) -> Path:
    """Return the folder of a tiny model that is stored in bfloat16."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model(processor, latent_grid_sizes=[2]).to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    lines = ["image,question,answer"]
    for index in range(12):
        random_image(index).save(folder / f"{index}.png")
        lines.append(f"{index}.png,What is it?,{'a square' if index % 3 else 'a ball'}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n,Say hello.,hello\n")
    return folder / "table.csv"


@pytest.fixture(scope="module")
def merged(base, table, tmp_path_factory) -> tuple[Path, dict]:
    """Return the folder of a run with LoRA, and its report."""
    folder = tmp_path_factory.mktemp("runs") / "merged"
    return folder, finetune(base, table, folder, **QUICK)


def rows_with(table, *lines: str) -> Path:
    """Return a table with further lines."""
    path = table.with_name(f"more_{abs(hash(lines))}.csv")
    path.write_text(table.read_text() + "".join(f"{line}\n" for line in lines))
    return path


def command(*args, capsys) -> tuple[int, str, str]:
    code = main(["finetune", *map(str, args)])
    output = capsys.readouterr()
    return code, output.out, output.err


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def compute_logits(folder, inputs, dtype=torch.float32) -> torch.Tensor:
    return last_logits(FusionForConditionalGeneration.from_pretrained(folder, dtype=dtype), inputs)


@pytest.fixture
def inputs(processor):
    return process(processor, make_messages(["What is it?"], random_image(0)))


# Results ------------------------------------------------------------------------------------------------------------


def test_the_folder_loads_everywhere_and_is_merged(merged, base, inputs, tmp_path, capsys):
    folder, _ = merged
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"}
    assert names >= {"modeling_fusion.py", "processing_fusion.py", "configuration_fusion.py", "tokenizer.json"}
    assert not {name for name in names if "adapter" in name or name == UNFINISHED}
    stored, before = weights(folder), weights(base)
    assert stored.keys() == before.keys()
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}, "as the base model is stored"
    changed = {name for name in stored if not torch.equal(stored[name], before[name])}
    assert {name.split(".")[1] for name in changed} == {"language_model", "vision_tower"}
    configs = [FusionConfig.from_pretrained(path).to_dict() for path in (folder, base)]
    for config in configs:
        config["text_config"].pop("dtype"), config["vision_config"].pop("dtype")
    assert configs[0] == configs[1]

    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    again = process(processor, make_messages(["What is it?"], random_image(0)))
    torch.testing.assert_close(last_logits(model, again), compute_logits(folder, inputs))
    assert not torch.allclose(compute_logits(folder, inputs), compute_logits(base, inputs), atol=1e-2)
    random_image(0).save(tmp_path / "image.png")
    assert main(["ask", str(folder), str(tmp_path / "image.png"), "What is it?", "--max-new-tokens", "4"]) == 0


def test_the_report_says_what_was_done(merged, base):
    folder, report = merged
    assert json.loads((folder / "finetune.json").read_text()) == json.loads(json.dumps(report))
    assert Image.open(folder / "curves.png").width > 500
    assert report["settings"]["model"] == str(base) and report["settings"]["method"] == "lora"
    # A fifth of 13 rows; the rest is learned in two epochs of three steps.
    assert (report["data"]["train"], report["data"]["held_out"]) == (10, 3)
    assert report["after"]["loss"] < report["before"]["loss"]
    evaluations = [entry for entry in report["history"] if "held_out_loss" in entry]
    assert [entry["step"] for entry in evaluations] == [3, 6]
    assert any("loss" in entry for entry in report["history"])
    assert len(report["examples"]) == 3
    right = sum(example["right"] for example in report["examples"])
    assert report["after"]["accuracy"] == pytest.approx(right / 3)
    assert not report["long_answers"]
    assert report["most_frequent_answer"]["answer"] == "a square"


def test_figures_after_are_those_of_the_saved_folder(merged, table):
    """Rounded to bfloat16, which the model that was trained is not."""
    folder, report = merged
    report_again = finetune(folder, table, folder.parent / "again", **QUICK)
    assert report_again["before"]["loss"] == pytest.approx(report["after"]["loss"], rel=1e-5)
    assert [example["before"] for example in report_again["examples"]] == [
        example["after"] for example in report["examples"]
    ]


def test_an_adapter_folder_is_small_and_loads_like_a_model(base, merged, table, inputs, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "adapter"
    monkeypatch.chdir(base.parent)
    code, out, err = command(base.name, table, "--output", folder, "--adapter", *OPTIONS, capsys=capsys)
    assert code == 0, err
    assert not (folder / "model.safetensors").exists() and not (folder / "README.md").exists()
    monkeypatch.chdir(tmp_path)  # where the model was named is no matter
    model, _ = load(folder, dtype="float32", device="cpu")
    assert not any("lora" in name for name, _ in model.named_parameters())
    # The merged folder is the same run, rounded.
    assert relative_error(last_logits(model, inputs), compute_logits(merged[0], inputs)) < 0.05
    assert relative_error(compute_logits(base, inputs), compute_logits(merged[0], inputs)) > 0.2
    random_image(0).save("image.png")
    assert main(["ask", str(folder), "image.png", "What is it?", "--max-new-tokens", "4"]) == 0
    expected = capsys.readouterr().out
    for path in (*folder.glob("*token*"), *folder.glob("*processor*")):
        path.unlink()  # PEFT alone saves none; the base model has one
    assert main(["ask", str(folder), "image.png", "What is it?", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out == expected

    code, _, err = command(folder, table, "--output", tmp_path / "more", *OPTIONS, capsys=capsys)
    assert code == 1 and "is an adapter of" in err and "Merge it first" in err


def test_adapters_that_cannot_be_loaded_say_why(base, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "adapter"
    folder.mkdir()
    image = tmp_path / "image.png"
    random_image(0).save(image)
    ask = ["ask", str(folder), str(image), "What?"]
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": "out/not/there"}))
    assert main(ask) == 1
    assert f"{folder} is an adapter of out/not/there, which is not there" in capsys.readouterr().err
    config.write_text("{}")
    assert main(ask) == 1
    assert "is an adapter of an unknown model" in capsys.readouterr().err
    config.write_text(json.dumps({"base_model_name_or_path": str(base)}))
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main(ask) == 1
    assert 'is an adapter, which needs PEFT: pip install "fusion-vlm[train]"' in capsys.readouterr().err


def test_full_trains_all_weights_in_float32(base, table, tmp_path):
    report = finetune(base, table, tmp_path / "out", method="full", learning_rate=1e-3, **QUICK)
    assert report["settings"]["dtype"] == "float32" and report["settings"]["lora_rank"] is None
    stored, before = weights(tmp_path / "out"), weights(base)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    matrices = {name for name in stored if stored[name].ndim > 1 and "position" not in name}
    assert not {name for name in matrices if torch.equal(stored[name], before[name])}
    assert report["after"]["loss"] < report["before"]["loss"]


@pytest.mark.skipif(not has_avx512bf16(), reason="bitsandbytes packs weights on CPUs with AVX512-BF16 only")
def test_qlora_is_merged_into_weights_that_are_not_quantized(wide_folder, processor, table, tmp_path):
    folder = tmp_path / "wide"
    shutil.copytree(wide_folder, folder)
    processor.save_pretrained(folder)
    report = finetune(folder, table, tmp_path / "out", method="qlora", learning_rate=5e-4, **QUICK)
    stored, before = weights(tmp_path / "out"), weights(folder)
    assert stored.keys() == before.keys()
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    changed = [name for name in stored if not torch.equal(stored[name], before[name])]
    assert changed and report["after"]["loss"] < report["before"]["loss"]
    # 4 bits would move the weights by a tenth.
    name = next(name for name in changed if "language_model" in name)
    assert (stored[name] - before[name]).norm() < 0.05 * before[name].norm()


def test_bitsandbytes_that_does_not_work_says_so(base, monkeypatch):
    def fail(*args, **kwargs):
        raise ImportError("no bitsandbytes")

    monkeypatch.setattr(FusionForConditionalGeneration, "from_pretrained", fail)
    with pytest.raises(ValueError, match="cannot load the model in 4 bits here: no bitsandbytes. Leave --qlora out"):
        model_module.load_model(base, "float32", "cpu", four_bit=True)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_a_gpu_is_given_trains_and_answers(method, base, table, tmp_path, monkeypatch):
    """Weights in bfloat16 under the adapters, passes in bfloat16, checkpointing; here on the CPU."""
    checkpointing = "gradient_checkpointing" if CHECKPOINTS_HOOKS else "activation_checkpointing"
    options = {"bf16": True, checkpointing: True, f"{checkpointing}_kwargs": {"use_reentrant": False}}
    monkeypatch.setattr(run_module, "FusionTrainingArguments", partial(FusionTrainingArguments, **options))
    monkeypatch.setattr(
        settings_module, "choose_dtype", lambda method, device: "bfloat16" if method == "lora" else "float32"
    )
    report = finetune(base, table, tmp_path / "out", method=method, learning_rate=2e-3, **QUICK)
    assert report["after"]["loss"] < report["before"]["loss"]


# Output -------------------------------------------------------------------------------------------------------------


def test_the_command_prints_figures_on_stdout_and_the_rest_on_stderr(base, table, tmp_path, capsys):
    code, out, err = command(base, table, "--output", tmp_path / "out", *OPTIONS, capsys=capsys)
    assert code == 0
    assert "Held-out rows: 3" in out and "right answers" in out and "(always answering 'a square':" in out
    assert "question" in out and "expected" in out
    assert "Rows of table.csv: 10 to train on, 3 held out (no image is in both)." in err
    assert "LoRA of rank 16" in err and "Steps of 4 rows, 2 times over all, learning rate 0.005" in err
    assert "step 3/6: held-out loss" in err and "left)" in err
    assert f"Wrote {tmp_path / 'out'}" in err
    assert len(err.splitlines()) < 20, err


def test_held_out_rows_of_a_table_of_their_own(base, table, tmp_path, capsys):
    own = table.with_name("own.csv")
    own.write_text("image,question,answer\n1.png,What is it?,a square\n2.png,What is it?,a ball\n")
    code, out, err = command(base, table, "--output", tmp_path / "out", "--eval-data", own, *ONCE, capsys=capsys)
    assert code == 0
    assert "13 to train on, 2 held out (all of own.csv)" in err
    assert "2 images of own.csv are trained on, too: no fair measure." in err
    assert "With 2 held-out rows, the figures say little." in err
    code, _, err = command(
        base, table, "--output", tmp_path / "b", "--eval-data", own, "--eval-share", "0.5", capsys=capsys
    )
    assert code == 1 and "exclude each other" in err


def test_nothing_held_out_trains_without_measuring(base, table, tmp_path, capsys):
    code, out, err = command(base, table, "--output", tmp_path / "out", "--eval-share", "0", *ONCE, capsys=capsys)
    assert code == 0, err
    assert "Nothing was held out" in out and "13 to train on, none held out" in err
    assert (tmp_path / "out" / "curves.png").exists()


def test_tables_that_teach_little_are_noted(base, table, tmp_path, capsys):
    path = table.with_name("same.csv")
    path.write_text("image,question,answer\n0.png,What is it?,a ball\n1.png,What is it?,a ball\n2.png,Eh?,a ball\n")
    code, _, err = command(base, path, "--output", tmp_path / "out", *ONCE, capsys=capsys)
    assert code == 0
    assert "2 rows are very few to learn from" in err and "With 1 held-out row, the figures say little" in err
    assert "All rows have the same answer, 'a ball'" in err


def test_answers_are_compared_without_case_space_and_final_punctuation(processor):
    assert normalize_answer("  A  red\nBall. ") == normalize_answer("a red ball") == "a red ball"
    assert normalize_answer("3.5") != normalize_answer("35") and normalize_answer("?") == "?"
    rows = [{"messages": make_messages(["What?", text])} for text in ("A ball", "two")]
    metrics = AnswerMetrics(processor, rows)
    ids = [processor.tokenizer(text, add_special_tokens=False).input_ids for text in (" a ball.", "three")]
    length = max(map(len, ids))
    predictions = torch.tensor([row + [-100] * (length - len(row)) for row in ids]).numpy()
    assert metrics(argparse.Namespace(predictions=predictions)) == {"accuracy": 0.5}
    assert metrics.answers == ["a ball.", "three"]
    assert most_frequent_share(rows[:1], rows) == ("a ball", 0.5)


def test_examples_show_mistakes_and_successes():
    examples = [{"right": index % 2 == 0, "index": index} for index in range(20)]
    chosen = choose_examples(examples)
    assert [example["right"] for example in chosen] == [True] * 3 + [False] * 3
    assert len(choose_examples(examples[::2])) == len(choose_examples(examples[1::2])) == 6


def test_long_answers_are_said_to_make_accuracy_meaningless(merged):
    text = format_report({**merged[1], "long_answers": True})
    assert "The answers are long" in text and "always answering" not in text


def test_defaults_depend_on_rows_method_and_width(processor):
    assert [choose_epochs(count, 8) for count in (1, 40, 450, 100_000)] == [30, 30, 3, 3]
    config = FusionConfig()
    config.text_config.hidden_size = 3072
    assert choose_learning_rate("lora", config) == 2e-4 and choose_learning_rate("full", config) == 2e-5
    config.text_config.hidden_size = 32
    assert choose_learning_rate("lora", config) == 5e-3


# Interruptions ------------------------------------------------------------------------------------------------------


def interrupt_at(monkeypatch, step: int):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressLines, "on_step_begin", on_step_begin)


def test_an_interrupted_run_is_no_model_and_can_be_continued(base, merged, table, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "out"
    arguments = (base, table, "--output", folder, *OPTIONS)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        code, _, err = command(*arguments, capsys=capsys)
    assert code == 130 and "the same command with --resume continues it" in err
    assert [path.name for path in folder.iterdir()] == [UNFINISHED]
    assert main(["ask", str(folder), str(table.with_name("0.png")), "What?"]) == 1
    assert (
        "holds an unfinished run of `fusion-vlm finetune`. The same command with --resume" in capsys.readouterr().err
    )
    code, _, err = command(*arguments, capsys=capsys)
    assert code == 1 and "holds an unfinished run. Continue it with --resume, or remove the folder" in err
    code, _, err = command(*arguments, "--resume", "--lora-rank", "4", capsys=capsys)
    assert code == 1 and "lora_rank was 16 and is 4. Give what it began with" in err
    code, _, err = command(base, rows_with(table, "1.png,b,c"), *arguments[2:], "--resume", capsys=capsys)
    assert code == 1 and "digest of the rows was" in err
    (folder / UNFINISHED / "checkpoint-5").mkdir()  # cut off while it was written
    code, _, err = command(*arguments, "--resume", capsys=capsys)
    assert code == 0 and "Continuing from" in err and "checkpoint-3" in err
    expected, resumed = weights(merged[0]), weights(folder)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    report = json.loads((folder / "finetune.json").read_text())
    assert {key: report[key] for key in ("before", "after")} == {key: merged[1][key] for key in ("before", "after")}
    assert [entry["step"] for entry in report["history"]] == [entry["step"] for entry in merged[1]["history"]]


def test_a_run_killed_while_saving_is_no_model_and_can_be_continued(base, merged, table, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "finish", fail)
        with pytest.raises(OSError, match="killed"):
            finetune(base, table, tmp_path / "out", **QUICK)
    assert not (tmp_path / "out" / "config.json").exists()
    finetune(base, table, tmp_path / "out", resume=True, **QUICK)
    expected, resumed = weights(merged[0]), weights(tmp_path / "out")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_a_run_interrupted_before_its_first_checkpoint_leaves_nothing(base, table, tmp_path, capsys, monkeypatch):
    interrupt_at(monkeypatch, 1)
    assert command(base, table, "--output", tmp_path / "out", *OPTIONS, capsys=capsys)[0] == 130
    assert not (tmp_path / "out").exists()


def test_output_folders_with_something_in_them_are_refused(base, merged, table, tmp_path, capsys):
    code, _, err = command(base, table, "--output", merged[0], "--resume", capsys=capsys)
    assert code == 1 and "holds a finished run. Name another --output" in err
    code, _, err = command(base, table, "--output", base, capsys=capsys)
    assert code == 1 and "is not empty. Name another --output" in err
    code, _, err = command(base, table, "--output", table, capsys=capsys)
    assert code == 1 and "is a file, expected a new folder" in err


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_too_little_memory_says_what_to_lower(error, base, table, tmp_path, monkeypatch):
    def fail(*args):
        raise error

    monkeypatch.setattr(run_module, "load_model", fail)
    with pytest.raises(ValueError, match=r"too little memory. Try a smaller --batch-size \(now 4\), or --qlora"):
        finetune(base, table, tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


# Wrong input --------------------------------------------------------------------------------------------------------


def test_bad_rows_are_all_told_before_anything_is_trained(base, table, tmp_path, capsys):
    (table.parent / "text.png").write_text("no image")
    path = rows_with(
        table,
        "gone.png,What is it?,a ball",
        "text.png,What is it?,a ball",
        "1.png,,a ball",
        "1.png,What is <latent> here?,a ball",
        f"1.png,{'long ' * 2000},a ball",
        "1.png,What is it?",
    )
    code, out, err = command(base, path, "--output", tmp_path / "out", *ONCE, capsys=capsys)
    assert (code, out) == (1, "")
    lines = err.splitlines()
    assert lines[0].endswith("6 of 19 rows cannot be used:")
    starts = (
        "gone.png': there is no such file",
        "text.png",
        "question is empty",
        "<latent>",
        "tokens, image",
        "2 fields",
    )
    for number, (line, text) in enumerate(zip(lines[1:], starts, strict=False), 15):
        assert line.startswith(f"  line {number}: ") and text in line
    assert "expected at most 1024" in err, "the positions of the decoder"
    assert lines[-1] == "Mend these rows, or skip them with --skip-bad-rows."
    assert not (tmp_path / "out").exists()
    code, _, err = command(base, path, "--output", tmp_path / "out", "--skip-bad-rows", *ONCE, capsys=capsys)
    assert code == 0 and "; 6 bad rows skipped" in err


def test_a_table_of_bad_rows_only_is_refused(base, table, tmp_path):
    path = table.with_name("bad.csv")
    path.write_text("image,question,answer\ngone.png,a,b\n")
    with pytest.raises(BadRowsError, match="1 of 1 rows cannot be used"):
        finetune(base, path, tmp_path / "out", skip_bad_rows=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{base}", "nothing.csv"], "There is no table nothing.csv: no such file"),
        (["{base}", "{table}", "--adapter", "--full"], "leave --adapter or --full out"),
        (["{base}", "{table}", "--answer-column", "reply"], "has no column 'reply' (--answer-column)"),
        (["{base}", "{table}", "--max-length", "50"], "13 rows cannot be used"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(arguments, message, base, table, tmp_path, capsys):
    arguments = [argument.format(base=base, table=table) for argument in arguments]
    code, _, err = command(*arguments, "--output", tmp_path / "out", *OPTIONS, capsys=capsys)
    assert code == 1 and err.startswith("error: ") and message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(base, table, tmp_path):
    with pytest.raises(ValueError, match="There is no GPU that torch can use"):
        finetune(base, table, tmp_path / "out", device="cuda")


@pytest.mark.parametrize(
    "option", [["--epochs", "0"], ["--learning-rate", "-1"], ["--eval-share", "1"], ["--full", "--qlora"]]
)
def test_wrong_values_are_usage_errors(option, base, table, tmp_path):
    with pytest.raises(SystemExit) as error:
        main(["finetune", str(base), str(table), "--output", str(tmp_path / "out"), *option])
    assert error.value.code == 2


@pytest.mark.parametrize("name", ["ask", "finetune"])
def test_a_folder_without_processor_says_where_to_get_it(name, base, table, tmp_path, capsys):
    folder = tmp_path / "plain trainer"
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(base / file, folder)
    more = (
        [str(table.with_name("0.png")), "What?"] if name == "ask" else [str(table), "--output", str(tmp_path / "out")]
    )
    assert main([name, str(folder), *more]) == 1
    err = capsys.readouterr().err
    assert f"{folder} has no processor" in err and "AutoProcessor.from_pretrained(BASE" in err
    assert len(err.splitlines()) == 1


# A trained model ----------------------------------------------------------------------------------------------------


@pytest.mark.slow  # a minute or two on two cores
def test_a_table_of_a_new_kind_of_shape_is_learned(tmp_path, capsys):
    lines = ["image;question;answer"]
    for index in range(50):
        image = Image.new("RGB", (72, 72), "white")
        x, y, size = 20 + index * 7 % 32, 20 + index * 11 % 32, 12 + index % 7
        corners = [(x - size, y), (x, y - size), (x + size, y), (x, y + size)]
        ImageDraw.Draw(image).polygon(corners if index % 2 else [*corners[:2], (x, y), corners[3]], fill="purple")
        image.save(tmp_path / f"{index}.png")
        lines.append(f"{index}.png;Which shape?;{'diamond' if index % 2 else 'dart'}")
    (tmp_path / "table.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    report = finetune(SMALL_MODEL, tmp_path / "table.csv", tmp_path / "out", device="cpu")
    assert report["before"]["accuracy"] <= 0.2 and report["after"]["accuracy"] >= 0.9
    capsys.readouterr()
    assert main(["ask", str(tmp_path / "out"), str(tmp_path / "1.png"), "Which shape?"]) == 0
    assert capsys.readouterr().out == "diamond\n"
    assert os.path.getsize(tmp_path / "out" / "model.safetensors") < 1.1 * os.path.getsize(
        SMALL_MODEL / "model.safetensors"
    )
