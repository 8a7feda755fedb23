"""The page of samples, as a browser and Gradio's client see it: make test-demo."""

import json
import shutil
import time

import pytest
from PIL import Image

from fusion_vlm.commands.main import main
from fusion_vlm.synthesis.part_images import PartImages, encode_image
from fusion_vlm.synthesis.sample import Sample, Turn
from fusion_vlm.synthesis.shards import REJECT_FEATURES, write_parquet, write_shard


reason = "Gradio needs an older Pillow than the rest, so its tests have an environment of their own: make test-demo"
pytest.importorskip("gradio", reason=reason)
webdriver = pytest.importorskip("selenium.webdriver", reason=reason)
gradio_client = pytest.importorskip("gradio_client", reason=reason)
if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
    pytest.skip("needs a browser: apt-get install chromium chromium-driver", allow_module_level=True)

pytestmark = pytest.mark.browser
PATIENCE = 30  # seconds
BROWSER_ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1200,1400"]
UNSAFE_TEXT = "<img src=x onerror='window.wasHarmed = 1'> and ![](http://127.0.0.1:9/x.png)"


def wait_for(condition):
    """Return the result of `condition` as soon as it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return value


def make_sample(number: int, images: PartImages, **fields) -> Sample:
    kind = ("reasoning", "text_qa")[number % 2]
    turns = [Turn(f"What is number {number}?", UNSAFE_TEXT if number == 0 else f"It is {number}.", "text")]
    sample = Sample(f"s{number}", kind, 0, image=f"s{number}.png", turns=turns, **fields)
    images.write(sample.image, encode_image(Image.new("RGB", (32, 32), (8 * number, 90, 90)), "png"))
    return sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write 30 accepted samples in two shards, and two rejects, of which one has an image."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    images = PartImages(folder)
    for name in ("data", "rejects"):
        (folder / name).mkdir(parents=True)
    samples = [make_sample(number, images) for number in range(30)]
    for part in range(2):
        path = folder / "data" / f"train-0000{part}-of-00002.parquet"
        write_shard(path, samples[20 * part : 20 * part + 20], images, "parquet")
    rejects = [
        make_sample(30, images, reason="judge/wrong_answer: turn 1"),
        Sample("s31", "text_qa", 0, caption="boat"),
    ]
    rejects[1].reject("caption_rules", "alphanumeric: 0.1")
    (folder / "rejects" / "part-00000.jsonl").write_text(
        "".join(json.dumps(each.to_dict()) + "\n" for each in rejects)
    )
    row = {"id": "s30", "images": [{"bytes": images.read("s30.png"), "path": "s30.png"}]}
    write_parquet(folder / "rejects" / "images-00000.parquet", [row], REJECT_FEATURES)
    return folder


@pytest.fixture(scope="module")
def address(folder):
    from fusion_vlm.synthesis.view import launch, make_page

    page = make_page(folder)
    yield launch(page, None)
    page.close(verbose=False)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in [*BROWSER_ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(argument)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))) as driver:
        yield driver


def test_pages_and_filters_through_the_client(address):
    client = gradio_client.Client(address, verbose=False)

    def show(*filters, page=1):
        pictures, position, number = client.predict(*filters, page, api_name="/page")
        return [picture["caption"] for picture in pictures], position, number

    captions, position, _ = show("kept", [], [], [])
    assert (len(captions), position) == (24, "30 samples, page 1 of 2")
    captions, position, number = show("kept", [], [], [], page=99)
    assert (len(captions), position, number) == (6, "30 samples, page 2 of 2", 2)
    captions, position, _ = show("kept", ["text_qa"], ["text"], [])
    assert position == "15 samples, page 1 of 1" and all(caption.startswith("text_qa: ") for caption in captions)
    assert show("rejected", [], [], [])[0] == ["reasoning: What is number 30?", "text_qa: boat"]
    assert show("rejected", [], [], ["judge/wrong_answer"])[1].startswith("1 samples")


def test_clicked_sample_is_shown_and_its_text_stays_text(address, driver):
    driver.get(address)
    (first, *_) = wait_for(lambda: driver.find_elements("css selector", ".thumbnail-item, .gallery-item button"))
    first.click()
    wait_for(lambda: "onerror" in driver.find_element("css selector", "body").text)
    assert "What is number 0?" in driver.find_element("css selector", "body").text
    assert driver.execute_script("return window.wasHarmed") is None
    assert not driver.find_elements("css selector", "img[src*='127.0.0.1:9/']")
    for radio in driver.find_elements("css selector", "input[type=radio][value=rejected]"):
        driver.execute_script("arguments[0].click()", radio)
    wait_for(lambda: "2 samples, page 1 of 1" in driver.find_element("css selector", "body").text)


def test_folder_without_a_run_is_an_error(tmp_path, capsys):
    assert main(["synthesize", "view", str(tmp_path / "missing")]) == 1
    assert main(["synthesize", "view", str(tmp_path)]) == 1
    assert "holds no shards" in capsys.readouterr().err
