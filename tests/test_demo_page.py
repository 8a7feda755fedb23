"""
The page of `examples/demo.py` in headless Chromium, with the small trained model. `make test-demo` runs it.

With SCREENSHOT=FILE it also takes the picture of the README.
"""

import importlib.util
import json
import os
import re
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor


reason = "Gradio needs an older Pillow than the rest, so its tests have an environment of their own: make test-demo"
pytest.importorskip("gradio", reason=reason)
webdriver = pytest.importorskip("selenium.webdriver", reason=reason)
if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
    pytest.skip("needs a browser: apt-get install chromium chromium-driver", allow_module_level=True)

EXAMPLES_DIR = Path(__file__).resolve().parents[1] / "examples"
MODEL = EXAMPLES_DIR / "tiny"
STARS, BEACH = EXAMPLES_DIR / "images" / "stars.png", EXAMPLES_DIR / "images" / "beach.png"
HINT = " Answer with a single word or phrase."  # without it, answers are sentences
COUNT, COLOUR = "How many red objects are there?" + HINT, "What is the colour of the circle?"
DESCRIBE = "Describe the picture."
BROWSER_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,1000",
]
PATIENCE = 30  # seconds


def wait_for(condition):
    """What `condition` returns once that is true."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return value


class Watch:
    """Counts the steps of the model and keeps its prompts. While it is `held`, no step is taken without a permit."""

    def __init__(self, model, processor):
        self.tokenizer, self.config = processor.tokenizer, model.generation_config
        self.prompts, self.num_steps, self.num_running = [], 0, 0
        self.permits, self.lock = None, threading.Lock()
        self.generate, model.generate = model.generate, self.run
        model.register_forward_pre_hook(self.step, with_kwargs=True)

    def run(self, **kwargs):
        with self.lock:
            self.num_running += 1
        try:
            return self.generate(**kwargs)
        finally:
            with self.lock:
                self.num_running -= 1

    def step(self, module, args, kwargs):
        if self.permits is not None:
            self.permits.acquire(timeout=PATIENCE)
        with self.lock:
            self.num_steps += 1
            if kwargs["input_ids"].shape[1] > 1:
                self.prompts.append(self.tokenizer.decode(kwargs["input_ids"][0]))

    @contextmanager
    def held(self, min_new_tokens=None):
        """With `min_new_tokens`, answers are so long unless they are stopped."""
        self.num_steps, self.permits = 0, threading.Semaphore(0)
        self.config.min_new_tokens = min_new_tokens
        try:
            yield
        finally:
            self.config.min_new_tokens = None
            permits, self.permits = self.permits, None
            permits.release(10_000)  # for what is waiting still

    def step_until_idle(self):
        def is_idle():
            self.permits.release()
            return self.num_running == 0

        wait_for(is_idle)


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", EXAMPLES_DIR / "demo.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model():
    return FusionForConditionalGeneration.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def watch(model, processor):
    return Watch(model, processor)


@pytest.fixture(scope="module")
def processor():
    return FusionProcessor.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def address(demo, model, processor, watch):
    page = demo.make_page(model, processor)
    yield demo.launch(page, "127.0.0.1", None).rstrip("/")
    page.close(verbose=False)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in [*BROWSER_ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(argument)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as driver:
        yield driver


class Tab:
    """A tab of the browser with the page, which is another user for the page."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.switch_to.new_window("tab")
        self.window = driver.current_window_handle
        driver.get(address)
        wait_for(lambda: self.find("textarea"))

    def find(self, selector: str) -> list:
        self.driver.switch_to.window(self.window)
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(element => element.innerText.trim())"
        self.driver.switch_to.window(self.window)
        return self.driver.execute_script(script, selector)

    def choose(self, path):
        self.remove_image()
        (field,) = self.find("input[type=file]")
        field.send_keys(str(path))

    def upload(self, path):
        self.choose(path)
        wait_for(lambda: self.find("textarea[placeholder='Ask about the image']"))

    def remove_image(self):
        self.click("[aria-label='Remove Image']")
        wait_for(lambda: self.find("textarea[placeholder='Ask without an image']"))

    def press(self, name: str):
        self.click("button", name)

    def click(self, selector: str, text: str = ""):
        """On the first such element with that text, if there is one; in one go, for the page may change meanwhile."""
        script = "[...document.querySelectorAll(arguments[0])].find(e => e.innerText.trim() == arguments[1])?.click()"
        self.driver.switch_to.window(self.window)
        self.driver.execute_script(script, selector, text)

    def ask(self, question: str):
        """Without waiting for the answer."""
        (box,) = self.find("textarea")
        box.clear()
        box.send_keys(question)
        wait_for(self.is_idle)  # the page takes one question at a time
        self.press("Ask")

    def is_idle(self) -> bool:
        return not self.find("[data-testid=status-tracker]:not(.hide)")

    def set(self, label: str, value: int):
        (field,) = self.find(f"[aria-label='number input for {label}']")
        field.clear()
        field.send_keys(str(value), "\t")

    @property
    def questions(self) -> list[str]:
        return self.texts("[data-testid=user]")

    @property
    def answers(self) -> list[str]:
        return self.texts("[data-testid=bot]")

    @property
    def notes(self) -> list[str]:
        """Errors and warnings."""
        return self.texts("[data-testid=toast-text]")

    def close(self):
        self.driver.switch_to.window(self.window)
        self.driver.close()
        self.driver.switch_to.window(self.driver.window_handles[0])


@pytest.fixture
def open_tab(driver, address):
    tabs = []

    def open_tab() -> Tab:
        tabs.append(Tab(driver, address))
        return tabs[-1]

    yield open_tab
    for tab in tabs:
        if tab.window in driver.window_handles:
            tab.close()


@pytest.fixture
def tab(open_tab):
    return open_tab()


def ask(tab, watch, question) -> str:
    """The answer, once it is written."""
    number = len(tab.answers) + 1
    tab.ask(question)
    wait_for(lambda: len(tab.answers) == number and watch.num_running == 0 and tab.is_idle())
    return tab.answers[-1]


def start(tab, watch) -> str:
    """Asks for a long answer while the model is held; returns its beginning, at which it waits."""
    tab.upload(STARS)
    tab.ask(DESCRIBE)
    watch.permits.release(6)
    return wait_for(lambda: "".join(tab.answers))


def test_conversation_about_an_image(tab, watch):
    tab.upload(STARS)
    first = ask(tab, watch, COUNT)
    second = ask(tab, watch, COLOUR)
    assert tab.questions == [COUNT, COLOUR]
    assert tab.answers == [first, second]
    assert "3" in first or "three" in first
    assert "blue" in second
    # The model read the whole conversation, with the image once.
    assert all(text in watch.prompts[-1] for text in (COUNT, first, COLOUR))
    assert watch.prompts[-1].count("<vision_start><image>") == 1
    if "SCREENSHOT" in os.environ:
        tab.driver.save_screenshot(os.environ["SCREENSHOT"])


def test_answer_is_shown_as_it_is_written_and_stop_ends_it(tab, watch):
    with watch.held(min_new_tokens=250):
        first = start(tab, watch)
        watch.permits.release(6)
        wait_for(lambda: len(tab.answers[0]) > len(first))
        assert tab.answers[0].startswith(first)
        tab.press("Stop")
        watch.step_until_idle()
        assert watch.num_steps < 200
    wait_for(tab.is_idle)
    written = tab.answers[0]
    # What was written is part of the conversation, which goes on.
    ask(tab, watch, COUNT)
    assert tab.answers[0] == written
    assert written in watch.prompts[-1]


def test_new_image_starts_a_new_conversation(tab, watch):
    with watch.held(min_new_tokens=250):
        start(tab, watch)
        tab.upload(BEACH)
        watch.step_until_idle()
        assert watch.num_steps < 200
    wait_for(lambda: not tab.questions)
    ask(tab, watch, COLOUR)
    assert tab.questions == [COLOUR]
    assert DESCRIBE not in watch.prompts[-1]
    tab.press("Clear")
    wait_for(lambda: not tab.questions)
    ask(tab, watch, COUNT)
    assert COLOUR not in watch.prompts[-1]
    assert "<image>" in watch.prompts[-1]


def test_closing_the_page_ends_its_answer(open_tab, watch):
    tab = open_tab()
    with watch.held(min_new_tokens=250):
        start(tab, watch)
        tab.close()
        watch.step_until_idle()
        assert watch.num_steps < 200


def test_users_do_not_mix(open_tab, watch):
    tabs, questions = [open_tab(), open_tab()], [COUNT, "What shape is the green object?" + HINT]
    for tab, image in zip(tabs, (STARS, BEACH), strict=True):
        tab.upload(image)
    with watch.held():
        for tab, question in zip(tabs, questions, strict=True):
            tab.ask(question)
        wait_for(lambda: watch.num_running == 2)
    for tab in tabs:
        wait_for(lambda tab=tab: tab.answers and tab.is_idle())
    answers = [tab.answers for tab in tabs]
    assert [tab.questions for tab in tabs] == [[question] for question in questions]
    assert "3" in answers[0][0] or "three" in answers[0][0]
    assert "triangle" in answers[1][0]


def test_example_is_an_image_and_a_question(tab, watch):
    example = "what color is the circle?"
    tab.click("td", example)
    wait_for(lambda: tab.find("textarea[placeholder='Ask about the image']"))
    assert tab.find("textarea")[0].get_attribute("value") == example
    tab.press("Ask")
    wait_for(lambda: tab.answers)
    assert example in watch.prompts[-1]
    assert "<image>" in watch.prompts[-1]


def test_sliders_set_the_grids(tab, watch):
    tab.upload(BEACH)
    tab.set("Latent grid", 3)
    tab.set("Image grid", 5)
    tab.set("Longest answer in tokens", 2)
    watch.num_steps = 0
    ask(tab, watch, DESCRIBE)
    assert watch.prompts[-1].count("<latent>") == 9
    assert watch.prompts[-1].count("<image>") == 25
    assert watch.num_steps == 2


def test_bad_image_is_one_line(tab, tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("no image")
    tab.choose(path)
    assert wait_for(lambda: tab.notes) == ["This file cannot be read as an image."]
    wait_for(lambda: not tab.find("[aria-label='Remove Image']"))  # nor is it shown as if it counted


@pytest.mark.parametrize(
    "error, expected",
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
            "The GPU has too little memory for this: choose smaller grids or clear the conversation.",
        ),
        (RuntimeError("Something failed.\nTraceback"), "Something failed."),
    ],
)
def test_failure_is_one_line_and_leaves_the_conversation_as_it_was(tab, watch, monkeypatch, error, expected):
    ask(tab, watch, COUNT)

    def fail(**kwargs):
        raise error

    with monkeypatch.context() as context:
        context.setattr(watch, "generate", fail)
        tab.ask(COLOUR)
        (note,) = wait_for(lambda: tab.notes)
    assert note == expected
    wait_for(lambda: tab.questions == [COUNT])
    assert tab.find("textarea")[0].get_attribute("value") == COLOUR


def test_too_long_conversation_is_one_line(tab, model, monkeypatch):
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", 20)
    tab.ask(COUNT)
    (note,) = wait_for(lambda: tab.notes)
    assert re.fullmatch(r"The conversation has \d+ tokens, the model takes 19 at most\.", note)


def test_page_needs_no_other_host(tab, address):
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    names = tab.driver.execute_script(script)
    assert names
    assert [name for name in names if not name.startswith((address, "data:", "blob:"))] == []


@pytest.mark.parametrize("path", ["/etc/passwd", EXAMPLES_DIR / "demo.py", MODEL / "config.json"], ids=str)
def test_files_are_not_served(address, path):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{address}/gradio_api/file={path}")


def post(url, data, content_type):
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": content_type})) as response:
        return json.load(response)


def begin(address, path) -> str:
    """What becomes of a conversation about a file of the server."""
    data = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
    event = post(f"{address}/gradio_api/call/begin", json.dumps(data).encode(), "application/json")["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/begin/{event}") as response:
        return response.readline().decode().strip()


def test_only_uploaded_images_are_read(address):
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%b\r\n--x--\r\n'
    content_type = "multipart/form-data; boundary=x"
    (uploaded,) = post(f"{address}/gradio_api/upload", form % STARS.read_bytes(), content_type)
    assert begin(address, uploaded) == "event: complete"
    assert begin(address, str(STARS)) == "event: error"
