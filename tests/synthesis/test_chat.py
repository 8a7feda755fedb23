"""The client of the language model against an endpoint that misbehaves in every way, and the stages that use it."""

import asyncio
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from fusion_vlm.synthesis.failures import RunError
from fusion_vlm.synthesis.kinds.contrasts import split_sides
from fusion_vlm.synthesis.kinds.table import MODEL_KINDS, find_kind
from fusion_vlm.synthesis.models.answers import (
    MAX_CHARACTERS,
    ContrastDescription,
    Description,
    questions_type,
    verdicts_on,
)
from fusion_vlm.synthesis.models.call_cache import CallCache
from fusion_vlm.synthesis.models.chat import MAX_REPLY_BYTES, ChatClient
from fusion_vlm.synthesis.models.judge import Judge
from fusion_vlm.synthesis.models.load_prompts import load_prompts
from fusion_vlm.synthesis.models.retries import CallError
from fusion_vlm.synthesis.models.stages import AskFromDescription, Describe
from fusion_vlm.synthesis.sample import MAX_REASON, Sample, Turn

from .stub_endpoint import FAULTS, StubEndpoint, answer


ANSWER_TYPES = {kind: questions_type(find_kind(kind).answer) for kind in MODEL_KINDS}
PASSING_FAULTS = [fault for fault in FAULTS if fault != "401"]


@contextmanager
def connect(stub: StubEndpoint, path, **settings):
    """Connect a client with short waits."""
    cache = CallCache(path / "calls.jsonl")
    settings = {"timeout": 3.0, "num_sdk_tries": 2, "backoff": 0.01} | settings
    yield ChatClient(stub.url, "stub", cache, **settings)
    cache.close()


def ask(client: ChatClient, *texts: str, seed: int = 1, answer_type=Description):
    """Ask all texts at once; return the answers, and errors in place of those that failed."""

    async def gather():
        calls = [client.ask("Describe.", text, answer_type, seed) for text in texts]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await client.close()
        return answers

    return asyncio.run(gather())


@pytest.mark.parametrize("fault", PASSING_FAULTS)
def test_a_fault_that_passes_leaves_no_trace(fault, tmp_path):
    with StubEndpoint() as stub, connect(stub, tmp_path) as client:
        expected = ask(client, "a boat")
    (tmp_path / "calls.jsonl").unlink()
    with StubEndpoint({fault: 1.0}, max_faults=1) as stub, connect(stub, tmp_path) as client:
        assert ask(client, "a boat") == expected
        # The retry is the same request, so a deterministic endpoint answers the same as without the fault.
        assert (sum(stub.requested.values()), len(stub.requested)) == (2, 1)


@pytest.mark.parametrize(
    ("fault", "rule", "num_requests"),
    [
        ("429", "http_429", 2),
        ("500", "http_500", 2),
        ("503_html", "http_503", 2),
        ("reset", "connection", 2),
        ("cut_body", "not_a_completion", 4),
        ("wrong_content_type", "not_a_completion", 4),
        ("null_content", "not_a_completion", 4),
        ("error_body", "error_body", 4),
        ("no_choices", "no_choices", 4),
        ("cut_content", "invalid_answer", 4),
        ("wrong_shape", "invalid_answer", 4),
        ("slow_loris", "timeout", 2),
    ],
)
def test_a_fault_that_stays_is_one_failed_call_with_its_reason(fault, rule, num_requests, tmp_path):
    with StubEndpoint({fault: 1.0}, max_faults=99) as stub, connect(stub, tmp_path, timeout=0.7) as client:
        start = time.monotonic()
        (error,) = ask(client, "a boat")
    assert isinstance(error, CallError) and error.rule == rule
    assert str(error).startswith(f"{rule}: ")
    assert sum(stub.requested.values()) == num_requests
    assert time.monotonic() - start < 5


def test_a_wrong_content_type_around_a_right_answer_is_no_fault(tmp_path):
    with StubEndpoint(content_type="text/plain") as stub, connect(stub, tmp_path) as client:
        (found,) = ask(client, "a boat")
    assert isinstance(found, Description)


def test_an_answer_that_is_not_valid_is_tried_again_with_another_seed(tmp_path):
    def change(content, request):
        return content if request["seed"] != 1 else {"description": " "}

    with StubEndpoint(change=change) as stub, connect(stub, tmp_path) as client:
        (found,) = ask(client, "a boat")
    assert found.description.strip()
    assert [request["seed"] == 1 for request in stub.bodies.values()] == [True, False]
    # Invalid answers were paid for, too.
    cache = CallCache(tmp_path / "calls.jsonl")
    for tokens, number in ((cache.tokens, 1), (cache.invalid_tokens, 2)):
        assert tokens == {"stub": {"calls": number, "prompt_tokens": 100 * number, "completion_tokens": 20 * number}}


def test_retry_after_is_waited_for(tmp_path):
    with StubEndpoint({"429": 1.0}, retry_after=0.6) as stub, connect(stub, tmp_path, timeout=5) as client:
        start = time.monotonic()
        ask(client, "a boat")
    assert time.monotonic() - start >= 0.6


def test_finished_calls_are_not_asked_again_by_a_later_process(tmp_path):
    with StubEndpoint() as stub:
        with connect(stub, tmp_path) as client:
            first = ask(client, "a boat", "a lamp")
        with connect(stub, tmp_path) as client:
            assert ask(client, "a boat", "a lamp") == first
        assert stub.requested.total() == 2
        for settings, seed in (({"temperature": 0.1}, 1), ({}, 2)):
            with connect(stub, tmp_path, **settings) as client:
                ask(client, "a boat", seed=seed)
        assert stub.requested.total() == 4


def test_a_call_is_stored_before_the_next_thing_happens(tmp_path):
    with StubEndpoint() as stub, connect(stub, tmp_path) as client:
        ask(client, "a boat")
        # Read by another connection while this one is open, as after a kill.
        assert CallCache(tmp_path / "calls.jsonl").tokens["stub"]["calls"] == 1


def test_an_answer_that_is_not_valid_is_not_asked_for_again_by_a_later_process(tmp_path):
    def change(content, request):
        return content if "good" in request["messages"][1]["content"] else {}

    with StubEndpoint(change=change) as stub:
        with connect(stub, tmp_path, concurrency=1) as client:
            first = ask(client, "bad", "good")
        num_requests = stub.requested.total()
        with connect(stub, tmp_path, concurrency=1) as client:
            again = ask(client, "bad", "good")
        assert stub.requested.total() == num_requests == 5
    assert str(again[0]) == str(first[0]) and again[1] == first[1]
    assert CallCache(tmp_path / "calls.jsonl").invalid_tokens["stub"]["calls"] == 4


def test_answers_of_an_endpoint_that_never_worked_are_asked_for_again(tmp_path):
    with StubEndpoint({"wrong_shape": 1.0}, max_faults=99) as stub, connect(stub, tmp_path) as client:
        (error,) = ask(client, "a boat")
    assert error.rule == "invalid_answer"
    with StubEndpoint() as stub, connect(stub, tmp_path) as client:
        client.sdk.base_url = stub.url
        (found,) = ask(client, "a boat")
    assert isinstance(found, Description)


def test_a_line_that_a_kill_has_cut_loses_one_call(tmp_path):
    cache = CallCache(tmp_path / "calls.jsonl")
    for key in "abc":
        cache.put(key, "stub", f'"{key}"', (1, 1))
    cache.close()
    whole = (tmp_path / "calls.jsonl").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "calls.jsonl").write_bytes(whole[:length])
        cache = CallCache(tmp_path / "calls.jsonl")
        found = [cache.get(key) for key in "abc"]
        num_lines = whole[: length + 1].count(b"\n")  # a line may lack its end
        assert found == ['"a"', '"b"', '"c"'][:num_lines] + [None] * (3 - num_lines)
        cache.put("d", "stub", '"d"', (1, 1))
        cache.close()
        cache = CallCache(tmp_path / "calls.jsonl")
        assert [cache.get(key) for key in "abcd"] == [*found, '"d"']
        cache.close()


def test_threads_share_a_cache(tmp_path):
    cache = CallCache(tmp_path / "calls.jsonl")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: cache.put(f"{number}", "stub", '"x"' * 500, (1, 2)), range(400)))
    cache.close()
    again = CallCache(tmp_path / "calls.jsonl")
    assert all(again.get(f"{number}") == '"x"' * 500 for number in range(400))
    assert again.tokens == cache.tokens == {"stub": {"calls": 400, "prompt_tokens": 400, "completion_tokens": 800}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calls.jsonl"]  # no log beside it, no lock


@pytest.mark.parametrize(
    ("length", "rule"), [(MAX_CHARACTERS + 1, "invalid_answer"), (2 * MAX_REPLY_BYTES, "too_large")]
)
def test_an_answer_that_is_too_long_is_neither_used_nor_kept(length, rule, tmp_path):
    text = json.dumps({"description": "boat " * (length // 5 + 1)})
    with StubEndpoint(text=text) as stub, connect(stub, tmp_path) as client:
        (error,) = ask(client, "a boat")
    assert error.rule == rule and len(str(error)) < 500
    assert (tmp_path / "calls.jsonl").stat().st_size < 2000


def test_a_remark_of_the_judge_is_cut(tmp_path):
    content = {"verdicts": [{"correct": False, "problem": "boat " * MAX_CHARACTERS}]}
    sample = make_sample(description="a boat", turns=[Turn("What is it?", "A boat.", "scene")])
    sample = run(Judge(FakeClient(content), {"judge": "Judge."}), sample)
    assert sample.reason.startswith("judge/wrong_answer") and len(sample.reason) == MAX_REASON


def test_calls_in_flight_are_limited(tmp_path):
    with StubEndpoint(latency=0.1) as stub, connect(stub, tmp_path, concurrency=3) as client:
        answers = ask(client, *(f"boat {number}" for number in range(20)))
    assert len({found.description for found in answers}) == 20
    assert stub.max_in_flight == 3


def test_a_server_that_refuses_the_key_stops_the_run(tmp_path):
    with StubEndpoint({"401": 1.0}) as stub, connect(stub, tmp_path) as client:
        (error,) = ask(client, "a boat")
    assert isinstance(error, RunError) and "OPENAI_API_KEY" in str(error)


def test_a_server_that_is_not_there_stops_the_run(tmp_path):
    with StubEndpoint() as stub:
        pass
    with connect(stub, tmp_path) as client:
        (error,) = ask(client, "a boat")
        assert isinstance(error, RunError) and stub.url in str(error)
    with connect(stub, tmp_path) as client, pytest.raises(RunError, match="Nothing answers"):
        asyncio.run(client.check())


@pytest.mark.parametrize("fault", ["500", "wrong_shape"])
def test_too_many_failed_calls_in_a_row_stop_the_run(fault, tmp_path):
    settings = {"max_failures": 3, "concurrency": 1}
    with StubEndpoint({fault: 1.0}, max_faults=99) as stub, connect(stub, tmp_path, **settings) as client:
        errors = ask(client, "a boat", "a lamp", "a dog")
    assert [type(error) for error in errors] == [CallError, CallError, RunError]
    assert "3 calls in a row failed" in str(errors[-1])


def test_failed_calls_between_others_do_not_stop_the_run(tmp_path):
    def change(content, request):
        return content if "good" in request["messages"][1]["content"] else {}

    settings = {"max_failures": 2, "concurrency": 1}
    with StubEndpoint(change=change) as stub, connect(stub, tmp_path, **settings) as client:
        answers = ask(client, "bad", "good", "bad again", "good again")
    assert [type(found) for found in answers] == [CallError, Description, CallError, Description]


@pytest.mark.parametrize(
    "content",
    [
        '{"description": "A boat.", "mood": "calm"}',
        '{"description": ["A boat."]}',
        '{"description": ""}',
        '{"description": "\\ud800"}',
        '"A boat."',
        "A boat.",
        '```json\n{"description": "A boat."}\n```',
    ],
)
def test_what_the_schema_does_not_allow_is_not_an_answer(content, tmp_path):
    with StubEndpoint(text=content) as stub, connect(stub, tmp_path, num_tries=1) as client:
        (error,) = ask(client, "a boat")
    assert isinstance(error, CallError) and error.rule in ("invalid_answer", "not_a_completion")


@pytest.mark.parametrize(
    "usage", [None, "many", {"prompt_tokens": "5"}, {"prompt_tokens": -1}, {"prompt_tokens": 1e9}]
)
def test_a_server_that_cannot_count_is_answered_for(usage, tmp_path):
    with StubEndpoint(usage=usage) as stub, connect(stub, tmp_path) as client:
        (found,) = ask(client, "a boat")
    assert isinstance(found, Description)
    assert CallCache(tmp_path / "calls.jsonl").tokens["stub"]["prompt_tokens"] == 0


def objects_in(schema):
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for part in schema.values():
            yield from objects_in(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from objects_in(part)


@pytest.mark.parametrize(
    "answer_type", [Description, ContrastDescription, verdicts_on(2), *dict.fromkeys(ANSWER_TYPES.values())]
)
def test_schemas_are_what_strict_servers_take(answer_type, tmp_path):
    with StubEndpoint() as stub, connect(stub, tmp_path) as client:
        ask(client, "a boat", answer_type=answer_type)
    (request,) = stub.bodies.values()
    assert request["response_format"]["type"] == "json_schema"
    schema = request["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert "$" not in json.dumps(schema)
    objects = list(objects_in(schema["schema"]))
    assert objects
    for part in objects:
        assert part["additionalProperties"] is False
        assert set(part["required"]) == set(part["properties"])


# --- stages ---------------------------------------------------------------------------------------------------------


class FakeClient:
    """Answers with the given contents in turn, and records the calls."""

    model = "fake"

    def __init__(self, *contents):
        self.contents, self.asked = list(contents), []

    async def ask(self, prompt, text, answer_type, seed, image=None):
        self.asked.append((prompt, text, seed))
        content = self.contents.pop(0)
        if isinstance(content, Exception):
            raise content
        return answer_type.model_validate(content)


def run(stage, sample: Sample) -> Sample:
    return asyncio.run(stage(sample))


def make_sample(kind: str = "short_conversation", number: int = 0, **values) -> Sample:
    return Sample(f"{kind}-{number}", kind, seed=5, caption="a boat", **values)


def test_there_is_a_prompt_for_every_kind():
    expected = {f"{stage}_{kind}" for stage in ("describe", "ask") for kind in MODEL_KINDS}
    expected |= {"judge", "judge_image", "rewrite"}
    assert load_prompts().keys() == expected
    assert len(set(load_prompts().values())) == len(expected)


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_the_json_that_a_prompt_shows_is_what_its_schema_asks_for(kind):
    description_type = ContrastDescription if find_kind(kind).has_two_images else Description
    for name, answer_type in ((f"describe_{kind}", description_type), (f"ask_{kind}", ANSWER_TYPES[kind])):
        prompt = load_prompts()[name]
        shown = json.JSONDecoder().raw_decode(prompt[prompt.index("{") :])[0]
        schema = {"response_format": {"json_schema": {"schema": answer_type.json_schema()}}, "messages": []}
        assert keys_of(shown) == keys_of(answer(schema))


def keys_of(value):
    """Return the keys of nested dicts, and of the first element of each list."""
    if isinstance(value, dict):
        return {name: keys_of(part) for name, part in value.items()}
    return [keys_of(value[0])] if isinstance(value, list) else None


def test_describe_writes_the_description_and_where_it_is_from():
    client = FakeClient({"description": "A red boat on a lake."})
    sample = run(Describe(client, load_prompts()), make_sample("caption_colour"))
    assert sample.description == "A red boat on a lake."
    assert sample.source["describe"] == {"model": "fake", "prompt": "describe_caption_colour.txt"}
    prompt, text, _ = client.asked[0]
    assert (prompt, text) == (load_prompts()["describe_caption_colour"], "a boat")


def test_describe_starts_from_the_exact_facts_where_there_are_some():
    client = FakeClient({"description": "A red boat."})
    run(Describe(client, load_prompts()), make_sample(description="There is one red boat."))
    assert client.asked[0][1] == "There is one red boat."


def test_a_contrast_is_described_side_by_side():
    client = FakeClient({"left": "A red boat.", "right": "A blue boat."})
    sample = run(Describe(client, load_prompts()), make_sample("contrast_short"))
    assert split_sides(sample.description) == ("A red boat.", "A blue boat.")


def test_a_failed_call_rejects_the_sample_with_its_reason():
    error = CallError("timeout", "no answer in 5 s")
    for stage in (Describe, AskFromDescription):
        sample = run(stage(FakeClient(error), load_prompts()), make_sample())
        assert sample.reason == f"{stage.name}/timeout: no answer in 5 s"


def test_seeds_differ_between_samples_and_stages_and_depend_on_nothing_else():
    seeds = []
    for number in (0, 1, 0):
        client = FakeClient({"description": "A boat."}, {"turns": [{"question": "What?", "answer": "A boat."}]})
        sample = run(Describe(client, load_prompts()), make_sample("caption_scene", number))
        run(AskFromDescription(client, load_prompts()), sample)
        seeds.append([seed for _, _, seed in client.asked])
    assert seeds[0] == seeds[2]
    assert len(set(seeds[0] + seeds[1])) == 4


def test_turns_have_the_type_of_the_question_or_of_the_kind():
    turns = [{"question": f"How many boats {n}?", "answer": "Two.", "type": "count"} for n in range(4)]
    sample = run(AskFromDescription(FakeClient({"turns": turns}), load_prompts()), make_sample("long_conversation"))
    assert sample.turns == [Turn(turn["question"], "Two.", "count") for turn in turns]
    for kind, expected in (("caption_text", "caption"), ("contrast_long", "difference"), ("text_qa", "text")):
        client = FakeClient({"turns": [{"question": "What?", "answer": "A boat."}]})
        sample = run(AskFromDescription(client, load_prompts()), make_sample(kind))
        assert [turn.type for turn in sample.turns] == [expected]


def test_the_letter_of_the_right_option_is_drawn():
    letters = Counter()
    for number in range(400):
        choice = {"question": "Which colour?", "correct": "red", "wrong": ["blue", "green", "pink"]}
        client = FakeClient({"turns": [choice]})
        (turn,) = run(AskFromDescription(client, load_prompts()), make_sample("multiple_choice", number)).turns
        assert turn.options["ABCD".index(turn.answer)] == "red"
        assert sorted(turn.options) == ["blue", "green", "pink", "red"] and turn.type == "multiple_choice"
        letters[turn.answer] += 1
    assert all(70 <= letters[letter] <= 130 for letter in "ABCD")


def test_a_missing_judge_is_not_available_and_no_pass():
    sample = run(Judge(None, load_prompts()), make_sample(turns=[Turn("What?", "A boat.", "scene")]))
    assert sample.scores == {"judge": None, "image_judge": None} and sample.reason is None


def test_the_judge_reads_all_and_rejects_what_is_wrong():
    turns = [Turn("Which colour?", "B", "multiple_choice", ["red", "blue"]), Turn("How many?", "Two", "count")]
    right, wrong = {"correct": True, "problem": ""}, {"correct": False, "problem": "there are three"}
    client = FakeClient({"verdicts": [right, wrong]})
    sample = run(Judge(client, load_prompts()), make_sample(description="Three blue boats.", turns=turns))
    assert sample.scores["judge"] == 0.5
    assert sample.reason == "judge/wrong_answer: turn 2, there are three"
    text = client.asked[0][1]
    assert all(part in text for part in ("Three blue boats.", "1. Question: Which", "B. blue", "Answer: B", "2. "))
    sample = run(Judge(FakeClient({"verdicts": [right, right]}), load_prompts()), make_sample(turns=turns))
    assert sample.scores["judge"] == 1 and sample.reason is None


@pytest.mark.parametrize("number", [0, 1, 3])
def test_verdicts_that_are_not_one_for_each_turn_are_no_answer(number):
    verdicts = {"verdicts": [{"correct": True, "problem": ""}] * number}
    with pytest.raises(ValueError, match="verdicts"):
        verdicts_on(2).model_validate(verdicts)


def test_a_judge_that_does_not_answer_is_no_pass():
    client = FakeClient(CallError("http_500", "out of memory"))
    sample = run(Judge(client, load_prompts()), make_sample(turns=[Turn("What?", "A boat.", "scene")]))
    assert sample.scores["judge"] is None and sample.reason.startswith("judge/http_500")


def test_the_stub_fills_every_schema():
    # The tests above prove nothing if the answers of the stub are not valid.
    for answer_type in (*ANSWER_TYPES.values(), verdicts_on(3)):
        request = {"response_format": {"json_schema": {"schema": answer_type.json_schema()}}, "messages": []}
        answer_type.model_validate(answer(request))
