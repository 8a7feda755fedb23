"""The card: what was checked and what was not, licenses, sheets of pictures, near duplicates, named filters."""

import io
import sys
import types

import pytest
from huggingface_hub import DatasetCard
from PIL import Image, ImageDraw

from fusion_vlm.synthesis.browse import SampleIndex
from fusion_vlm.synthesis.card import list_checks, make_card, set_license
from fusion_vlm.synthesis.connections import connect
from fusion_vlm.synthesis.counts import Counts
from fusion_vlm.synthesis.failures import RunError
from fusion_vlm.synthesis.filters.duplicates import reject_near_duplicates
from fusion_vlm.synthesis.filters.named import load_filter
from fusion_vlm.synthesis.generate import generate
from fusion_vlm.synthesis.kinds.table import MODEL_KINDS
from fusion_vlm.synthesis.licenses import find_data_license, note_license
from fusion_vlm.synthesis.options import Options
from fusion_vlm.synthesis.part_images import PartImages, encode_image
from fusion_vlm.synthesis.run_folder import RunFolder
from fusion_vlm.synthesis.sample import Sample, Turn
from fusion_vlm.synthesis.sheet import Tile, write_sheet


class OnlyRight:
    """A filter of a user: it rejects by the argument, and sees the image."""

    def __init__(self, kind: str = ""):
        self.kind = kind

    def __call__(self, sample: Sample, image: Image.Image) -> str | None:
        return f"unwanted: {image.width} pixels, expected none" if sample.kind == self.kind else None


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Make a run of exact scenes, of which a filter rejects one kind, and its card."""
    module = types.ModuleType("filters_of_the_user")
    module.OnlyRight = OnlyRight
    sys.modules["filters_of_the_user"] = module
    folder = tmp_path_factory.mktemp("runs") / "run"
    name = "filters_of_the_user:OnlyRight"
    options = Options(
        36, seed=2, kinds=MODEL_KINDS, filters=(f"{name}=text_qa",), image_size=128, min_image_distance=1
    )
    generate(options, RunFolder(folder, 36))
    yield folder
    del sys.modules["filters_of_the_user"]


def test_a_filter_of_the_user_rejects_and_is_named_in_the_card(run_folder):
    card = (run_folder / "README.md").read_text()
    assert "| `filters_of_the_user:OnlyRight` | run text_qa; 3 rejected |" in card
    assert "| OnlyRight/unwanted | 3 |" in card
    assert "| unsafe images | **not run** |" in card and "| personal data in the texts | **not run** |" in card
    assert "hashes differ in 1 bits or more" in card


def test_sheets_are_small_pngs_that_the_card_shows(run_folder):
    card = (run_folder / "README.md").read_text()
    for name in ("samples.png", "rejected.png"):
        assert f"({name})" in card
        with Image.open(run_folder / name) as sheet:
            assert sheet.format == "PNG" and sheet.width > 184
        assert (run_folder / name).stat().st_size < 500_000


def test_the_largest_sheet_stays_below_its_bound(tmp_path):
    noise = encode_image(Image.effect_noise((400, 300), 90).convert("RGB"), "png")
    tiles = [Tile(noise, ["kind", "Q: " + "word " * 40]) for _ in range(24)]
    assert write_sheet(tiles, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size < 1_500_000
    assert not write_sheet([], tmp_path / "sheet.png") and not (tmp_path / "sheet.png").exists()


def test_rejects_for_safety_are_on_no_sheet(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fusion_vlm.synthesis.filters.named.find_class", lambda name: lambda: lambda sample, image: "porn: 0.9"
    )
    load_filter.cache_clear()
    generate(Options(12, filters=("unsafe_images",), image_size=128), RunFolder(tmp_path / "run", 12))
    load_filter.cache_clear()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| unsafe images | run; 12 rejected |" in card
    assert not (tmp_path / "run" / "rejected.png").exists() and "rejected.png" not in card


def test_license_is_set_in_a_finished_card_and_the_rest_stays(run_folder):
    before = DatasetCard.load(run_folder / "README.md")
    set_license(run_folder, "cc-by-4.0")
    after = DatasetCard.load(run_folder / "README.md")
    assert (before.data.license, after.data.license) == ("other", "cc-by-4.0")
    assert after.text == before.text
    assert after.data.configs == before.data.configs


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("black-forest-labs/FLUX.1-dev", "non-commercial"),
        ("black-forest-labs/FLUX.1-schnell", "Apache 2.0"),
        ("meta-llama/Llama-3.1-70B-Instruct", "Built with Llama"),
        ("Llama-3.3-70B", "Built with Llama"),
        ("meta-llama/Meta-Llama-3-8B", "do not allow"),
        ("Qwen/Qwen3-32B", None),
    ],
)
def test_models_with_terms_for_their_output_have_a_note(model, words):
    note = note_license(model)
    assert note is None if words is None else words in note


def test_card_of_a_run_with_models_has_the_notes_and_the_license_of_the_captions(tmp_path):
    folder = tmp_path / "captions"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n# Captions\n")
    (folder / "captions.txt").write_text("a ball\n")
    assert find_data_license(str(folder / "captions.txt")) == find_data_license(str(folder)) == "cc-by-sa-4.0"
    assert find_data_license(str(tmp_path)) is None
    models = {"model": "Llama-3.1-70B", "image_model": "black-forest-labs/FLUX.1-dev", "images": "flux"}
    options = Options(8, captions=str(folder / "captions.txt"), **models)
    card = make_card(Counts(), [], {"license": "mit"}, options, {})
    assert "license: mit" in card and "cc-by-sa-4.0" in card
    assert "- Llama-3.1-70B: The Llama Community License" in card and "FLUX.1-dev Non-Commercial" in card
    checks = dict(list_checks(Counts(), options))
    assert set(checks.values()) == {"**not run**"} and len(checks) == 6


def test_near_duplicates_within_a_part_are_rejected_in_order(tmp_path):
    images, samples = PartImages(tmp_path), []
    for index, (left, noise) in enumerate([(20, 0), (20, 1), (70, 0), (20, 2)]):
        image = Image.new("RGB", (128, 128), "white")
        ImageDraw.Draw(image).rectangle((left, 20, left + 40, 90), "navy")
        ImageDraw.Draw(image).point((noise, noise), "black")
        sample = Sample(f"s{index}", "reasoning", 0, image=f"s{index}.png", turns=[Turn("What?", "A", "text")])
        images.write(sample.image, encode_image(image, "png"))
        samples.append(sample)
    samples[0].reject("judge", "wrong_answer: turn 1")  # what is rejected is no original
    reject_near_duplicates(samples, images, 4)
    assert [sample.reason for sample in samples[1:3]] == [None, None]
    assert samples[3].reason == "near_duplicates/near_duplicate: 0 bits from s1, expected at least 4"


def test_a_filter_that_cannot_be_loaded_stops_the_run_before_any_work():
    for text, message in (("unsafe_images", "unsafe_images=MODEL"), ("personal_data=NOTHING", "pip|finds no|model")):
        with pytest.raises(RunError, match=message):
            connect(Options(10, filters=(text,)), None)


def test_personal_data_is_found_and_not_repeated():
    pytest.importorskip("presidio_analyzer", reason="pip install 'fusion-vlm[checks]'")
    check = load_filter("personal_data", "")
    for text, entity in (("Write to joe@example.com.", "email_address"), ("Call 212-555-0143!", "phone_number")):
        sample = Sample("s", "text_qa", 0, turns=[Turn("What does it say?", text, "text")])
        assert check(sample, None) == f"{entity}: in the answer 1, expected none"
    assert check(Sample("s", "text_qa", 0, caption="24 red balls, 1 at 12:30"), None) is None


def test_unsafe_images_are_what_the_labels_of_a_classifier_say(tmp_path):
    from transformers import CLIPImageProcessor, ViTConfig, ViTForImageClassification

    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**tiny, image_size=16, patch_size=8, id2label={0: "normal", 1: "nsfw"}, label2id={})
    ViTForImageClassification(config).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(
        tmp_path
    )
    check, sample = load_filter("unsafe_images", str(tmp_path)), Sample("s", "text_qa", 0)
    image = Image.effect_noise((20, 20), 90)
    for bias, is_rejected in ((-50.0, False), (50.0, True)):
        check.classify.model.classifier.bias.data[1] = bias
        reason = check(sample, image)
        assert (reason is not None) == is_rejected
        assert sample.scores["unsafe_images"] == pytest.approx(float(is_rejected), abs=1e-3)
    assert reason == "nsfw: 1.000, expected at most 0.5"


def test_index_finds_by_kind_type_and_reason_and_reads_with_images(run_folder):
    index = SampleIndex(run_folder)
    assert index.reasons == ["OnlyRight/unwanted"]
    assert len(index.find()) == 33 and len(index.find(is_kept=False)) == 3
    assert len(index.find(False, reasons=["other/reason"])) == 0
    found = index.read(index.find(kinds=["reasoning"]))
    assert [shown.sample.kind for shown in found] == ["reasoning"] * 3
    letters = index.read(index.find(types=["multiple_choice"]))
    assert letters and all("multiple_choice" in {turn.type for turn in each.sample.turns} for each in letters)
    backwards = index.read(index.find()[::-1])
    assert [shown.sample.id for shown in backwards] == [shown.sample.id for shown in index.read(index.find())][::-1]
    (reject, *_) = index.read(index.find(is_kept=False))
    assert reject.sample.kind == "text_qa" and Image.open(io.BytesIO(reject.image)).size == (128, 128)
    with pytest.raises(ValueError, match="holds no shards"):
        SampleIndex(run_folder / "parts")


def test_index_reads_webdataset_too(tmp_path):
    generate(Options(12, image_size=128, shard_format="webdataset"), RunFolder(tmp_path / "run", 12))
    index = SampleIndex(tmp_path / "run")
    (shown,) = index.read(index.find(kinds=["text_qa"]))
    assert shown.sample.kind == "text_qa" and shown.image
