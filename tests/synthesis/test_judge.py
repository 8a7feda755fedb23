"""Two judges, errors that are planted, and what the verdicts say about the judges."""

import asyncio
import base64
import io
import json
import random
from collections import Counter

import pytest
from PIL import Image

from fusion_vlm.synthesis.agreement import compute_kappa, describe_verdicts, find_interval, list_verdicts
from fusion_vlm.synthesis.connections import Connections
from fusion_vlm.synthesis.failures import RunError
from fusion_vlm.synthesis.generate import generate
from fusion_vlm.synthesis.models.chat import CallError
from fusion_vlm.synthesis.models.judge import Judge
from fusion_vlm.synthesis.models.load_prompts import load_prompts
from fusion_vlm.synthesis.models.planted import GROUPS, plant_error
from fusion_vlm.synthesis.options import Options
from fusion_vlm.synthesis.run_folder import RunFolder
from fusion_vlm.synthesis.sample import Sample, Turn
from fusion_vlm.synthesis.shards import read_accepted, read_rejects

from .stub_endpoint import StubEndpoint


TURNS = [Turn("How many?", "Two red boats.", "count"), Turn("Is it there?", "Yes", "yes_no")]


class Watcher:
    """A judge that answers by a function of the text, and records what it was given."""

    def __init__(self, is_correct=lambda number, text: True):
        self.model, self.is_correct, self.given = "watcher", is_correct, []

    async def ask(self, prompt, text, answer_type, seed, image=None):
        self.given.append((prompt, text, image))
        number = text.count("Question: ")
        verdicts = [{"correct": self.is_correct(index, text), "problem": "no"} for index in range(number)]
        return answer_type.model_validate({"verdicts": verdicts})


def judge(text_judge, image_judge=None, plant_share=0.0, number=0) -> Sample:
    sample = Sample(f"s{number}", "long_conversation", seed=3, description="Two red boats.", turns=list(TURNS))
    stage = Judge(text_judge, load_prompts(), image_judge, lambda sample: b"picture", plant_share)
    return asyncio.run(stage(sample))


def test_the_judge_of_the_image_sees_it_and_not_the_description():
    text_judge, image_judge = Watcher(), Watcher()
    sample = judge(text_judge, image_judge)
    ((prompt, text, image),) = image_judge.given
    assert image == b"picture" and "Description" not in text and "Two red boats." in text
    assert prompt == load_prompts()["judge_image"]
    assert "Description: Two red boats." in text_judge.given[0][1] and text_judge.given[0][2] is None
    assert sample.source["verdicts"] == {"judge": [True, True], "image_judge": [True, True]}
    assert sample.scores == {"judge": 1.0, "image_judge": 1.0}


def test_both_judge_a_sample_that_one_rejects():
    sample = judge(Watcher(lambda number, text: number > 0), Watcher(lambda number, text: number == 0))
    assert sample.reason == "judge/wrong_answer: turn 1, no"
    assert sample.source["verdicts"] == {"judge": [False, True], "image_judge": [True, False]}
    sample = judge(Watcher(), Watcher(lambda number, text: False))
    assert sample.reason == "judge/wrong_answer_in_image: turn 1, no"
    assert list(list_verdicts(sample)) == ["both/10", "both/10"]
    assert judge(None, Watcher()).scores == {"judge": None, "image_judge": 1.0}


def test_planted_errors_are_judged_beside_the_sample():
    """The sample keeps its right answers and passes; only the copy has the error."""
    counts = Counter()
    for number in range(200):
        lenient, strict = Watcher(), Watcher(lambda place, text: "Two red boats." in text and "Answer: Yes" in text)
        sample = judge(lenient, strict, plant_share=0.5, number=number)
        assert sample.turns == TURNS and sample.reason is None
        counts.update(list_verdicts(sample))
        planted = sample.source.get("planted")
        assert len(lenient.given) == (1 if planted is None else 2)
        if planted:
            assert planted["answer"] not in ("Two red boats.", "Yes") and planted["answer"] in lenient.given[1][1]
    num = counts["planted/judge/1"]
    assert 70 <= num <= 130 and counts["planted/image_judge/0"] == num
    assert counts["both/11"] == 400


def test_a_planted_error_that_fails_to_be_judged_rejects_nothing():
    class Failing(Watcher):
        async def ask(self, *args):
            if self.given:
                raise CallError("timeout", "late")
            return await super().ask(*args)

    sample = judge(Failing(), plant_share=1.0)
    assert sample.reason is None and "judge" not in sample.source["planted"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", {"No"}),
        ("No, the ball is blue.", {"Yes, the ball is blue."}),
        ("3", {"2", "4"}),
        ("There are 0.", {"There are 1."}),
        ("To the left.", {"To the right."}),
        ("It is grey.", {f"It is {color}." for color in GROUPS[1] if color != "gray"}),
        ("A harbor.", {None}),
    ],
)
def test_a_planted_error_is_wrong(answer, expected):
    turns = [plant_error(Turn("What?", answer, "scene"), random.Random(seed)) for seed in range(100)]
    assert {turn and turn.answer for turn in turns} == expected
    choice = Turn.from_options("What?", ["red", "blue", "pink"], 1)
    assert {plant_error(choice, random.Random(seed)).answer for seed in range(40)} == {"A", "C"}


def test_statistics_are_those_of_the_definitions():
    pairs = [(1, 1, 40), (1, 0, 10), (0, 1, 5), (0, 0, 45)]
    by_chance = 0.5 * 0.45 + 0.5 * 0.55
    assert compute_kappa(pairs) == pytest.approx((0.85 - by_chance) / (1 - by_chance))
    low, high = find_interval(3, 20)
    assert (low, high) == pytest.approx((0.052369, 0.360420), abs=1e-5)  # Wilson, by hand
    counts = Counter({"both/11": 40, "both/10": 10, "both/01": 5, "both/00": 45, "planted/judge/1": 3})
    counts["planted/judge/0"] = 17
    agreement, planted = describe_verdicts(counts)
    assert "0.850 of 100 answers, Cohen's kappa 0.700" in agreement
    assert "the judge of the text accepts: 3 of 20, 0.150 (95 % interval 0.052 to 0.360)" in planted
    assert "not defined" in describe_verdicts(Counter({"both/11": 4}))[0]
    assert describe_verdicts(Counter()) == []


def test_run_with_both_judges_and_the_card_that_says_so(tmp_path):
    """Through the client: the image comes in the request, as the API takes it."""

    def change(content, request):
        if "verdicts" in content and isinstance(request["messages"][1]["content"], list):
            content["verdicts"][0]["correct"] = hash(request["seed"]) % 2 == 0
        return content

    with StubEndpoint(change=change) as stub:
        options = Options(12, model="m", judge_model="j", image_judge_model="vlm", plant_share=1.0)
        connections = Connections(llm=stub.url)
        generate(options, RunFolder(tmp_path / "run", 12), connections)
        seen = [request for request in stub.bodies.values() if request["model"] == "vlm"]
    head, text = seen[0]["messages"][1]["content"]
    kind, _, data = head["image_url"]["url"].partition(";base64,")
    assert (head["type"], kind, text["type"]) == ("image_url", "data:image/webp", "text")
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (336, 336)
    card = (tmp_path / "run" / "README.md").read_text()
    rejects = list(read_rejects(tmp_path / "run"))
    assert rejects and {reject.rejected_by for reject in rejects} == {("judge", "wrong_answer_in_image")}
    assert f"| answers, by a judge that sees the image | vlm; {len(rejects)} rejected |" in card
    assert "Cohen's kappa" in card and "by a judge of the text | j; 0 rejected |" in card
    assert all("verdicts" in sample.source for sample, _ in read_accepted(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "done.json").read_text())["kept"] == 12 - len(rejects)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plant_share": 0.1, "model": "m"}, "--plant-errors is for judges"),
        ({"plant_share": 2.0, "model": "m", "judge_model": "j"}, "expected 0 to 1"),
        ({"image_judge_model": "vlm"}, "--judge-sees-image"),
        ({"min_image_distance": 65}, "expected 1 to 64"),
        ({"filters": ("nothing",)}, "no filter 'nothing'. Expected module:Class or one of: personal_data"),
        ({"filters": ("personal_data", "personal_data=PERSON")}, "named twice"),
        ({"filters": ("fusion_vlm.none:Filter",)}, "cannot be loaded"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(RunError, match=message):
        Options(10, **options)
