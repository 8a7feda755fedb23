"""Rows of training data become the batches that the reference trains on."""

import io

import numpy as np
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from torch.utils.data import DataLoader, IterableDataset

from fusion_vlm.rows.forms import RowError
from fusion_vlm.rows.messages import to_messages
from fusion_vlm.training.collator import FusionDataCollator

from ..helpers import VARIANTS, make_messages
from ..test_parity import CASES, training_inputs
from ..tiny import random_image


GRID = {"latent_grid_sizes": [2]}


def text_row(question="Hello!", answer="Hi."):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def llava_row(image, *turns):
    names = ["human", "gpt"] * len(turns)
    return {
        "image": image,
        "conversations": [{"from": name, "value": turn} for name, turn in zip(names, turns, strict=False)],
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_labels_are_the_goldens(variant, case, goldens, processors):
    """Rows are in LLaVA's form, with the conversation of the reference."""
    golden = goldens[variant]
    row = {"conversations": golden.cases[case]["train_conversation"], "image": golden.image(case)}
    batch = FusionDataCollator(processors[variant], **GRID)([row])
    expected, labels = training_inputs(processors[variant], golden, case, num_latents=4)
    assert torch.equal(batch["labels"], labels)
    for name, value in expected.items():
        assert torch.equal(batch[name], value), name


def encode(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


FORMS = {
    "image in messages": lambda image, path: {
        "messages": make_messages(["What is it?", "A cat.", "Sure?", "Yes."], image)
    },
    "image column": lambda image, path: {
        "messages": make_messages(["What is it?", "A cat.", "Sure?", "Yes."]),
        "image": image,
    },
    "images column and a place for it": lambda image, path: {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?", "image": None}]},
            *make_messages(["What is it?", "A cat.", "Sure?", "Yes."])[1:],
        ],
        "images": [image],
    },
    "path": lambda image, path: llava_row(path, "<image>\nWhat is it?", "A cat.", "Sure?", "Yes."),
    "bytes": lambda image, path: llava_row(encode(image), "What is it?\n<image>", "A cat.", "Sure?", "Yes."),
    "datasets": lambda image, path: llava_row(
        {"bytes": encode(image), "path": None}, "What is it?", "A cat.", "Sure?", "Yes."
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_a_row_give_the_same_batch(form, processor, tmp_path):
    image = random_image(0)
    image.save(tmp_path / "image.png")
    collator = FusionDataCollator(processor, **GRID, image_folder=tmp_path)
    batch = collator([FORMS[form](image, "image.png"), text_row()])
    expected = collator([FORMS["image in messages"](image, None), text_row()])
    assert set(batch) == set(expected)
    for name in expected:
        assert torch.equal(batch[name], expected[name]), name
    assert batch["pixel_values"][0].any() and not batch["pixel_values"][1].any()
    answers = [processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    end = processor.end_of_turn_token
    assert answers == [f"A cat.{end}Yes.{end}", f"Hi.{end}"]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": "?"}, "keys"),
        (llava_row(random_image(0), "What?"), "an answer at the end"),
        (llava_row(None, "<image>\nWhat?", "It."), "none: expected an `image` column"),
        (llava_row(random_image(0), "<image><image>\nWhat?", "It."), "2 images"),
        (llava_row(random_image(0), "What?", "It.", "<image>\nAnd?", "That."), "Message 2 has the image"),
        (llava_row("missing.png", "What?", "It."), "missing.png"),
        (llava_row(b"no image", "What?", "It."), "not an image that Pillow reads"),
        (llava_row({"bytes": None, "path": None}, "What?", "It."), "expected a path"),
        (llava_row(5, "What?", "It."), "expected a path"),
        ({"messages": [*text_row()["messages"], {"role": "system", "content": "x"}]}, "at the beginning only"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "Turn 0"),
        (llava_row("https://example.com/a.png", "What?", "It."), "Download"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"messages": "Hello"}, "list of turns"),
        ({**text_row(), "image": random_image(0), "images": [random_image(1)]}, "2 images"),
    ],
)
def test_a_broken_row_is_named_with_the_reason(row, message, processor):
    with pytest.raises(RowError, match=rf"(?s)Row place 7: .*{message}"):
        FusionDataCollator(processor)([{**row, "source": "place 7"}])


def test_rows_without_columns_say_what_trainer_has_done(processor):
    with pytest.raises(RowError, match="remove_unused_columns=False"):
        FusionDataCollator(processor)([{}])


def drawn_sides(collator, num_batches=40):
    rows = [llava_row(random_image(0), "What?", "It.")]
    latents = collator.processor.latent_token_id
    return [int((collator(rows)["input_ids"] == latents).sum() ** 0.5) for _ in range(num_batches)]


def test_latent_grids_are_drawn_by_the_seed(processor):
    sides = drawn_sides(FusionDataCollator(processor, seed=1))
    assert set(sides) == {2, 4, 6, 8, 12}
    assert sides == drawn_sides(FusionDataCollator(processor, seed=1))
    assert sides != drawn_sides(FusionDataCollator(processor, seed=2))


def one_batch_rows(count: int = 8) -> list[dict]:
    """Each row is a batch of its own, so nothing but the epoch can change its grid."""
    return [text_row(f"What is {number}?") for number in range(count)]


def grids_by_epoch(loader, processor, num_epochs: int = 3, before_epoch=lambda epoch: None) -> list[list[int]]:
    grids = []
    for epoch in range(num_epochs):
        before_epoch(epoch)
        grids.append([int((batch["input_ids"] == processor.latent_token_id).sum()) for batch in loader])
    return grids


WORKERS = {
    "new": {"num_workers": 2},
    "persistent": {"num_workers": 2, "persistent_workers": True},
    "prefetching": {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 8},
    "spawned": {"num_workers": 1, "multiprocessing_context": "spawn"},
    "spawned and persistent": {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "spawn"},
    "forkserver": {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "forkserver"},
}


@pytest.fixture(scope="module")
def expected_grids(processor) -> list[list[int]]:
    """Without worker processes, in a loader that accelerate has prepared, as `Trainer` does."""
    loader = Accelerator(cpu=True).prepare(DataLoader(one_batch_rows(), collate_fn=FusionDataCollator(processor)))
    grids = grids_by_epoch(loader, processor)
    assert grids[0] != grids[1] != grids[2] != grids[0]
    return grids


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind == "spawned" else kind for kind in WORKERS]
)
def test_latent_grids_do_not_depend_on_the_workers(kind, processor, expected_grids):
    loader = DataLoader(one_batch_rows(), collate_fn=FusionDataCollator(processor), **WORKERS[kind])
    loader = Accelerator(cpu=True).prepare(loader)
    assert grids_by_epoch(loader, processor) == expected_grids


@pytest.mark.parametrize("kind", ["new", "persistent", "spawned and persistent"])
def test_latent_grids_after_a_resume(kind, processor, expected_grids):
    """`Trainer` resumes in the middle of an epoch with a separate loader for the rest of it."""
    loader = DataLoader(one_batch_rows(), collate_fn=FusionDataCollator(processor), **WORKERS[kind])
    loader = Accelerator(cpu=True).prepare(loader)
    rest = skip_first_batches(loader, 5)
    rest.set_epoch(1)
    assert grids_by_epoch(rest, processor, num_epochs=1) == [expected_grids[1][5:]]
    loader.set_epoch(2)
    assert grids_by_epoch(loader, processor, num_epochs=1) == expected_grids[2:]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(one_batch_rows())


def test_latent_grids_of_a_stream(processor, expected_grids):
    """The one worker persists; two would each have the whole of this stream."""
    options = {"num_workers": 1, "persistent_workers": True}
    loader = DataLoader(Stream(), collate_fn=FusionDataCollator(processor), **options)
    assert grids_by_epoch(Accelerator(cpu=True).prepare(loader), processor) == expected_grids


@pytest.mark.parametrize("kind", ["none", "new", "persistent"])
def test_latent_grids_in_a_custom_loop(kind, processor, expected_grids):
    """With a plain `DataLoader` they change with the epoch, and with `set_epoch` they equal those of `Trainer`."""
    collator = FusionDataCollator(processor)
    loader = DataLoader(one_batch_rows(), collate_fn=collator, **WORKERS.get(kind, {}))
    grids = grids_by_epoch(loader, processor)
    assert grids[0] != grids[1] != grids[2] != grids[0]
    collator = FusionDataCollator(processor)
    loader = DataLoader(one_batch_rows(), collate_fn=collator, **WORKERS.get(kind, {}))
    assert grids_by_epoch(loader, processor, before_epoch=collator.set_epoch) == expected_grids


def test_turns_that_do_not_fit_are_left_out_whole(processor):
    """Also from what the tower reads, and the last answer is cut."""
    image = random_image(0)
    first = ["What is it?", "A cat."]
    row = {"messages": make_messages([*first, "And what is beside it?", "A dog and a very long answer."], image)}
    whole = FusionDataCollator(processor, **GRID)([row])
    short = FusionDataCollator(processor, **GRID)([{"messages": make_messages(first, image)}])
    length = short["input_ids"].shape[1]

    batch = FusionDataCollator(processor, max_length=length + 2, **GRID)([row])
    for name in short:
        assert torch.equal(batch[name], short[name]), name

    length = whole["input_ids"].shape[1] - 3
    batch = FusionDataCollator(processor, max_length=length, **GRID)([row, text_row()])
    assert torch.equal(batch["input_ids"][0], whole["input_ids"][0, :length])
    assert torch.equal(batch["labels"][0], whole["labels"][0, :length])
    assert torch.equal(batch["question_input_ids"][0], whole["question_input_ids"][0])

    with pytest.raises(RowError, match="first answer begins after"):
        FusionDataCollator(processor, max_length=20, **GRID)([row])


def test_prompts_for_generation_end_before_the_last_answer(processor):
    rows = [
        {"messages": make_messages(["What?", "It.", "And?", "That."], random_image(0))},
        text_row(),
    ]
    batch = FusionDataCollator(processor, with_prompts=True, **GRID)(rows)
    prompts = batch["generation_inputs"]
    for row, labels, ids in zip(prompts["input_ids"], batch["labels"], batch["input_ids"], strict=True):
        prompt = row[row != processor.tokenizer.pad_token_id]
        answer = (labels != -100).nonzero().squeeze(1)
        breaks = (answer.diff() > 1).nonzero().squeeze(1)
        start = answer[breaks[-1] + 1] if len(breaks) else answer[0]
        assert torch.equal(prompt, ids[:start])


def test_arrays_are_images(processor):
    array = np.asarray(random_image(0))
    batch = FusionDataCollator(processor, **GRID)([llava_row(array, "What?", "It.")])
    expected = FusionDataCollator(processor, **GRID)([llava_row(random_image(0), "What?", "It.")])
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])


def test_messages_keep_what_was_said():
    row = llava_row(None, "  Hello <b>you</b> ", "Hi.")
    messages = to_messages({**row, "conversations": [{"from": "system", "value": "Be brief."}, *row["conversations"]]})
    assert [(message["role"], message["content"][0]["text"]) for message in messages] == [
        ("system", "Be brief."),
        ("user", "Hello <b>you</b>"),
        ("assistant", "Hi."),
    ]
