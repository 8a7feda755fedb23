"""`fusion-vlm chat` on a terminal: sessions in a pseudo-terminal, with bad input between good messages."""

import os
import pty
import re
import runpy
import select
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from fusion_vlm.commands import completion
from fusion_vlm.commands.chat import COMMANDS
from fusion_vlm.commands.completion import list_candidates
from fusion_vlm.commands.images import is_image_name, is_question, unquote

from ..helpers import ROOT, SMALL_MODEL


STARS = ROOT / "examples" / "images" / "stars.png"
MAIN = "import sys; from fusion_vlm.commands.main import main; sys.exit(main(sys.argv[1:]))"
CTRL_C, CTRL_D, TAB = "\x03", "\x04", "\t"
needs_readline = pytest.mark.skipif(completion.readline is None, reason="this Python has no readline")


class Terminal:
    """A `fusion-vlm` whose stdin, stdout and stderr are a terminal; `code` replaces the program."""

    def __init__(self, *arguments, folder: Path, code: str = MAIN):
        self.output, self.has_ended = "", False
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            # A dumb terminal, so that no escape codes are written; no settings of whoever runs the tests.
            os.environ.update(TERM="dumb", INPUTRC=os.devnull, HF_HUB_OFFLINE="1", PYTHONUNBUFFERED="1")
            os.chdir(folder)
            os.execv(sys.executable, [sys.executable, "-c", code, *map(str, arguments)])

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_):
        os.close(self.file)
        if not self.has_ended:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def type(self, text: str):
        os.write(self.file, text.encode())

    def read_until(self, pattern: str, seconds: float = 60) -> str:
        """Return what was written up to the end of a pattern."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.output)):
            assert time.monotonic() < end, f"{pattern!r} is not in {self.output!r}"
            if select.select([self.file], [], [], 0.1)[0]:
                try:
                    self.output += os.read(self.file, 65536).decode(errors="replace")
                except OSError as error:  # so Linux says that the program has ended
                    raise AssertionError(f"the chat ended: {self.output!r}") from error
        text, self.output = self.output[: match.end()], self.output[match.end() :]
        return text.replace("\r\n", "\n")

    def read_prompt(self, seconds: float = 60) -> str:
        return self.read_until(r"\n> $", seconds)

    def enter(self, line: str) -> str:
        """Type a line and return what comes after it, up to the next prompt."""
        self.type(f"{line}\n")
        return self.read_prompt().partition("\n")[2].removesuffix("\n> ").removesuffix("> ")

    def wait(self) -> int:
        """Return the exit code."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if select.select([self.file], [], [], 0.1)[0]:
                try:
                    os.read(self.file, 65536)
                except OSError:
                    break
        _, status = os.waitpid(self.pid, 0)
        self.has_ended = True
        return os.waitstatus_to_exitcode(status)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory) -> Path:
    """Return a model whose answers do not end by themselves."""
    write_small_model = runpy.run_path(str(ROOT / "examples" / "random_model.py"))["write_small_model"]
    return write_small_model(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Write a folder with a good image, `my photo.png`, and bad ones."""
    tmp_path, image = tmp_path_factory.mktemp("images"), STARS.read_bytes()
    (tmp_path / "my photo.png").write_bytes(image)
    (tmp_path / "dad's photo.png").write_bytes(image)
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut off.png").write_bytes(image[:300])
    (tmp_path / "page.png").write_text("<html>no image</html>")
    (tmp_path / "folder").mkdir()
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path


@pytest.fixture(scope="module")
def shared(folder) -> Terminal:
    """Start a chat that several tests use, because torch takes seconds to import."""
    with Terminal("chat", SMALL_MODEL, folder=folder) as terminal:
        terminal.read_prompt()
        yield terminal


@pytest.fixture
def chat(shared) -> Terminal:
    """Begin a new conversation about an image."""
    shared.enter("/image my photo.png")
    return shared


@pytest.fixture
def server():
    """Start a server whose answers are no images, and return its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/loop":
                self.send_response(302)
                self.send_header("Location", "/loop")
                self.end_headers()
            elif self.path == "/page":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"<html>no image</html>")
            else:
                self.send_error(int(self.path[1:]))

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()


def test_bad_images_and_commands_cost_one_line_each(chat, folder, server):
    """The conversation goes on after each, with the image and the turns that it had."""
    bad = {
        "/image missing.png": "there is no such file",
        "/image folder": "it is a folder",
        "/image pipe.png": "it is a pipe or a device",
        "/image /dev/tty": "it is a pipe or a device",
        "/IMAGE my photo.png": "Did you mean /image?",
        "/image empty.png": "it is not an image that Pillow reads",
        "/image cut off.png": "image file is truncated",
        "/image page.png": "it is not an image that Pillow reads",
        "/image huge.png": "exceeds limit",
        f"/image {'long' * 300}.png": "there is no such file",
        "/image http://[": "Invalid IPv6 URL",
        "/image http://nowhere.invalid/a.png": "Cannot read an image from 'http://nowhere.invalid/a.png'",
        "/image http://127.0.0.1:9/a.png": "Connection refused",
        f"/image {server}/404": "HTTP status 404",
        f"/image {server}/500": "HTTP status 500",
        f"/image {server}/loop": "infinite loop",
        f"/image {server}/page": "it is not an image that Pillow reads",
        "/image ftp://example.org/a.png": "expected an address that begins with",
        "/image": "/image needs the name of a file",
        "/image -": "stdin is where your messages come from",
        "/imge a.png": "Did you mean /image?",
        "/exit": "Did you mean /quit?",
        "my photo.png": "not a question. To talk about it: /image ",
        f"{folder}/cut off.png": "not a question. To talk about it: /image ",
        "a " * 3000: "Begin a new one with /reset.",
    }
    first = chat.enter("What is it?")
    assert first.strip()
    for line, words in bad.items():
        answer = chat.enter(line)
        assert re.fullmatch(r"error: [^\n]*", answer.strip()), line
        assert words in answer, line
    second = chat.enter("What is it?")
    assert "(a new conversation, same image)" in chat.enter("/reset")
    assert chat.enter("What is it?") == first  # the image is still there
    assert second.strip() and second != first  # and so were the turns before


def test_command_and_argument_may_stand_further_apart(chat):
    assert "about an image of 384 x 384" in chat.enter("/image \x16\t my photo.png")


def test_quit_ends_the_chat_whatever_follows_it(folder):
    with Terminal("chat", SMALL_MODEL, folder=folder) as terminal:
        terminal.read_prompt()
        terminal.type("/quit now\n")
        assert terminal.wait() == 0


def test_help_lists_the_commands(chat):
    assert [line.split()[0] for line in chat.enter("/help").splitlines()] == list(COMMANDS)


def test_paths_as_terminals_write_them(chat, folder):
    spellings = ["my photo.png", "'my photo.png'", '"my photo.png"', r"my\ photo.png", f"{folder}/my\\ photo.png "]
    spellings += [f"file://{folder}/my%20photo.png", "dad's photo.png", r"'dad'\''s photo.png'"]
    for spelling in spellings:
        assert "a new conversation, about an image of 384 x 384 pixels" in chat.enter(f"/image {spelling}")


def test_ctrl_c_at_the_prompt_clears_the_line_and_says_how_to_leave(chat):
    for typed in ("", "half a mess"):
        chat.type(typed)
        time.sleep(0.2)
        chat.type(CTRL_C)
        assert "To leave: Ctrl-D or /quit" in chat.read_prompt()
    assert len(chat.enter("/help").splitlines()) == len(COMMANDS)  # alone, without the half of a message


@needs_readline
def test_tab_completes_commands_and_paths(chat):
    chat.type(f"/im{TAB}my{TAB}\n")
    assert "about an image of 384 x 384" in chat.read_prompt()


@needs_readline
def test_arrow_up_brings_an_earlier_line_back(chat):
    chat.enter("/help")
    assert "list the commands" in chat.enter("\x10")  # Ctrl-P, which arrow up is on most terminals


PRINTS_MESSAGES = """
import sys
from fusion_vlm.commands import chat, main

process = chat.process

def print_messages(processor, messages, sizes):
    print([message["content"][-1]["text"] for message in messages])
    return process(processor, messages, sizes)

chat.process = print_messages
sys.exit(main.main(sys.argv[1:]))
"""


def test_ctrl_c_stops_the_answer_and_nothing_else(random_model, folder):
    """What was written of a stopped answer stays in the conversation."""
    with Terminal("chat", random_model, "--max-new-tokens", "900", folder=folder, code=PRINTS_MESSAGES) as terminal:
        terminal.read_prompt()
        terminal.type("Tell me a story.\n")
        terminal.read_until(r"\['Tell me a story.'\]\s")
        written = terminal.read_until(r"\S+ +\S+ ")
        terminal.type(CTRL_C)
        written += terminal.read_prompt(seconds=3)
        assert "(stopped)" in written
        terminal.type("And?\n")
        turns = terminal.read_until(r"\['Tell me a story.', .*, 'And\?'\]\s")
        assert written.split()[0] in turns
        assert len(turns) < len(written) + 100
        terminal.read_until(r"\S+ +\S+ ")
        terminal.type(CTRL_C)
        assert "(stopped)" in terminal.read_prompt(seconds=3)
        terminal.type(CTRL_D)
        assert terminal.wait() == 0


FAILING = """
import sys
import torch
from fusion_vlm.commands.main import main
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration

generate, calls = FusionForConditionalGeneration.generate, []

def fail_once(self, **inputs):
    calls.append(inputs)
    if len(calls) == 1:
        raise torch.OutOfMemoryError("GPU 0 has no memory left.\\nTried to allocate more.")
    return generate(self, **inputs)

FusionForConditionalGeneration.generate = fail_once
sys.exit(main(sys.argv[1:]))
"""


def test_answer_that_fails_does_not_end_the_chat(folder):
    with Terminal("chat", SMALL_MODEL, "my photo.png", folder=folder, code=FAILING) as terminal:
        terminal.read_prompt()
        assert terminal.enter("What is it?").strip() == "error: GPU 0 has no memory left. Tried to allocate more."
        assert "error" not in terminal.enter("What is it?")


def test_candidates_of_completion(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    commands = ["/image", "/reset"]
    assert list_candidates("/i", commands) == ["/image "]
    assert list_candidates("", commands) == list_candidates("What is", commands) == []
    assert list_candidates("/image my", commands) == ["/image my photo.png"]
    assert list_candidates("/image my p", commands) == ["/image my photo.png"]
    assert list_candidates("/image 'my p", commands) == ["/image 'my photo.png'"]
    assert list_candidates("/image fo", commands) == ["/image folder/"]
    assert list_candidates("/image ~/e", commands) == ["/image ~/empty.png"]
    assert list_candidates("/image nowhere/", commands) == []


def test_without_readline_lines_are_read_without_editing(folder):
    code = f"import sys; sys.modules['readline'] = None\n{MAIN}"
    with Terminal("chat", SMALL_MODEL, "my photo.png", folder=folder, code=code) as terminal:
        terminal.read_prompt()
        assert terminal.enter("What is it?").strip()


def test_prompts_are_not_among_the_answers_of_a_file(folder):
    """`chat ... > answers` at a terminal."""
    code = f"import sys; sys.stdout = open('answers', 'w')\n{MAIN}"
    with Terminal("chat", SMALL_MODEL, "my photo.png", folder=folder, code=code) as terminal:
        terminal.read_prompt()
        terminal.enter("What is it?")
        terminal.type("/quit\n")
        assert terminal.wait() == 0
    assert (folder / "answers").read_text().strip().startswith("The ")


def test_names_of_images_and_questions(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = [
        "photo.JPG",
        "a/b.webp",
        "https://example.org/a?b=c",
        "file:///a.png",
        "data:image/png;base64,AA",
        "page.png",
    ]
    assert all(is_image_name(name) for name in [*names, "page.png", "my photo.png", "'my photo.png'"])
    questions = ["What is in photo.jpg", "What is it?", "folder", "See https://example.org/a.png", "photo.jpg?"]
    assert not any(is_image_name(question) for question in questions)
    assert is_question("What is it?") and is_question("Describe the image") and is_question("why?")
    assert not any(is_question(name) for name in [*names, "-", "photo", "my photo.png", "two words", "a b c d.png"])


def test_unquote_leaves_names_that_are_there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "'quoted'").touch()
    assert unquote("'quoted'") == "'quoted'"
    assert unquote(" dad's photo.png ") == "dad's photo.png"
    assert unquote("it's.png") == "it's.png"
    assert unquote("'a b'") == unquote(r"a\ b") == "a b"
    assert unquote("a b") == "a b"
