"""
The page of `examples/demo.py` in headless Chromium, with the small trained model. `make test-demo` runs it.

With SCREENSHOTS=FOLDER it also takes the pictures of the README.
"""

import base64
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

from ..helpers import ROOT


reason = "Gradio needs an older Pillow than the rest, so its tests have an environment of their own: make test-demo"
pytest.importorskip("gradio", reason=reason)
webdriver = pytest.importorskip("selenium.webdriver", reason=reason)
if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
    pytest.skip("needs a browser: apt-get install chromium chromium-driver", allow_module_level=True)

pytestmark = pytest.mark.browser
EXAMPLES_DIR = ROOT / "examples"
MODEL = EXAMPLES_DIR.parent / "small_model" / "model"
STARS, BEACH = EXAMPLES_DIR / "images" / "stars.png", EXAMPLES_DIR / "images" / "beach.png"
HINT = " Answer with a single word or phrase."  # without it, answers are sentences
COUNT, COLOUR = "How many red objects are there?" + HINT, "What is the colour of the circle?"
DESCRIBE = "Describe the picture."
WAITING = "Reading the image and the question"
BROWSER_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
PATIENCE = 30  # seconds
DESKTOP, TELEPHONE = (1200, 720), (375, 812)


def wait_for(condition):
    """Return the result of `condition` as soon as it is true."""
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

    def __init__(self, driver, address, size=DESKTOP):
        self.driver = driver
        driver.switch_to.new_window("tab")
        self.window = driver.current_window_handle
        # Not the window, which Chromium keeps wider than a telephone.
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
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
        wait_for(self.is_idle)  # the page keeps a question in the box while it answers another one
        self.press("Ask")

    def is_idle(self) -> bool:
        self.driver.switch_to.window(self.window)
        return not self.driver.execute_script("return window.isAnswering")

    def has_button(self, name: str) -> bool:
        """Tell whether there is such a button that can be pressed."""
        return any(button.text.strip() == name and button.is_enabled() for button in self.find("button"))

    def top_of(self, selector: str) -> float:
        """Return where an element begins, in pixels from the top of the page."""
        script = "return document.querySelector(arguments[0]).getBoundingClientRect().top + window.scrollY"
        self.driver.switch_to.window(self.window)
        return self.driver.execute_script(script, selector)

    def save_screenshot(self, name: str):
        """Save the whole page if pictures for the README are asked for."""
        if "SCREENSHOTS" not in os.environ:
            return
        self.driver.execute_script("window.scrollTo(0, 0)")
        time.sleep(1)  # transitions end
        picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        (Path(os.environ["SCREENSHOTS"]) / name).write_bytes(base64.b64decode(picture["data"]))

    @property
    def box(self) -> str:
        """Text of the box for questions."""
        return self.find("textarea")[0].get_attribute("value")

    def set(self, label: str, value: int):
        (field,) = self.find(f"[aria-label='number input for {label}']")
        field.clear()
        field.send_keys(str(value), "\t")

    @property
    def questions(self) -> list[str]:
        return self.texts("[data-testid=user]")

    @property
    def answers(self) -> list[str]:
        return [text for text in self.texts("[data-testid=bot]") if not text.startswith(WAITING)]

    @property
    def is_waiting(self) -> bool:
        return any(text.startswith(WAITING) for text in self.texts("[data-testid=bot]"))

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

    def open_tab(size=DESKTOP) -> Tab:
        tabs.append(Tab(driver, address, size))
        return tabs[-1]

    yield open_tab
    for tab in tabs:
        if tab.window in driver.window_handles:
            tab.close()


@pytest.fixture
def tab(open_tab):
    return open_tab()


def ask(tab, watch, question) -> str:
    """Ask and return the answer as soon as it is complete."""
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


@pytest.mark.parametrize(
    "question, expected",
    [
        (COUNT, "3"),
        ("What colour is each shape?", "purple"),
        ("Where is each shape?", "upper left"),
    ],
)
def test_examples_answer(tab, watch, question, expected):
    """At one press, and again after another one."""
    tab.press(question)
    answer = wait_for(lambda: tab.is_idle() and "".join(tab.answers))
    assert tab.questions == [question]
    assert expected in answer.lower()
    assert "<image>" in watch.prompts[-1]
    tab.press(question)
    wait_for(lambda: not tab.is_idle())
    wait_for(lambda: tab.is_idle() and tab.answers == [answer])
    ask(tab, watch, COLOUR)
    assert question in watch.prompts[-1], "a further question goes on with the example"


def test_example_ends_the_answer_before_it(tab, watch):
    with watch.held(min_new_tokens=250):
        start(tab, watch)
        tab.press(COUNT)
        watch.step_until_idle()
    wait_for(lambda: tab.is_idle() and tab.questions == [COUNT] and tab.answers)


def test_typing_while_an_answer_is_written_loses_nothing(tab, watch):
    """Before the first token, between tokens, and at the end; Enter keeps the text for when the answer is there."""
    text = "What shape is the green object? Answer with a word."
    tab.upload(STARS)
    (box,) = tab.find("textarea")
    with watch.held(min_new_tokens=100):
        box.send_keys(DESCRIBE, "\n")
        wait_for(lambda: tab.is_waiting)
        for index, character in enumerate(text):
            box.send_keys(character)
            if index > 5:
                watch.permits.release()
            if index in (3, len(text) // 2):
                box.send_keys("\n")
        assert tab.box == text
        assert not tab.is_idle(), "Enter does not end the answer"
    wait_for(tab.is_idle)
    assert tab.box == text
    assert len(tab.questions) == 1
    box.send_keys("\n")
    wait_for(lambda: tab.is_idle() and len(tab.answers) == 2)
    assert tab.questions[1] == text
    assert tab.box == ""


def test_sign_of_life_before_the_first_token(tab, watch):
    tab.upload(STARS)
    with watch.held():
        tab.ask(DESCRIBE)
        wait_for(lambda: tab.is_waiting)
        assert tab.questions == [DESCRIBE]
        wait_for(lambda: any(text.endswith("2 s") for text in tab.texts("[data-testid=bot]")))
    wait_for(lambda: tab.answers and not tab.is_waiting)


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_question_is_no_error(tab, watch, text):
    num_prompts = len(watch.prompts)
    tab.find("textarea")[0].send_keys(text, "\n")
    tab.press("Ask")
    time.sleep(1)
    assert tab.notes == [] and tab.questions == [] and tab.is_idle()
    assert len(watch.prompts) == num_prompts
    ask(tab, watch, COUNT)


@pytest.mark.parametrize("size", [DESKTOP, TELEPHONE], ids=["desktop", "telephone"])
def test_page_at_both_widths(open_tab, watch, size):
    """From the empty page to the picture: nothing is wider than the page, and what is used first comes first."""
    tab, name = open_tab(size), "demo_page.png" if size == DESKTOP else "demo_page_telephone.png"
    assert "Photographs mean nothing to it" in tab.texts("body")[0]
    assert "Try an example" in tab.texts("body")[0]
    assert not tab.has_button("Show where it looked")
    assert not [field for field in tab.find("input[type=range]") if field.is_displayed()], "folded"
    tab.press(COUNT)
    wait_for(lambda: tab.is_idle() and tab.answers)
    wait_for(lambda: tab.has_button("Show where it looked"))
    tab.press("Show where it looked")
    wait_for(lambda: picture_width(tab) > 200)
    tab.save_screenshot(name)
    assert tab.driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
    chat, box, options = (tab.top_of(name) for name in ("[role=log]", "textarea", ".label-wrap"))
    assert chat < box < options
    assert picture_width(tab) <= size[0]
    tab.find(".label-wrap")[0].click()
    wait_for(lambda: len([field for field in tab.find("input[type=range]") if field.is_displayed()]) == 3)
    assert tab.driver.execute_script("return document.documentElement.scrollWidth") <= size[0]


def picture_width(tab) -> float:
    """Return the width on the page of the picture of where the model looked; 0 while there is none."""
    script = """
        const images = [...document.querySelectorAll('.image-frame img, .image-container img')];
        const picture = images.find(image => image.naturalWidth > 400 && image.naturalWidth != image.naturalHeight);
        return picture ? picture.getBoundingClientRect().width : 0;"""
    return tab.driver.execute_script(script)


def test_picture_shows_progress_and_belongs_to_the_last_answer(tab, watch):
    tab.upload(STARS)
    ask(tab, watch, COLOUR)
    wait_for(lambda: tab.has_button("Show where it looked"))
    with watch.held():
        tab.press("Show where it looked")
        watch.permits.release(3)
        wait_for(lambda: "24/37" in tab.texts("body")[0])
        assert picture_width(tab) == 0
    wait_for(lambda: picture_width(tab))
    ask(tab, watch, COUNT)
    wait_for(lambda: picture_width(tab) == 0)


def test_new_conversation_ends_the_picture(tab, watch):
    tab.upload(STARS)
    ask(tab, watch, COLOUR)
    wait_for(lambda: tab.has_button("Show where it looked"))
    with watch.held():
        tab.press("Show where it looked")
        watch.permits.release(2)
        wait_for(lambda: watch.num_steps == 2)
        tab.press("Clear")
        wait_for(lambda: not tab.questions)
    num_steps = watch.num_steps
    time.sleep(1)
    assert watch.num_steps <= num_steps + 1 < 9
    assert picture_width(tab) == 0 and not tab.has_button("Show where it looked")


def test_sliders_set_the_grids(tab, watch):
    tab.upload(BEACH)
    tab.find(".label-wrap")[0].click()
    wait_for(lambda: tab.find("[aria-label='number input for Latent grid']"))
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
    wait_for(lambda: tab.box == COLOUR)


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
    """Begin a conversation about a file of the server, and return the last line of the response."""
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
