"""What names of models mean, on the command line and in recipes: `hub/names.py` and the commands that use it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import httpx

from fusion_vlm import convert_checkpoints
from fusion_vlm.commands.main import main
from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.hub import names, released
from fusion_vlm.hub.names import ModelNameError, find_folder, find_fusion, find_model, is_path, resolve

from ..helpers import GOLDEN_DIR, LLAMA, ROOT, SMALL_MODEL, needs_recipes


CHECKPOINT = GOLDEN_DIR / LLAMA / "checkpoint"
RECIPE = ROOT / "training" / "recipes" / "stage2.yaml"


@pytest.fixture
def no_hub(monkeypatch):
    """Fail a test that asks the Hub."""
    monkeypatch.setattr(names, "reach", lambda *_: pytest.fail("has asked the Hub"))


@pytest.fixture
def online(monkeypatch, tmp_path):
    """Switch the Hub on, with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def answer_with(monkeypatch, error: Exception | None):
    monkeypatch.setattr(names, "ask_hub", lambda *_: error)


def http_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    request = httpx.Request("HEAD", "https://huggingface.co")
    return kind("no", response=httpx.Response(status, request=request))


def test_facts_that_are_elsewhere_too():
    """Copies, because the originals import torch or transformers."""
    assert FusionConfig.model_type == names.MODEL_TYPE
    assert set(released.RELEASED_MODEL_TYPES) == convert_checkpoints.DECODER_FAMILIES.keys()
    architectures = [released.Architecture(*parts) for parts in product(released.TOWERS, released.DECODERS)]
    assert {architecture.name for architecture in architectures} == released.NF4_GB.keys()
    for architecture, stage in product(architectures, released.STAGES):
        assert released.RELEASED_ID.fullmatch(f"{released.AUTHORS}/{architecture.name}{stage.suffix}")
    assert not any(released.RELEASED_ID.fullmatch(name) for stage in released.STAGES for name in stage.datasets)


def test_what_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    paths = ["/a", "/a/b", "./a", "../a", "~/a", "a/b/c", "a/", "a/b/", "", ".", "..", "a b", "out/x", "mine/x"]
    assert all(map(is_path, [*paths, "checkpoint-100", "a\0b"]))
    assert not any(map(is_path, ["gpt2", "google/siglip-so400m-patch14-384", "me/a.b_c-d", "nowhere/x"]))


def test_missing_folders_are_not_asked_of_the_hub(no_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "fusion-3b").mkdir()
    for name, words in {
        "out/x": "There is no folder out/x: out is not there either",
        "./x": "There is no folder ./x",
        "~/x": f"There is no folder {tmp_path}/x",
        "mine/x": "There is no folder mine/x",
        "/nowhere/x/": "There is no folder /nowhere/x/: /nowhere is not there either",
        "./fusion-3": "Did you mean ./fusion-3b?",
        "not an id": "that is not the id of a Hub repository",
        "": "The name of the model is empty",
        "https://huggingface.co/me/fusion/tree/main": "expected a folder or the id of a Hub repository: me/fusion.",
    }.items():
        for find in (find_model, find_fusion, find_folder):
            with pytest.raises(ModelNameError) as error:
                find(name)
            assert words in str(error.value)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(SMALL_MODEL, tmp_path / "tiny")
    for find in (resolve, find_model, find_fusion, find_folder):
        assert find("~/tiny") == str(tmp_path / "tiny")


def test_released_models_say_how_to_convert_them(no_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNameError) as error:
        find_fusion("starriver030515/FUSION-X-LLaMA3.1-8B")
    command = "fusion-vlm convert starriver030515/FUSION-X-LLaMA3.1-8B out/fusion-x-llama3.1-8b "
    assert command in str(error.value)
    shutil.copytree(CHECKPOINT, "my model")
    for find in (find_fusion, find_folder):
        with pytest.raises(ModelNameError) as error:
            find("my model")
        assert "fusion-vlm convert 'my model' 'out/my model' " in str(error.value)
    (tmp_path / "out" / "my model").mkdir(parents=True)
    with pytest.raises(ModelNameError, match="'out/my model-converted'"):
        find_fusion("my model")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llava"}, "its config.json is 'llava', expected 'fusion_vl'"),
        ({}, "its config.json is None, expected 'fusion_vl'"),
        ([], "it is no JSON object"),
        ("{", "Cannot read"),
        (None, "no config.json"),
    ],
)
def test_other_folders_are_named(config, words, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(config if config == "{" else json.dumps(config))
    for find in (find_fusion, find_folder):
        with pytest.raises(ModelNameError) as error:
            find(str(tmp_path))
        assert words in str(error.value)


def test_file_is_no_model(tmp_path):
    (tmp_path / "model.safetensors").touch()
    for find in (find_fusion, find_folder):
        with pytest.raises(ModelNameError, match="is a file, expected a folder"):
            find(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (http_error(RepositoryNotFoundError, 401), "The Hub has no model me/model that you may see"),
        (http_error(GatedRepoError, 403), "it is gated: ask for access at https://huggingface.co/me/model"),
        (http_error(HfHubHTTPError, 503), "cannot be reached (it answered 503)"),
        (TimeoutError("no answer within 5 seconds"), "cannot be reached (no answer within 5 seconds)"),
    ],
)
def test_hub_that_has_or_gives_nothing(error, words, online, monkeypatch):
    answer_with(monkeypatch, error)
    with pytest.raises(ModelNameError) as raised:
        find_model("me/model")
    assert words in str(raised.value)
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_adapter_on_the_hub_passes(online, monkeypatch):
    """The Hub has the repository, but no config.json in it."""
    answer_with(monkeypatch, EntryNotFoundError("no config.json"))
    assert find_model("me/adapter") == "me/adapter"


def test_offline_a_model_of_the_cache_passes_and_another_says_how_to_get_it(online, monkeypatch, tmp_path):
    write_cache(tmp_path / "cache", "me/tiny")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(names, "ask_hub", lambda *_: pytest.fail("has asked the Hub"))
    assert find_model("me/tiny") == "me/tiny"
    with pytest.raises(ModelNameError, match=r"HF_HUB_OFFLINE.* no model me/other. .*hf download me/other$"):
        find_model("me/other")


def write_cache(cache: Path, repo_id: str):
    """Write a cache of the Hub with the small model in it."""
    folder = cache / f"models--{repo_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(SMALL_MODEL, folder / "snapshots" / ("0" * 40))


def run(*arguments, **environment) -> tuple[subprocess.CompletedProcess, float]:
    """Run `fusion-vlm` with a Hub of its own; return what came out, and the seconds of it."""
    environment = {**os.environ, "HF_HUB_ETAG_TIMEOUT": "1", **environment}
    environment.pop("HF_HUB_OFFLINE", None)
    start = time.monotonic()
    command = [sys.executable, "-m", "fusion_vlm.commands.main", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT / "examples")
    return result, time.monotonic() - start


@pytest.fixture
def silent_hub():
    """Return the address of a Hub that takes connections and never answers, as behind a firewall."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_hub_that_does_not_answer_is_not_waited_for(silent_hub, tmp_path):
    """The Hub's client alone retries it for more than a minute."""
    result, seconds = run(
        "ask", "me/model", "--no-image", "Hello!", HF_ENDPOINT=silent_hub, HF_HUB_CACHE=str(tmp_path)
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: There is no folder me/model. The Hub (") and result.stderr.count("\n") == 1
    assert "no answer within 1 seconds" in result.stderr
    assert seconds < 10


def test_model_of_the_cache_is_used_without_a_network(silent_hub, tmp_path):
    write_cache(tmp_path, "me/tiny")
    environment = {"HF_ENDPOINT": silent_hub, "HF_HUB_CACHE": str(tmp_path)}
    result, _ = run("ask", "me/tiny", "images/stars.png", "What is it?", **environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.strip()


def write_recipe(path: Path, source: dict, **sections):
    """Write a recipe, and beside it a file with a broken row."""
    path.write_text(yaml.safe_dump({"data": {"datasets": [source]}, **sections}))
    path.with_name("rows.jsonl").write_text('{"id": "a", "conversations": []}\n')


COMMANDS = {
    "ask": ["ask", "out/x", "--no-image", "Hello!"],
    "chat": ["chat", "out/x"],
    "serve": ["serve", "out/x"],
    "verify": ["verify", "out/x"],
    "card": ["card", "out/x"],
    "convert": ["convert", "out/x", "out/y"],
    "consolidate": ["consolidate", "out/x", "out/y"],
    "check": ["check", "{recipe}", "--processor", "out/x"],
    "cost": ["cost", str(RECIPE), "model.path=out/x"],
    "train": ["train", str(RECIPE), "model.path=null", "model.vision=out/x", "model.decoder=out/x"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_folder_that_is_not_there(command, no_hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path / "recipe.yaml", {"json_path": "rows.jsonl"})
    assert main([argument.format(recipe=tmp_path / "recipe.yaml") for argument in COMMANDS[command]]) == 1
    error = capsys.readouterr().err
    assert "out/x" in error and error.startswith("error: ") and error.count("\n") == 1


def test_wrong_names_are_refused_before_torch_is_imported(tmp_path):
    code = f"""
import sys
from fusion_vlm.commands.main import main
for arguments in {[arguments for name, arguments in COMMANDS.items() if name not in ("check", "consolidate")]}:
    assert main(arguments) == 1, arguments
    loaded = {{"torch", "transformers"}} & sys.modules.keys()
    assert not loaded, (arguments, loaded)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@needs_recipes
def test_data_of_a_recipe(no_hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = tmp_path / "recipes" / "recipe.yaml"
    recipe.parent.mkdir()
    for source, words in [
        ({"hub": "./nowhere"}, "error: Source 1 of `datasets`: There is no folder ./nowhere"),
        ({"json_path": "~/nowhere.jsonl"}, f"error: Source 1 of `datasets`: there is no {tmp_path}/nowhere.jsonl"),
        ({"json_path": "~/recipes/rows.jsonl"}, None),
    ]:
        write_recipe(recipe, source)
        assert main(["check", str(recipe), "--num-workers", "0"]) == 1
        output = capsys.readouterr()
        assert words in output.err if words else "rows.jsonl, line 1, id a" in output.out


def test_recipe_that_is_not_there(tmp_path, capsys):
    assert main(["cost", str(tmp_path / "none.yaml")]) == 1
    assert "There is no recipe " in capsys.readouterr().err


@needs_recipes
def test_check_does_not_need_the_model_of_an_earlier_stage(no_hub, tmp_path, monkeypatch, capsys):
    """The shipped stages start from `out/stage1` and `out/stage1_5`, which are not there when data is checked."""
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path / "recipe.yaml", {"json_path": "rows.jsonl"}, model={"path": "out/stage1"})
    assert main(["check", "recipe.yaml", "--num-workers", "0"]) == 1
    output = capsys.readouterr().out
    assert "no processor: tokens not counted (There is no folder out/stage1" in output and "1 broken rows" in output
