"""Rewording by a language model: what says the same is kept, what changes a fact is not."""

import asyncio
import re

import pytest

from fusion_vlm.synthesis.failures import RunError
from fusion_vlm.synthesis.filters.rewrites import check_rewrite, find_asked, list_facts
from fusion_vlm.synthesis.kinds.exact import ExactQuestions, make_scene_sample
from fusion_vlm.synthesis.models.call_cache import CallCache
from fusion_vlm.synthesis.models.chat import ChatClient
from fusion_vlm.synthesis.models.load_prompts import load_prompts
from fusion_vlm.synthesis.models.rewrite import Rewrite, split_turn
from fusion_vlm.synthesis.options import Options
from fusion_vlm.synthesis.sample import Turn

from .stub_endpoint import StubEndpoint


MORE = Turn(
    "Is the value for Boston higher than that for Tampa?", "Yes, Boston is at 45 and Tampa is at 30.", "yes_no"
)
MANY = Turn("How many red circles are left of the star?", "There are three red circles.", "count")
READ = Turn("What is the title of the chart?", 'The title is "Trees Planted".', "text")


@pytest.mark.parametrize(
    ("exact", "question", "answer"),
    [
        (MORE, "In this chart, is Boston higher than Tampa?", "Yes. Boston stands at 45, and Tampa at 30."),
        (MANY, "Could you count how many red circles are left of the star?", "I see 3 red circles."),
        (
            MANY,
            "Please tell me: how many red circles can be seen left of the star?",
            "In the picture, three red circles.",
        ),
        (READ, "Which title does this graph have?", 'It has the title "Trees Planted".'),
        (READ, "Read the title.", 'The title says "Trees Planted".'),
    ],
)
def test_other_words_for_the_same_facts_pass(exact, question, answer):
    assert check_rewrite(exact, question, answer) is None


@pytest.mark.parametrize(
    ("exact", "question", "answer", "rule"),
    [
        (MORE, "Is Tampa higher than Boston?", MORE.answer, "order"),
        (MORE, "Is Boston lower than Tampa?", MORE.answer, "lower"),
        (MORE, "Is Boston not higher than Tampa?", MORE.answer, "not"),
        (MORE, "Is Boston higher than Miami?", MORE.answer, "miami"),
        (MORE, "What value has Boston, higher than Tampa?", MORE.answer, "asked"),
        (MORE, "Is Boston higher than Tampa?", "No, Boston is at 45 and Tampa is at 30.", "no"),
        (MORE, "Is Boston higher than Tampa?", "Boston is at 45 and Tampa is at 30.", "yes"),
        (MORE, "Is Boston higher than Tampa?", "Yes, Boston is at 54 and Tampa is at 30.", "54"),
        (MORE, "Is Boston higher than Tampa?", "Yes, Boston is at 30 and Tampa is at 45.", "order"),
        (MORE, "Is Boston, at 45, higher than Tampa?", MORE.answer, "45"),
        (MORE, "Is Boston higher than Tampa?", "Yes, Boston is at 45 and Tampa is at 30 on a sunny day.", "sunny"),
        (MANY, "How many blue circles are left of the star?", MANY.answer, "blue"),
        (MANY, "How many red circles are right of the star?", MANY.answer, "right"),
        (MANY, "How many red squares are left of the star?", MANY.answer, "square"),
        (MANY, "Are red circles left of the star?", MANY.answer, "asked"),
        (MANY, "Where are red circles left of the star?", MANY.answer, "asked"),
        (MANY, MANY.question, "There are four red circles.", "4"),
        (MANY, MANY.question, "There are red circles.", "3"),
        (MANY, MANY.question, "There are at least three red circles.", "least"),
        (MANY, MANY.question, "I cannot see the image, but there are three red circles.", "refusal"),
        (MANY, MANY.question, "", "empty"),
        (MANY, MANY.question + "\nA. 3", MANY.answer, "form"),
        (READ, "What is the heading of the chart?", READ.answer, "heading"),
        (READ, READ.question, 'The title is "Planted Trees".', "order"),
        (READ, READ.question, "The title is Trees Planted.", '"'),
        (READ, "What is the title in the given description of the chart?", READ.answer, "source_text"),
    ],
)
def test_a_changed_fact_does_not_pass(exact, question, answer, rule):
    assert rule in (check_rewrite(exact, question, answer) or "passed")


def test_facts_are_all_words_that_are_not_neutral():
    assert list_facts("There are three red circles, please.") == ["3", "red", "circle"]
    assert list_facts("The grey one costs $4.50 or 12%") == ["gray", "cost", "$4.50", "or", "12%"]
    assert find_asked("Look at Boston only. Which is more, A or B?") == "either"
    assert find_asked("Read the title.") == find_asked("What is the title?") == "thing"


def test_no_number_color_place_or_negation_is_neutral():
    words = "red blue left right above below behind between more less not no yes or only all two 5 large first before"
    assert len(list_facts(words)) == len(words.split())


def rewrite(samples, change, tmp_path):
    """Let a stub answer with what `change` makes of each exact pair, and return the samples."""

    def answer(content, request):
        text = request["messages"][1]["content"]
        pairs = re.findall(r"^\d+\. Question: (.*)\nAnswer(?: \(keep it\))?: (.*)$", text, re.MULTILINE)
        return {"turns": [dict(zip(("question", "answer"), change(*pair), strict=True)) for pair in pairs]}

    async def run():
        with StubEndpoint(change=answer) as stub:
            client = ChatClient(stub.url, "stub", CallCache(tmp_path / "calls.sqlite"))
            stage = Rewrite(client, load_prompts())
            found = [await stage(sample) for sample in samples]
            await client.close()
            return found

    return asyncio.run(run())


def make(kind="chart", number=12):
    return [ExactQuestions()(make_scene_sample(index, kind, 3)) for index in range(number)]


def test_good_rewordings_replace_the_exact_words(tmp_path):
    before, after = make(), rewrite(make(), lambda q, a: (f"Please answer this: {q}", a), tmp_path)
    for exact, sample in zip(before, after, strict=True):
        assert sample.reason is None and sample.source["rewrite"]["model"] == "stub"
        assert sample.source["rewrite"]["reworded"] == len(sample.turns) and sample.source["rewrite"]["kept"] == {}
        for turn, old in zip(sample.turns, exact.turns, strict=True):
            # Options and hints stay, letter by letter.
            assert turn.question == f"Please answer this: {old.question}" and turn.answer == old.answer
            assert split_turn(turn)[1] == split_turn(old)[1] and turn.options == old.options


@pytest.mark.parametrize(
    "change",
    [
        lambda q, a: (q.replace("?", " in 2031?") if "?" in q else f"{q} 2031", a),
        lambda q, a: (f"If it were not so: {q}", f"Maybe {a}"),
        lambda q, a: ("What is it?", a),
    ],
)
def test_bad_rewordings_leave_the_exact_words_and_say_so(change, tmp_path):
    before, after = make(), rewrite(make(), change, tmp_path)
    for exact, sample in zip(before, after, strict=True):
        assert sample.turns == exact.turns and sample.reason is None
        assert sample.source["rewrite"]["reworded"] == 0
        assert set(sample.source["rewrite"]["kept"]) == {str(index + 1) for index in range(len(sample.turns))}


def test_short_answers_are_not_the_models_to_change(tmp_path):
    before, after = make(), rewrite(make(), lambda q, a: (q, "Yes" if a == "No" else "No"), tmp_path)
    assert [sample.turns for sample in after] == [sample.turns for sample in before]


def test_a_call_without_an_answer_keeps_the_exact_words(tmp_path):
    samples = rewrite(make(number=1), lambda q, a: (q, ""), tmp_path)  # not in the schema, at no try
    assert samples[0].turns == make(number=1)[0].turns and samples[0].reason is None
    assert "invalid_answer" in samples[0].source["rewrite"]["kept"]["all"]


def test_options_that_do_not_go_together_are_refused():
    for options, message in (
        ({"rewrite": True}, "--rewrite needs a language model"),
        ({"rewrite": True, "model": "m", "judge_model": "j"}, "leave out"),
        ({"model": "m", "kinds": ("chart",)}, "chart exactly"),
    ):
        with pytest.raises(RunError, match=message):
            Options(num=1, **options)
    assert "chart" in Options(num=1).kinds and "chart" in Options(num=1, model="m", rewrite=True).kinds
    assert "chart" not in Options(num=1, model="m").kinds
