"""The command `fusion-vlm`, mostly in this process: what it prints where, and its exit codes."""

import inspect
import io
import json
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import easy_vqa
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from fusion_vlm import convert_checkpoints
from fusion_vlm.commands import cost
from fusion_vlm.commands.ask import BATCH_SIZE, count_tokens
from fusion_vlm.commands.main import COMMANDS, build_parser, main
from fusion_vlm.commands.options import DTYPES
from fusion_vlm.hub.card import write_card
from fusion_vlm.hub.loading import load
from fusion_vlm.training.cost import memory as training_cost

from ..helpers import GOLDEN_DIR, LLAMA, ROOT, SMALL_MODEL, make_messages, needs_sanitizing, process
from ..tiny import random_image


CHECKPOINT = GOLDEN_DIR / LLAMA / "checkpoint"
FEW = ("--max-new-tokens", "8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    write_small_model = runpy.run_path(str(ROOT / "examples" / "random_model.py"))["write_small_model"]
    return write_small_model(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def loaded(folder) -> tuple:
    """Model and processor, as `transformers` loads them."""
    return load(folder, device="cpu")


@pytest.fixture
def image_file(tmp_path) -> Path:
    random_image(1).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def expect(loaded, turns: list[str], image=None, max_new_tokens=8, **grid_sizes) -> str:
    """Return what `generate` answers to the last turn."""
    model, processor = loaded
    inputs = process(processor, make_messages(turns, image), **grid_sizes)
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def give_stdin(monkeypatch, content: bytes):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_an_example_and_does_not_wait_for_torch(command, tmp_path):
    code = f"""
import sys
from fusion_vlm.commands.main import main
try:
    main([*"{command}".split(), "--help"])
finally:
    loaded = {{"torch", "transformers", "PIL"}} & sys.modules.keys()
    assert not loaded, loaded
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"usage: fusion-vlm {command}".strip() in result.stdout
    if command:
        assert f"\n  fusion-vlm {command} " in result.stdout
    else:
        assert all(f"\n  {name} " in result.stdout for name in COMMANDS)


def test_ask_prints_the_answer_and_nothing_else(folder, loaded, image_file, capfd):
    assert main(["ask", str(folder), str(image_file), "What is it?", *FEW]) == 0
    output = capfd.readouterr()
    assert output.out == expect(loaded, ["What is it?"], random_image(1)) + "\n"
    assert output.err == ""


def test_ask_answers_each_question_on_its_own(folder, loaded, image_file, capsys):
    questions = [f"What is thing number {index}?" for index in range(BATCH_SIZE + 2)]
    assert main(["ask", str(folder), str(image_file), *questions, *FEW]) == 0
    expected = [expect(loaded, [question], random_image(1)) for question in questions]
    assert len(set(expected)) > 2
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in expected)


@pytest.mark.skipif(not SMALL_MODEL.exists(), reason="small_model/train.py has not written small_model/model yet")
def test_ask_answers_rightly(capsys):
    """The trained model, about images that it has not seen."""
    paths = easy_vqa.get_test_image_paths()
    rows = list(zip(*easy_vqa.get_test_questions(), strict=True))
    answers, truths = [], []
    for image in range(3):
        questions = [question for question, _, index in rows if index == image]
        truths += [truth for _, truth, index in rows if index == image]
        assert main(["ask", str(SMALL_MODEL), paths[image], *questions, *FEW]) == 0
        answers += capsys.readouterr().out.splitlines()
    right = sum(answer == truth for answer, truth in zip(answers, truths, strict=True))
    assert right >= 0.9 * len(truths)


def test_ask_takes_sizes_and_text_alone(folder, loaded, image_file, capsys):
    sizes = ["--latent-grid-size", "2", "--image-grid-size", "5"]
    assert main(["ask", str(folder), str(image_file), "What is it?", *sizes, *FEW]) == 0
    expected = expect(loaded, ["What is it?"], random_image(1), latent_grid_size=2, image_grid_size=5)
    assert expected != expect(loaded, ["What is it?"], random_image(1))
    assert capsys.readouterr().out == expected + "\n"
    assert main(["ask", "--no-image", str(folder), "Hello!", "Goodbye!", *FEW]) == 0
    assert capsys.readouterr().out == f"{expect(loaded, ['Hello!'])}\n{expect(loaded, ['Goodbye!'])}\n"


@pytest.mark.parametrize("command", ["ask", "chat", "serve", "card"])
def test_adapter_folder_says_what_it_is(command, tmp_path, image_file, capsys):
    """Where its base model is missing; tests/test_finetune.py has adapters that answer. A card is for whole models."""
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "out/my/fusion"}')
    more = {"ask": [str(image_file), "What?"], "serve": ["--port", "0"]}
    assert main([command, str(tmp_path), *more.get(command, [])]) == 1
    reason = (
        "not a whole model. Merge it first" if command == "card" else "which is not there. Write where that model is"
    )
    assert f"{tmp_path} is an adapter of out/my/fusion, {reason}" in capsys.readouterr().err


@needs_sanitizing
def test_ask_takes_placeholders_in_a_question_as_text(folder, image_file, capsys):
    assert main(["ask", str(folder), str(image_file), "Where is <image> and <latent>?", *FEW]) == 0
    assert capsys.readouterr().out.strip()


def test_ask_reads_stdin(folder, loaded, image_file, monkeypatch, capsys):
    give_stdin(monkeypatch, image_file.read_bytes())
    assert main(["ask", str(folder), "-", "What is it?", *FEW]) == 0
    assert capsys.readouterr().out == expect(loaded, ["What is it?"], random_image(1)) + "\n"


def test_ask_reads_an_address(folder, loaded, image_file, capsys):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(image_file.read_bytes())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert main(["ask", str(folder), f"http://127.0.0.1:{server.server_port}/a.png", "What is it?", *FEW]) == 0
        server.shutdown()
    assert capsys.readouterr().out == expect(loaded, ["What is it?"], random_image(1)) + "\n"


def test_ask_loads_in_4_bits_and_other_types(folder, image_file, capsys):
    for option in (["--4bit"], ["--dtype", "bfloat16", "--device", "cpu"]):
        assert main(["ask", str(folder), str(image_file), "What is it?", *FEW, *option]) == 0
        assert capsys.readouterr().out.strip()
    model, _ = load(folder, dtype="bfloat16", device="cpu", four_bit=True)
    assert model.model.language_model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_ask_in_a_pipe_whose_reader_has_had_enough(folder, image_file, tmp_path):
    """Quiet, also when Python flushes at its end; the code is what the shell gives for SIGPIPE."""
    ask = f"{sys.executable} -m fusion_vlm.commands.main ask {folder} - a b --max-new-tokens 8"
    command = f"cat {image_file} | {ask} 2>&1 > >(true); exit ${{PIPESTATUS[1]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (141, "", "")


WRONG = {
    "no such image": (
        ["ask", "{folder}", "missing.png", "a"],
        "Cannot read an image from 'missing.png': there is no such file",
    ),
    "text as image": (["ask", "{folder}", __file__, "a"], "it is not an image that Pillow reads"),
    "chat image": (
        ["chat", "{folder}", "missing.png"],
        "Cannot read an image from 'missing.png': there is no such file",
    ),
    "not converted": (["ask", str(CHECKPOINT), "{image}", "a"], "converted first: fusion-vlm convert"),
    "no model": (["ask", str(ROOT / "tests"), "{image}", "a"], "config.json"),
    "no folder": (["ask", "/no/such/folder", "{image}", "a"], "There is no folder /no/such/folder"),
    "latents": (["ask", "{folder}", "{image}", "a", "--latent-grid-size", "17"], "is 17, expected 1 to 16"),
    "long": (["ask", "{folder}", "{image}", "a " * 2000], "the model takes 1023 at most"),
    "device": (["ask", "{folder}", "{image}", "a", "--device", "toaster"], "There is no device 'toaster' here"),
    "other device": (["ask", "{folder}", "{image}", "a", "--device", "xpu:7"], "There is no device 'xpu:7' here"),
    "card": (["card", str(ROOT / "tests")], "config.json"),
}


@pytest.mark.parametrize("case", WRONG)
def test_error_is_one_line_and_code_1(case, folder, image_file, capsys):
    arguments, words = WRONG[case]
    assert main([argument.format(folder=folder, image=image_file) for argument in arguments]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert words in output.err


def test_serve_names_what_has_to_be_installed(folder, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "fusion_vlm.serving.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(folder)]) == 1
    output = capsys.readouterr().err
    assert "uvicorn" in output
    assert 'pip install "fusion-vlm[serve]"' in output


def test_empty_stdin_is_told(folder, monkeypatch, capsys):
    give_stdin(monkeypatch, b"")
    assert main(["ask", str(folder), "-", "a"]) == 1
    assert "Cannot read an image from stdin" in capsys.readouterr().err


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_closed_streams_are_empty(closed, monkeypatch, capsys):
    """A shell closes them with `<&-`, and Python has None there."""
    monkeypatch.setattr(sys, closed, None)
    assert main(["ask", "missing/folder", "-", "What is it?"]) == 1


def test_interrupt_ends_a_command_that_a_shell_started_in_the_background(tmp_path):
    """A shell without job control starts such commands with SIGINT ignored."""
    command = [sys.executable, "-m", "fusion_vlm.commands.main", "ask", "model", "-", "What is it?"]

    def ignore_interrupts():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, preexec_fn=ignore_interrupts
    ) as process:
        end = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < end:  # a signal before `main` begins is ignored
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        process.kill()
        assert process.stderr.read() == b""
    # A further signal may hit Python while it ends, when it has given up its handler.
    assert process.returncode in (130, -signal.SIGINT)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["--paint"],
        ["ask", "model"],
        ["ask", "model", "image", "a", "--max-new-tokens", "0"],
        ["ask", "model", "image", "a", "--dtype", "int3"],
        ["serve", "model", "--port", "http"],
        ["serve", "model", "--cors", "localhost"],
    ],
)
def test_wrong_usage_is_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("usage: fusion-vlm")


def test_chat_remembers_and_obeys(folder, loaded, image_file, tmp_path, monkeypatch, capfd):
    random_image(2).save(tmp_path / "other image.png")
    lines = [
        "What is it?",
        "",
        "Of what?",
        "/reset",
        "Of what?",
        f"/image {tmp_path / 'other image.png'}",
        "What is it?",
        "/quit",
        "Not read.",
    ]
    give_stdin(monkeypatch, "\n".join(lines).encode())
    assert main(["chat", str(folder), str(image_file), *FEW]) == 0
    first = expect(loaded, ["What is it?"], random_image(1))
    expected = [
        first,
        expect(loaded, ["What is it?", first, "Of what?"], random_image(1)),
        expect(loaded, ["Of what?"], random_image(1)),
        expect(loaded, ["What is it?"], random_image(2)),
    ]
    assert len(set(expected)) == 4
    output = capfd.readouterr()
    assert output.out.split() == " ".join(expected).split()
    assert output.out.count("\n") >= 4
    assert output.err == ""


@pytest.mark.skipif(not SMALL_MODEL.exists(), reason="small_model/train.py has not written small_model/model yet")
def test_chat_answers_rightly(monkeypatch, capsys):
    """Each `/image` begins a new conversation: the small model has learned single turns."""
    paths = easy_vqa.get_test_image_paths()
    rows = [row for row in zip(*easy_vqa.get_test_questions(), strict=True) if row[2] < 3]
    lines = [line for question, _, index in rows for line in (f"/image {paths[index]}", question)]
    give_stdin(monkeypatch, "\n".join(lines).encode())
    assert main(["chat", str(SMALL_MODEL), *FEW]) == 0
    answers = capsys.readouterr().out.splitlines()
    right = sum(answer == truth for answer, (_, truth, _) in zip(answers, rows, strict=True))
    assert right >= 0.9 * len(rows)


def test_chat_prints_while_it_answers(folder, monkeypatch):
    """The first words are out before the last is generated."""
    written = []

    class Output(io.StringIO):
        def write(self, text):
            written.append(text)
            return len(text)

    give_stdin(monkeypatch, b"Tell me a story.\n")
    monkeypatch.setattr(sys, "stdout", Output())
    assert main(["chat", str(folder), "--max-new-tokens", "60"]) == 0
    assert len([text for text in written if text.strip()]) > 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/image missing.png", "Cannot read an image from 'missing.png': there is no such file"),
        ("/paint a ball", "There is no command /paint"),
        ("a " * 2000, "Begin a new one with /reset"),
    ],
)
def test_chat_through_a_pipe_ends_at_an_error(line, words, folder, monkeypatch, capsys):
    give_stdin(monkeypatch, f"{line}\nHello!\n".encode())
    assert main(["chat", str(folder)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert words in output.err


def test_convert_takes_the_options_of_the_script(tmp_path, capsys):
    assert main(["convert", str(CHECKPOINT), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert str(tmp_path / "out") in capsys.readouterr().out
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as tensors:
        assert tensors.get_tensor("lm_head.weight").dtype == torch.bfloat16
    with pytest.raises(SystemExit) as exit:
        main(["convert", "--help"])
    assert exit.value.code == 0
    assert "usage: fusion-vlm convert " in capsys.readouterr().out


def test_convert_error_is_one_line_and_code_1(tmp_path, capsys):
    assert main(["convert", str(tmp_path), str(tmp_path / "out")]) == 1
    assert re.fullmatch("error: .*\n", capsys.readouterr().err)


def test_card_writes_what_is_given(folder, capsys):
    assert main(["card", str(folder), "--name", "My Model", "--license", "mit", "--datasets", "me/a", "me/b"]) == 0
    assert capsys.readouterr().out == f"Wrote {folder / 'README.md'}\n"
    card = (folder / "README.md").read_text()
    assert all(words in card for words in ("# My Model", "license: mit", "- me/a", "- me/b"))


def test_card_has_the_options_of_the_function():
    arguments = vars(build_parser("card").parse_args(["folder"]))
    assert arguments.keys() == inspect.signature(write_card).parameters.keys()


def test_image_errors_are_told_before_the_model_is_loaded(monkeypatch, capsys):
    """A model may take minutes to load."""
    monkeypatch.setattr("fusion_vlm.commands.ask.load", lambda *_, **__: pytest.fail("has loaded the model"))
    give_stdin(monkeypatch, b"no image")
    assert main(["ask", str(SMALL_MODEL), "-", "a"]) == 1
    assert "stdin" in capsys.readouterr().err


ORDER = {
    "image and question swapped": (
        ["{model}", "What is it?", "{image}"],
        "fusion-vlm ask {model} {image} 'What is it?'",
    ),
    "with more questions": (["{model}", "What is it?", "Why?", "{image}"], "{image} 'What is it?' 'Why?'"),
    "two images": (
        ["{model}", "{image}", "other.jpg"],
        "'other.jpg' is the name of a file or an image, not a question",
    ),
    "an address": (
        ["{model}", "{image}", "https://example.org/a"],
        "is the name of a file or an image, not a question",
    ),
    "a question for an image": (
        ["{model}", "What is it?", "Why?"],
        "IMAGE is 'What is it?', which reads like a question",
    ),
    "an image with --no-image": (["{model}", "{image}", "Why?", "--no-image"], "--no-image was given"),
    "no question": (["{model}", "{image}"], "A QUESTION is missing"),
    "an empty question": (["{model}", "{image}", ""], "A question is empty"),
    "a blank question": (["{model}", "{image}", "What is it?", " \n"], "A question is empty"),
    "a blank question without an image": (["{model}", " ", "--no-image"], "A question is empty"),
}


@pytest.mark.parametrize("case", ORDER)
def test_ask_says_what_is_wrong_with_image_and_questions(case, image_file, capsys):
    """Before a model is looked for; one line, and the code of wrong usage."""
    arguments, words = ORDER[case]
    names = {"model": "no/model", "image": image_file}
    assert main(["ask", *(argument.format(**names) for argument in arguments)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert words.format(**names) in output.err


def test_ask_prints_json_lines(folder, loaded, image_file, capsys):
    questions = ["What is it?", "Of what \N{LATIN SMALL LETTER E WITH ACUTE}?"]
    assert main(["ask", str(folder), str(image_file), "--json", *questions, *FEW]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    answers = [expect(loaded, [question], random_image(1)) for question in questions]
    assert [row["question"] for row in rows] == questions
    assert [row["answer"] for row in rows] == answers
    assert {row["image"] for row in rows} == {str(image_file)}
    assert all(1 <= row["num_tokens"] <= 8 for row in rows)
    assert main(["ask", str(folder), "Hello!", "--json", "--no-image", *FEW]) == 0
    assert json.loads(capsys.readouterr().out)["image"] is None


def test_tokens_of_an_answer_end_with_it():
    assert count_tokens([5, 6, 2, 0, 0], 2) == count_tokens([5, 6, 9, 2], [2, 9]) == 2
    assert count_tokens([5, 6], 2) == count_tokens([5, 6], None) == 2


def test_options_may_stand_between_questions(folder, image_file, capsys):
    assert main(["ask", str(folder), str(image_file), "What is it?", *FEW, "Of what?"]) == 0
    assert capsys.readouterr().out.count("\n") == 2


def test_version_needs_no_torch():
    check = "finally: assert not {'torch', 'transformers'} & sys.modules.keys()"
    code = f"import sys\nfrom fusion_vlm.commands.main import main\ntry: main(['--version'])\n{check}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    names = ("fusion-vlm", "transformers", "torch")
    assert result.stdout == ", ".join(f"{name} {version(name)}" for name in names) + "\n"


def test_unknown_command_is_suggested(capsys):
    for name, words in {"aks": "Did you mean ask?", "xyz": "The commands are convert, verify, ask"}.items():
        with pytest.raises(SystemExit):
            main([name])
        assert words in capsys.readouterr().err


def test_traceback_on_request(monkeypatch, capsys):
    monkeypatch.setenv("HF_DEBUG", "1")
    assert main(["verify", "out/x"]) == 1
    assert re.match(r"Traceback (.|\n)*\nerror: There is no folder out/x", capsys.readouterr().err)


MODULES = {
    "fusion_vlm.training.train": "train",
    "fusion_vlm.training.check": "check",
    "fusion_vlm.training.cost": "cost",
    "fusion_vlm.training.consolidate": "consolidate",
    "fusion_vlm.synthesis.generate": "synthesize",
    "fusion_vlm.synthesis.audit": "audit",
}


@pytest.mark.parametrize("module", MODULES)
def test_modules_run_as_their_commands(module, monkeypatch):
    """`accelerate launch -m fusion_vlm.training.train` and scripts of before keep working."""
    if MODULES[module] == "synthesize":
        pytest.importorskip("imagehash", reason="needs the extra synthesis, which the core environments lack")
    monkeypatch.setattr(sys, "argv", [module, "--some", "arguments"])
    monkeypatch.setattr("fusion_vlm.commands.main.main", lambda argv: argv)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as exit:
        runpy.run_module(module, run_name="__main__")
    assert exit.value.code == [MODULES[module], "--some", "arguments"]


def test_names_that_options_copy():
    """Copies, because the originals are in modules that import torch."""
    assert DTYPES == convert_checkpoints.DTYPES
    assert cost.SHARDINGS == training_cost.SHARDINGS


def test_image_is_read_as_the_processor_reads_it(folder, loaded, tmp_path, capsys):
    """16 bits, which Pillow's own conversion would clip to white."""
    wide = Image.effect_noise((40, 30), 99).convert("I;16").point(lambda value: value * 257)
    wide.save(tmp_path / "wide.png")
    assert main(["ask", str(folder), str(tmp_path / "wide.png"), "What is it?", *FEW]) == 0
    assert capsys.readouterr().out == expect(loaded, ["What is it?"], Image.open(tmp_path / "wide.png")) + "\n"
