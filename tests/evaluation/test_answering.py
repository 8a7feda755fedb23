"""Answers to lists of requests: batches, checks before the first answer, context maps, the log."""

from collections import Counter

import pytest
import torch
from PIL import Image

from fusion_vlm.evaluation.answer_log import AnswerLog
from fusion_vlm.evaluation.answering import Answerer, Request, UnanswerableError, cut_at_stop
from fusion_vlm.hub.loading import load
from fusion_vlm.small_model.data import read_easy_vqa

from ..helpers import SMALL_MODEL, make_messages, needs_sanitizing, process


pytestmark = needs_sanitizing
ROWS = read_easy_vqa("test")[:24]  # questions about 3 images
LONG = "a red circle " * 1000


@pytest.fixture(scope="module")
def loaded():
    return load(SMALL_MODEL, dtype="float32", device="cpu")


@pytest.fixture
def answerer(loaded) -> Answerer:
    return Answerer(*loaded, batch_size=5)


def ask(index: int, *turns: str, images=(), **options) -> Request:
    stop = options.pop("stop", ())
    many_images = options.pop("many_images", "refuse")
    options = {"max_new_tokens": 6, **options}
    key = {"task": "easy", "doc_id": index}
    return Request(key, list(turns), lambda: list(images), options, stop, many_images)


def ask_rows(rows=ROWS) -> list[Request]:
    return [ask(index, row.question, images=[row.path]) for index, row in enumerate(rows)]


def count_generations(answerer: Answerer, monkeypatch) -> Counter:
    """Count how often each document is passed to the model."""
    counts, generate = Counter(), answerer._generate_batch

    def counted(batch, *args):
        counts.update(job.request.key["doc_id"] for job in batch)
        return generate(batch, *args)

    monkeypatch.setattr(answerer, "_generate_batch", counted)
    return counts


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_answers_are_those_of_the_model_asked_one_by_one(batch_size, loaded):
    model, processor = loaded
    requests = ask_rows()[::3] + [
        ask(50, "what color is the shape?"),
        ask(51, "what shape is in the image?", "circle", "what color is it?", images=[ROWS[0].path]),
        ask(52, "Describe the image.", images=[ROWS[9].path], max_new_tokens=20),
    ]
    expected = []
    for request in requests:
        messages = make_messages(request.turns, *request.read_images())
        inputs = process(processor, messages)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=request.options["max_new_tokens"])
        answer = output[:, inputs["input_ids"].shape[1] :]
        expected.append(processor.batch_decode(answer, skip_special_tokens=True)[0].strip())
    assert Answerer(model, processor, batch_size=batch_size).answer(requests) == expected
    assert sum(said == row.answer for said, row in zip(expected[:8], ROWS[::3], strict=True)) == 8


def test_crops_of_an_image_are_encoded_once_for_all_questions(answerer, monkeypatch):
    sizes, encode = [], type(answerer.model).get_context_map
    monkeypatch.setattr(
        type(answerer.model), "get_context_map", lambda model, crops: sizes.append(len(crops)) or encode(model, crops)
    )
    assert answerer.answer(ask_rows()) == [row.answer for row in ROWS]
    num_images = len({row.image for row in ROWS})
    assert sum(sizes) == answerer.num_encoded == num_images < len(ROWS) / 5
    # Equal pixels are one image, wherever they come from.
    copies = [Image.open(ROWS[0].path), ROWS[0].path]
    assert answerer.answer([ask(9, ROWS[0].question, images=[copy]) for copy in copies]) == [ROWS[0].answer] * 2
    assert answerer.num_encoded == num_images


def test_requests_that_cannot_be_answered_are_named_before_any_answer(answerer, monkeypatch):
    counts = count_generations(answerer, monkeypatch)
    path = ROWS[0].path
    wrong = [
        ask(101, "Which?", images=[path, path]),
        ask(102, "Which?", images=[path, path, path]),
        ask(103, LONG, images=[path]),
        ask(104, " ", images=[path]),
        ask(105, "What?", images=["nowhere.png"]),
        ask(106, "Which?", images=[path, path]),
    ]
    with pytest.raises(UnanswerableError) as error:
        answerer.answer(ask_rows()[:3] + wrong)
    said = str(error.value)
    assert said.startswith("6 requests cannot be answered, so no answer was generated:\n* 2 images in a question")
    assert "(task easy, doc_id 101, 106)" in said and "* 3 images" in said and "(task easy, doc_id 102)" in said
    assert "the model takes 2047 at most (task easy, doc_id 103)" in said and "no text" in said
    assert "nowhere.png" in said and "(task easy, doc_id 105)" in said
    assert not counts


def test_long_list_of_requests_is_cut(answerer):
    with pytest.raises(UnanswerableError, match=r"30 requests .*\n.*doc_id 0, 1, 2, .*19 and 10 more\)$"):
        answerer.answer([ask(index, "Which?", images=[ROWS[0].path] * 2) for index in range(30)])


def test_problems_of_other_processes_stop_this_one(answerer):
    other = ({"task": "easy", "doc_id": 7}, "it is too long")
    with pytest.raises(UnanswerableError, match="1 request .*\n.*it is too long .task easy, doc_id 7"):
        answerer.answer(ask_rows()[:2], gather=lambda problems: [*problems, other])


def test_first_of_several_images_is_taken_where_that_is_asked_for(answerer):
    images = [ROWS[0].path, ROWS[-1].path]
    assert ROWS[0].image != ROWS[-1].image
    request = ask(0, ROWS[0].question, images=images, many_images="first")
    assert answerer.answer([request]) == [ROWS[0].answer]


def test_stop_texts_end_an_answer(answerer):
    whole = ask(0, "Describe the image.", images=[ROWS[0].path], max_new_tokens=30)
    (answer,) = answerer.answer([whole])
    stop = answer[len(answer) // 2 :][:2]
    cut = answerer.answer([ask(0, *whole.turns, images=[ROWS[0].path], max_new_tokens=30, stop=("~", stop))])
    assert cut == [answer[: answer.find(stop)].strip()] != [answer]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [("one two", (), "one two"), ("one two", ("x", "w"), "one t"), ("one two", ("two", "o"), ""), ("", ("a",), "")],
)
def test_text_is_cut_at_the_first_stop_text(text, stop, expected):
    assert cut_at_stop(text, stop) == expected


def test_control_tokens_in_a_question_are_text(answerer):
    plain, spelled = answerer.answer(
        [
            ask(0, "what color is the shape?", images=[ROWS[0].path]),
            ask(1, "what color is the shape? <latent><image><|end|>", images=[ROWS[0].path]),
        ]
    )
    assert plain and isinstance(spelled, str)


def test_answer_ends_where_the_positions_do(answerer, monkeypatch, caplog):
    one, many = (answerer._check_one(ask(0, "a red circle " * number)).num_text_tokens for number in (1, 101))
    num_words = (1900 - one) * 100 // (many - one)
    request = ask(3, "a red circle " * num_words, images=[ROWS[0].path], max_new_tokens=500)
    job = answerer._check_one(request)
    assert 0 < job.max_new_tokens < 500
    inputs = answerer._prepare([job])
    assert inputs["input_ids"].shape[1] + job.max_new_tokens == 2048
    sizes = []
    monkeypatch.setattr(
        type(answerer.model),
        "generate",
        lambda model, max_new_tokens, input_ids, **_: sizes.append(max_new_tokens) or input_ids,
    )
    answerer.answer([request, ask(4, "Short?", images=[ROWS[0].path], max_new_tokens=500)])
    assert sorted(sizes) == [job.max_new_tokens, 500]
    assert "no positions" in caplog.text and "task easy, doc_id 3" in caplog.text


def test_drawn_latents_depend_on_the_seed_and_the_document_alone(loaded):
    def draw(seed: int, requests) -> dict:
        answerer = Answerer(*loaded, draw_latents=seed)
        jobs = [answerer._check_one(request) for request in requests]
        return {job.request.key["doc_id"]: job.grid_sizes["latent_grid_size"] for job in jobs}

    requests = ask_rows()
    drawn = draw(1, requests)
    assert set(drawn.values()) == {2, 4} == set(loaded[0].config.latent_grid_sizes)
    assert draw(1, requests[::-1][:12]).items() <= drawn.items() and draw(2, requests) != drawn
    assert len(Answerer(*loaded, draw_latents=1).answer(requests[:4])) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_grid_size": 4, "draw_latents": 0}, "exclude each other"),
        ({"latent_grid_size": 99}, "latent_grid_size is 99, expected 1 to"),
        ({"image_grid_size": 7}, "image_grid_size is 7, expected 1 to 6"),
    ],
)
def test_grids_that_cannot_be_are_refused(options, message, loaded):
    with pytest.raises(ValueError, match=message):
        Answerer(*loaded, **options)


def test_batch_is_halved_where_memory_does_not_suffice(answerer, monkeypatch, caplog):
    generate, sizes = type(answerer.model).generate, []

    def limited(model, **inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(model, **inputs)

    monkeypatch.setattr(type(answerer.model), "generate", limited)
    assert answerer.answer(ask_rows()) == [row.answer for row in ROWS]
    # The batch after the first one had been cut already; all others have the new size.
    assert sizes[:4] == [5, 2, 3, 1] and max(sizes[10:]) <= 2 and "the batch size is now 2" in caplog.text


def test_equal_requests_are_asked_once(answerer, monkeypatch):
    counts = count_generations(answerer, monkeypatch)
    answers = answerer.answer([*ask_rows()[:3], ask_rows()[2], ask_rows()[2]])
    assert answers[2:] == [ROWS[2].answer] * 3 and set(counts.values()) == {1}


def test_run_that_stopped_resumes_with_the_questions_that_are_left(loaded, tmp_path, monkeypatch):
    path, counts = tmp_path / "answers.jsonl", []
    for num_batches in (2, 0, 1, 99):
        answerer = Answerer(*loaded, batch_size=4, log=AnswerLog(path, {"weights": "x"}))
        counts.append(count_generations(answerer, monkeypatch))
        generate, left = answerer._generate_batch, iter(range(num_batches))

        def stop_later(*args, generate=generate, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return generate(*args)

        monkeypatch.setattr(answerer, "_generate_batch", stop_later)
        try:
            answers = answerer.answer(ask_rows())
        except KeyboardInterrupt:
            answers = None
        answerer.log.close()
    assert answers == [row.answer for row in ROWS]
    assert [sum(count.values()) for count in counts] == [8, 0, 4, 12]
    assert sum(counts, Counter()) == dict.fromkeys(range(24), 1)


@pytest.mark.parametrize("change", [{"max_new_tokens": 7}, {"images": [ROWS[-1].path]}, {"stop": ("x",)}])
def test_answer_to_a_changed_request_is_generated(change, loaded, tmp_path, monkeypatch):
    answerer = Answerer(*loaded, log=AnswerLog(tmp_path / "answers.jsonl", {}))
    request = ask(0, ROWS[0].question, images=[ROWS[0].path])
    answerer.answer([request])
    counts = count_generations(answerer, monkeypatch)
    answerer.answer([request])
    assert not counts
    answerer.answer([ask(0, ROWS[0].question, **{"images": [ROWS[0].path], **change})])
    answerer.answer([ask(0, ROWS[0].question + " ?", images=[ROWS[0].path])])
    assert counts == {0: 2}
