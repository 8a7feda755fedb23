"""
Pushing: the real Hub client against a Hub on loopback, so that the requests are real and the answers are chosen here.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from fusion_vlm import convert_checkpoints
from fusion_vlm.commands.main import main
from fusion_vlm.hub import push
from fusion_vlm.hub.push import PushError, prepare_repository, upload

from ..helpers import GOLDEN_DIR, PHI


SOURCE = GOLDEN_DIR / PHI / "checkpoint"
TOKEN = "hf_" + "x" * 34


class FakeHub(ThreadingHTTPServer):
    """Repositories in memory, of the owner `me`. `failures` has statuses to answer next, by the kind of request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.failures: dict[str, list[int]] = {}
        self.card_errors: list[dict] = []
        self.requests: list[str] = []

    def add(self, repo_id: str, private: bool, **files: bytes):
        self.private[repo_id], self.files[repo_id] = private, files

    def commit(self, repo_id: str, lines: list[dict]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[repo_id][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.files[repo_id][value["path"]]


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *args):
        pass

    def answer(self, status: int, value=None, error_code: str = ""):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("X-Error-Code", error_code)
        if status >= 400:
            self.send_header("X-Error-Message", (value or {}).get("error", "no reason"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def handle_request(self):
        hub = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0].removeprefix("/api/")
        match = re.fullmatch(r"(?:models|datasets)/([^/]+/[^/]+)(?:/([^/]+).*)?", path)
        repo_id, kind = (match[1], match[2] or "info") if match else (None, path)
        hub.requests.append(kind)
        if hub.failures.get(kind):
            return self.answer(hub.failures[kind].pop(0), {"error": "the fake Hub was told to"})
        if kind == "whoami-v2":
            return self.answer(200, {"name": "me", "type": "user"})
        if kind == "repos/create":
            asked = json.loads(body)
            repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
            hub.add(repo_id, private=asked["visibility"] == "private")
            return self.answer(200, {"url": f"{hub.endpoint}/{repo_id}", "name": repo_id})
        if kind == "validate-yaml":
            return self.answer(400 if hub.card_errors else 200, {"errors": hub.card_errors, "warnings": []})
        if repo_id not in hub.files:
            return self.answer(404, {"error": "Repository not found"}, "RepoNotFound")
        files = hub.files[repo_id]
        if kind == "info":
            return self.answer(200, {"id": repo_id, "private": hub.private[repo_id], "sha": "0" * 40})
        if kind == "auth-check":
            return self.answer(200)
        if kind == "tree":
            return self.answer(
                200, [{"type": "file", "path": path, "size": 1, "oid": git_oid(files[path])} for path in files]
            )
        if kind == "preupload":
            return self.answer(200, {"files": [self.upload_mode(file["path"]) for file in json.loads(body)["files"]]})
        assert kind == "commit", f"The fake Hub does not know {self.command} {self.path}."
        hub.commit(repo_id, [json.loads(line) for line in body.splitlines()])
        return self.answer(200, {"commitUrl": f"{hub.endpoint}/{repo_id}/commit/1", "commitOid": "1" * 40})

    def upload_mode(self, path: str) -> dict:
        files = self.server.files[re.sub(r".*/api/(models|datasets)/", "", self.path).split("/preupload")[0]]
        oid = git_oid(files[path]) if path in files else None
        return {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": oid}

    do_GET = do_POST = do_PUT = handle_request


def git_oid(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@pytest.fixture
def hub(monkeypatch):
    server = FakeHub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    # The waits of the client and of ours, which are told apart by their lengths.
    server.waits = []
    monkeypatch.setattr("time.sleep", server.waits.append)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=TOKEN)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "model"
    for name in ("config.json", "model.safetensors", "widget/cat.jpg", ".eval_results/mmmu.yaml", ".git/HEAD"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"this is {name}")
    return folder


def uploaded(folder: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if not name.startswith(".git/")}


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("name", ["me/model", "model", "team/model"])
def test_new_repository_is_private_unless_told_otherwise(name, public, hub, api):
    repo_id = prepare_repository(api, name, public=public)
    assert repo_id == ("me/model" if name == "model" else name)
    assert hub.private == {repo_id: not public}


def test_existing_repository_keeps_its_visibility(hub, api):
    hub.add("me/private", private=True)
    hub.add("me/public", private=False)
    assert prepare_repository(api, "me/private") == "me/private"
    assert prepare_repository(api, "me/public", public=True) == "me/public"
    with pytest.raises(PushError, match="me/private exists and is private. Leave --public out"):
        prepare_repository(api, "me/private", public=True)
    with pytest.raises(PushError, match="me/public exists and is public. Pass --public"):
        prepare_repository(api, "me/public")
    assert hub.private == {"me/private": True, "me/public": False}
    assert set(hub.requests) == {"whoami-v2", "info", "auth-check"}


@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [
        ("whoami-v2", 401, "does not accept the token. Log in again"),
        ("repos/create", 403, "may not write to me/model. It needs the right to write"),
        ("repos/create", 404, "finds no me/model that this token may see"),
        ("repos/create", 400, "answered 400 for me/model: .*the fake Hub was told to"),
        ("info", 500, "answered 500 for me/model: .*the fake Hub was told to"),
    ],
)
def test_refusals_are_one_line(kind, status, message, hub, api):
    hub.failures[kind] = [status] * 10
    with pytest.raises(PushError, match=message) as error:
        prepare_repository(api, "me/model")
    assert "\n" not in str(error.value)


def test_token_that_may_only_read_an_existing_repository(hub, api):
    hub.add("me/model", private=True)
    hub.failures["auth-check"] = [403]
    with pytest.raises(PushError, match="may not write to me/model"):
        prepare_repository(api, "me/model")


@pytest.mark.parametrize("name", ["a/b/c", "me/-model", "me/mo del", "me/model.git", ""])
def test_name_that_cannot_be(name, hub, api):
    with pytest.raises(PushError, match="cannot be the name of a repository, expected owner/name") as error:
        prepare_repository(api, name)
    assert "\n" not in str(error.value) and not hub.requests


def test_no_token(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    with pytest.raises(PushError, match="There is no token for the Hub. Log in with `hf auth login`"):
        prepare_repository(HfApi(endpoint=hub.endpoint), "me/model")


def test_no_network(hub, api, monkeypatch):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(PushError, match="The Hub cannot be reached: .*refused") as error:
        prepare_repository(api, "me/model")
    assert "\n" not in str(error.value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="switched off by HF_HUB_OFFLINE"):
        prepare_repository(api, "me/model")


def test_upload_sends_the_folder_and_leaves_nothing_in_it(hub, api, folder):
    hub.add("me/model", private=True)
    before = sorted(folder.rglob("*"))
    upload(api, "me/model", folder)
    assert hub.files["me/model"] == uploaded(folder)
    assert sorted(folder.rglob("*")) == before


def test_upload_goes_on_after_a_break(hub, api, folder, capsys):
    """The Hub fails for longer than the client tries by itself; a file that has arrived is not sent again."""
    hub.add("me/model", private=True, **{"config.json": (folder / "config.json").read_bytes()})
    hub.failures["commit"] = [503] * 6
    sent = []
    commit = hub.commit
    hub.commit = lambda repo_id, lines: (sent.extend(lines), commit(repo_id, lines))
    upload(api, "me/model", folder)
    assert hub.files["me/model"] == uploaded(folder)
    assert hub.waits[-1] == push.ATTEMPT_WAITS[0]
    assert "answered 503" in capsys.readouterr().out
    assert "config.json" not in [line["value"].get("path") for line in sent if line["key"] == "file"]


def test_upload_that_is_called_again_sends_only_what_is_missing(hub, api, folder):
    hub.add("me/model", private=True)
    upload(api, "me/model", folder)
    (folder / "README.md").write_text("new")
    hub.commit = lambda repo_id, lines: sent.extend(line["value"]["path"] for line in lines if line["key"] == "file")
    sent = []
    upload(api, "me/model", folder)
    assert sent == ["README.md"]


def test_upload_that_stays_broken_says_how_to_go_on(hub, api, folder):
    hub.add("me/model", private=True)
    hub.failures["commit"] = [503] * 100
    with pytest.raises(PushError, match=rf"answered 503 .* resume with `hf upload me/model {folder} \.`") as error:
        upload(api, "me/model", folder)
    assert "\n" not in str(error.value)
    assert [wait for wait in hub.waits if wait >= 10] == list(push.ATTEMPT_WAITS)


def test_refused_upload_is_not_tried_again(hub, api, folder):
    hub.add("me/model", private=True)
    hub.failures["commit"] = [403] * 2
    with pytest.raises(PushError, match="may not write to me/model.* resume with"):
        upload(api, "me/model", folder)
    assert hub.requests.count("commit") == 1 and not hub.waits


def test_card_that_the_hub_does_not_take(hub, api, folder):
    hub.add("me/model", private=True)
    hub.card_errors = [
        {"message": '"license" must be one of [apache-2.0, mit]'},
        {"message": '"tags" must be an array'},
    ]
    (folder / "README.md").write_text("---\nlicense: nonsense\n---\n")
    with pytest.raises(
        PushError, match=r'README.md.* "license" must be one of .* "tags" must be .* resume with'
    ) as error:
        upload(api, "me/model", folder)
    assert "\n" not in str(error.value) and not hub.files["me/model"]


def test_weights_of_an_earlier_upload_do_not_stay(hub, api, folder):
    """`from_pretrained` would take them, or a mixture, for the model. Other files of the repository stay."""
    old = {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}", "notes.md": b"mine"}
    hub.add("me/model", private=True, **old, **{"onnx/model.safetensors": b"mine"})
    upload(api, "me/model", folder)
    assert hub.files["me/model"] == {**uploaded(folder), "notes.md": b"mine", "onnx/model.safetensors": b"mine"}


@pytest.fixture
def connected(hub, monkeypatch):
    """Let the command talk to the fake Hub."""
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: HfApi(endpoint=hub.endpoint, token=token))


def test_command_pushes_what_it_wrote(hub, connected, tmp_path, capsys):
    main(["convert", str(SOURCE), str(tmp_path / "out"), "--push-to-hub", "model", "--token", TOKEN])
    assert hub.private == {"me/model": True}
    assert hub.files["me/model"] == uploaded(tmp_path / "out")
    assert 'snapshot_download("me/model")' in hub.files["me/model"]["README.md"].decode()
    assert capsys.readouterr().out.endswith("Uploaded to me/model\n")
    again = ["--push-to-hub", "me/model", "--public", "--token", TOKEN]
    assert main(["convert", str(SOURCE), str(tmp_path / "again"), *again]) == 1
    assert capsys.readouterr().err.startswith("error: me/model exists and is private")
    main(["convert", str(SOURCE), str(tmp_path / "open"), "--push-to-hub", "me/open", "--public", "--token", TOKEN])
    assert hub.private == {"me/model": True, "me/open": False}


def test_command_checks_the_hub_before_the_conversion(hub, connected, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(convert_checkpoints, "convert", lambda *args, **kwargs: pytest.fail("has converted"))
    hub.failures["whoami-v2"] = [401]
    command = ["convert", str(SOURCE), str(tmp_path / "out"), "--token", TOKEN, "--push-to-hub"]
    assert main([*command, "me/model"]) == 1
    assert capsys.readouterr().err.startswith("error: The Hub does not accept the token")
    assert main([*command, "me/mo del"]) == 1
    assert capsys.readouterr().err.startswith("error: 'me/mo del' cannot be the name")
    assert not hub.files


def test_command_keeps_the_folder_if_the_upload_fails(hub, connected, tmp_path, capsys):
    hub.failures["commit"] = [403]
    assert main(["convert", str(SOURCE), str(tmp_path / "out"), "--push-to-hub", "me/model", "--token", TOKEN]) == 1
    assert re.search("error: .*is complete, .* resume with `hf upload me/model", capsys.readouterr().err)
    assert (tmp_path / "out" / "config.json").is_file()


def test_public_alone_makes_no_sense(tmp_path, capsys):
    assert main(["convert", str(SOURCE), str(tmp_path / "out"), "--public"]) == 2
    assert "--public needs --push-to-hub" in capsys.readouterr().err


def make_run(folder: Path):
    """Make the files of a finished run, as far as an upload looks at them."""
    card = b"---\nlicense: other\n---\n# A set\n"
    files = {"README.md": card, "done.json": b"{}", "data/train-00000-of-00001.parquet": b"new rows"}
    files |= {
        "rejects/part-00000.jsonl": b"{}",
        "rejected.png": b"picture",
        "work/finish.lock": b"",
        "audit.json": b"1",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def push_run(folder: Path, hub, monkeypatch, *options: str) -> int:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: HfApi(endpoint=hub.endpoint, token=TOKEN))
    return main(["synthesize", "push", str(folder), "me/set", *options])


def test_output_of_a_run_is_uploaded_without_rejects_and_old_shards(hub, tmp_path, monkeypatch, capsys):
    make_run(tmp_path)
    old = {
        "data/train-00001-of-00002.parquet": b"old",
        "data/train-00000-of-00001.parquet": b"old",
        "notes.md": b"mine",
    }
    hub.add("me/set", True, **old)
    assert push_run(tmp_path, hub, monkeypatch, "--license", "cc-by-4.0") == 0
    files = hub.files["me/set"]
    assert sorted(files) == ["README.md", "audit.json", "data/train-00000-of-00001.parquet", "notes.md"]
    assert files["data/train-00000-of-00001.parquet"] == b"new rows" and b"license: cc-by-4.0" in files["README.md"]
    assert "Uploaded to datasets/me/set" in capsys.readouterr().out
    assert push_run(tmp_path, hub, monkeypatch, "--with-rejects") == 0
    assert {"rejects/part-00000.jsonl", "rejected.png"} <= hub.files["me/set"].keys()


def test_new_data_set_is_private_and_an_upload_that_broke_off_is_resumed(hub, tmp_path, monkeypatch, capsys):
    make_run(tmp_path)
    hub.failures["commit"] = [400]
    assert push_run(tmp_path, hub, monkeypatch) == 1
    assert "resume with the same command" in capsys.readouterr().err
    assert hub.private == {"me/set": True}
    assert push_run(tmp_path, hub, monkeypatch) == 0
    assert "data/train-00000-of-00001.parquet" in hub.files["me/set"]


def test_unfinished_run_is_not_uploaded(hub, tmp_path, monkeypatch, capsys):
    make_run(tmp_path)
    (tmp_path / "done.json").unlink()
    assert push_run(tmp_path, hub, monkeypatch) == 2
    assert "holds no finished run" in capsys.readouterr().err and not hub.requests
