"""One check of messages: the processor, the handler, training and its check say the same of the same messages."""

import types

import pytest
import torch
from transformers import pipeline

from fusion_vlm.processing_fusion import normalize_messages
from fusion_vlm.rows.forms import RowError
from fusion_vlm.rows.messages import to_messages
from fusion_vlm.training.collator import FusionDataCollator

from .helpers import make_messages, needs_sanitizing, process
from .tiny import random_image


IMAGE = {"type": "image", "image": random_image(0)}


def text(value: str) -> dict:
    return {"type": "text", "text": value}


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


def assistant(*parts) -> dict:
    return {"role": "assistant", "content": list(parts)}


# What is no conversation, and what is said of it; in training, too, unless it is about the question to be answered.
WRONG = {
    "one message": (user(text("Hi")), "is one message, expected a list"),
    "nothing": ([], r"is \[\], expected a list of messages"),
    "text": ("Hi", "is 'Hi', expected a list of messages"),
    "message of text": (["Hi"], "Message 0 is 'Hi', expected a dict with `role` and `content`"),
    "no role": ([{"content": "Hi"}], "Message 0 is .*expected a dict with `role`"),
    "unknown role": ([{"role": "tool", "content": "Hi"}], "Message 0 is of the role 'tool', expected one of system"),
    "role in capitals": ([{"role": "User", "content": "Hi"}], "the role 'User'"),
    "no content": ([{"role": "user"}], "Message 0 has the content None"),
    "number": ([{"role": "user", "content": 5}], "Message 0 has the content 5"),
    "one part": ([{"role": "user", "content": text("Hi")}], "Put the part in a list"),
    "part of text": ([user("Hi")], "Message 0 has the part 'Hi'"),
    "video": ([user({"type": "video", "video": "a.mp4"})], "Message 0 has the part {'type': 'video'"),
    "null text": ([user(IMAGE, text(None))], "Message 0 has the text part .*None"),
    "text of another key": ([user(IMAGE, {"type": "text", "content": "Hi"})], "expected a text under `text`"),
    "late system": ([*make_messages(["Hi", "Yes"]), {"role": "system", "content": "x"}], "Message 2 .*beginning only"),
    "two answers": ([user(text("Hi")), assistant(text("A")), assistant(text("B"))], "Messages 1 and 2 are both of"),
    "two images": ([user(IMAGE, IMAGE, text("Hi"))], r"hold 2 images \(0, 0\), expected at most 1"),
    "images of two users": ([user(IMAGE), user(IMAGE, text("Hi"))], r"hold 2 images \(0, 1\)"),
    "late image": ([*make_messages(["Hi", "Yes"]), user(IMAGE, text("And?"))], "Message 2 has the image"),
    "image of the assistant": ([user(text("Hi")), assistant(IMAGE, text("A"))], "Message 1 has the image"),
    "two sources": ([user({"type": "image", "url": "a.png", "path": "b.png"})], "image part with 2 sources"),
    "half a character": ([user(text("\ud83d"))], "Message 0 holds half of a surrogate pair"),
    "role token": (
        [user(text("Is <|eot_id|> a role?")), assistant(text("A")), user(text("?"))],
        "Message 0 .user. holds the control token '<.eot_id.>'",
    ),
    "image token": (
        [user(text("What is <image>?")), assistant(text("A")), user(text("?"))],
        "the control token '<image>' as text",
    ),
    "token of an answer": (
        [user(text("Hi")), assistant(text("<|eot_id|>"))],
        "Message 1 .assistant. holds the control",
    ),
    "last of the assistant": (
        [user(text("Hi")), assistant(text("A"))],
        "The last message .1. is of the role 'assistant'",
    ),
    "no question": ([user(IMAGE)], "The last message .0. holds no text"),
    "blank question": ([user(IMAGE, text(" \n"))], "The last message .0. holds no text"),
    "system alone": ([{"role": "system", "content": "Be brief."}], "The last message .0. is of the role 'system'"),
}
QUESTIONS = ("last of the assistant", "no question", "blank question", "system alone")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_messages_are_named_by_the_processor(name, processor):
    messages, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        process(processor, messages)
    if isinstance(messages, list):
        with pytest.raises(ValueError, match=f"Conversation 1: .*{message}"):
            process(processor, [make_messages(["Fine?"]), messages])


@pytest.mark.parametrize(
    "name", [name for name in WRONG if name not in QUESTIONS and isinstance(WRONG[name][0], list)]
)
def test_training_says_the_same(name, processor):
    messages, message = WRONG[name]
    if "token" in name:  # the last message has to be an answer
        messages = messages[:2]
    if name == "nothing":
        message = "list of turns"
    with pytest.raises(RowError, match=rf"(?s)Row my file, line 7: .*({message})"):
        FusionDataCollator(processor)([{"messages": messages, "source": "my file, line 7"}])


def test_messages_of_a_user_in_a_row_are_one(processor):
    """Chat clients send an image and the question about it apart."""
    apart = process(processor, [user(IMAGE), user(text("What is it?"))])
    together = process(processor, [user(IMAGE, text("What is it?"))])
    assert all(torch.equal(apart[name], together[name]) for name in together)
    first, second = (
        normalize_messages([{"role": "user", "content": "A."}, {"role": "user", "content": "B?"}]),
        "A.\nB?",
    )
    assert first == [{"role": "user", "content": [text(second)]}]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([text("Look at"), IMAGE, text("and answer")], "Look at and answer"),
        ([text("Look at "), IMAGE, text("and answer")], "Look at and answer"),
        ([IMAGE, text("A caption."), text("Is it right?")], "A caption.\nIs it right?"),
        ([text("A caption.\n"), text("Is it right?")], "A caption.\nIs it right?"),
        ([text("Is it right?"), IMAGE], "Is it right?"),
        ([text(""), IMAGE, text("Is it right?")], "Is it right?"),
        ([IMAGE, text("  as it is \n")], "  as it is \n"),
    ],
)
def test_texts_around_an_image_are_joined(parts, expected):
    (message,) = normalize_messages([user(*parts)])
    assert message["content"][-1] == text(expected)
    assert [part["type"] for part in message["content"]] == ["image", "text"][IMAGE not in parts :]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image_url", "image_url": "a.png"},
        {"type": "image", "url": "a.png", "path": None},
        {"type": "image", "path": "a.png"},
        {"type": "image", "base64": "a.png", "text": None},
    ],
)
def test_forms_of_an_image_part(part):
    (message,) = normalize_messages([user(part, text("What?"))])
    assert message["content"][0] == {"type": "image", "image": "a.png"}


def test_conversations_that_are_allowed(processor):
    """A beginning by the assistant, extra keys, an answer that goes on, and text for rendering only."""
    process(processor, [assistant(text("Hello!")), user(IMAGE, text("What?"))])
    process(processor, [{"role": "system", "content": "Be brief."}, {**user(text("Hi")), "name": "Ann"}])
    answered = [user(IMAGE, text("What?")), assistant(text("It is"))]
    prompt = processor.apply_chat_template(answered, continue_final_message=True)
    assert prompt.endswith("It is")
    assert processor.apply_chat_template(answered).endswith(processor.end_of_turn_token)


def test_message_objects_of_client_libraries(processor):
    """Messages, parts and whole conversations with attributes instead of keys."""
    part = types.SimpleNamespace(type="image", image=IMAGE["image"], text=None)
    message = types.SimpleNamespace(role="user", content=[part, text("What?")], tool_calls=None)
    expected = process(processor, [user(IMAGE, text("What?"))])
    for conversation in ([message], [types.SimpleNamespace(messages=[message])]):
        inputs = process(processor, conversation)
        assert all(torch.equal(inputs[name], expected[name]) for name in expected)


@needs_sanitizing
def test_control_tokens_stay_text_on_request(processor):
    messages = [user(IMAGE, text("Is <|eot_id|> or <image> a word?"))]
    inputs = processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        sanitize_control_tokens=True,
    )
    question = processor.tokenizer.decode(inputs["question_input_ids"][0], skip_special_tokens=True)
    assert question == "Is <|eot_id|> or <image> a word?"


def test_pipeline_says_the_same(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = pipeline("image-text-to-text", model=str(tmp_path), trust_remote_code=True)
    options = {"max_new_tokens": 2, "return_full_text": False}
    with pytest.raises(ValueError, match="the control token '<image>' as text"):
        pipe(text=[user(IMAGE, text("What is <image>?"))], **options)
    with pytest.raises(ValueError, match="holds no text"):
        pipe(text=[user(IMAGE)], **options)
    apart, together = ([user(IMAGE), user(text("What?"))], [user(IMAGE, text("What?"))])
    assert pipe(text=apart, **options)[0]["generated_text"] == pipe(text=together, **options)[0]["generated_text"]


# Rows of training data ----------------------------------------------------------------------------------------------


def test_image_mark_in_messages_is_a_place(processor):
    """The commonest form outside of LLaVA: `<image>` in the text, and a column of images."""
    expected = to_messages({"messages": [user(IMAGE, text("What?")), assistant(text("A"))]})
    for content in ("<image>\nWhat?", "What?\n<image>", [text("<image>What?")], [{"type": "image"}, text("What?")]):
        row = {"messages": [{"role": "user", "content": content}, assistant(text("A"))], "images": [IMAGE["image"]]}
        assert [message["content"][-1] for message in to_messages(row)] == [
            message["content"][-1] for message in expected
        ]
        batch, direct = (
            FusionDataCollator(processor, latent_grid_sizes=[2])([row]),
            process(processor, expected, add_generation_prompt=False),
        )
        assert torch.equal(batch["input_ids"], direct["input_ids"])


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([("human", "<image>\nWhat?"), ("gpt", "the <image> tag")], "Message 1 .assistant. holds <image>"),
        ([("human", 5), ("gpt", "A")], "Turn 0 has the value 5, expected a text"),
        ([("human", None), ("gpt", "A")], "Turn 0 has the value None, expected a text"),
        ([("bot", "Hi"), ("gpt", "A")], "Turn 0 is .*expected a dict with `from`"),
        ([("human", "Hi"), ("gpt", "A"), ("gpt", "B")], "Messages 1 and 2 are both of the role 'assistant'"),
        ([("human", "Hi")], "expected a question and an answer at the end"),
    ],
)
def test_wrong_turns_of_llava_are_named(turns, message):
    row = {"image": IMAGE["image"], "conversations": [{"from": role, "value": value} for role, value in turns]}
    with pytest.raises(RowError, match=message):
        to_messages(row)
