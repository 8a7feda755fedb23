"""
Serve a page to talk with a FUSION model about an image.

Answers appear as they are written and can be stopped, and a picture shows which parts of the image an answer came from.

    pip install -e ".[demo]"
    python examples/demo.py MODEL

MODEL is a converted folder or a Hub id; the default is the small model of this repository.
"""

import argparse
import io
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty

import gradio as gr
import torch
from PIL import Image
from transformers import TextIteratorStreamer

from fusion_vlm.commands.options import add_model_options
from fusion_vlm.hub.loading import limit_new_tokens, load, process
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor
from fusion_vlm.visualization import DPI, answer_occlusion, draw_occlusion, shown_image


EXAMPLES_DIR = Path(__file__).resolve().parent
SMALL_MODEL = EXAMPLES_DIR.parent / "small_model" / "model"
# Scenes that synthesis/ drew, with questions as in the training data: the small model answers no others.
EXAMPLES = (
    ("stars.png", "How many red objects are there? Answer with a single word or phrase."),
    ("beach.png", "What colour is each shape?"),
    ("shapes.png", "Where is each shape?"),
)
INTRODUCTION = """# FUSION: {name}
Choose an image and ask about it. The vision encoder reads the image together with your question."""
SMALL_MODEL_NOTE = """
This small model was trained on drawn scenes alone: flat shapes on plain grounds or painted places. It names the color,
the shape and the place of an object and counts up to six. Photographs mean nothing to it."""
EMPTY_CHAT = "Try an example, or choose an image and ask about it."

WITH_IMAGE, WITHOUT_IMAGE = "Ask about the image", "Ask without an image"
WAITING = "*Reading the image and the question ...*"
TOO_LITTLE_MEMORY = "The GPU has too little memory for this: choose smaller grids or clear the conversation."
LATENTS_HELP = (
    "Side of the grid of latent tokens, which read the image again for each question. More see finer detail."
)
GRID_HELP = "Side of the grid of image tokens in the prompt. A smaller grid is faster, and keeps less of the image."
LENGTH_HELP = "The answer ends here at the latest. A word is one to three tokens."

# The box for questions belongs to the browser: an output of the server would undo what is typed meanwhile. So the
# browser itself takes the question out of the box, unless an answer is on its way.
# Gradio goes on with an empty question then, and its end must not count as that of the answer.
TAKE_QUESTION = """(question) => {
    if (window.isAnswering || !question.trim()) {
        window.numRefused = (window.numRefused || 0) + 1;
        return ["", question];
    }
    window.isAnswering = true;
    window.asked = question;
    return [question, ""];
}"""
END_ANSWER = """() => {
    if (window.numRefused) window.numRefused -= 1;
    else window.isAnswering = false;
}"""
PUT_BACK = "(question) => question || window.asked"
BEGIN_ANSWER = "(...values) => { window.isAnswering = true; return values; }"
BEGIN = "(...values) => { window.isAnswering = false; window.numRefused = 0; return values; }"
# A column of the page is as wide as the window on a telephone, where examples and picture have to shrink.
STYLE = """
.example img { width: 2.5rem; height: 2.5rem; object-fit: cover; }
.example { justify-content: flex-start; text-align: left; }
footer { display: none !important; }
"""


@dataclass
class Conversation:
    """
    What a user and the model have said; each browser tab has its own.

    Args:
        image (`PIL.Image.Image`, *optional*)
        turns (`list[dict[str, str]]`): role and content, a text.
        is_stopped (`bool`): the answer ends at the next token.
        is_over (`bool`): another conversation has begun in the tab.
        inputs (mapping of `str` to `torch.Tensor`): the model's inputs of the last question.
        answer_ids (`torch.Tensor` of shape `(tokens,)`): the last answer.
    """

    image: Image.Image | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    is_stopped: bool = False
    is_over: bool = False
    inputs: Mapping[str, torch.Tensor] | None = None
    answer_ids: torch.Tensor | None = None


class ConversationOver(Exception):
    """Raised to end the work for a conversation that is over."""


def stream_answer(
    model: FusionForConditionalGeneration,
    processor: FusionProcessor,
    conversation: Conversation,
    question: str,
    latent_grid_size: int,
    image_grid_size: int,
    max_new_tokens: int,
) -> Iterator[str]:
    """
    Yield the answer to a question as far as it is written, until the answer ends or the conversation is stopped.

    Without a new token, the same text is yielded again each second. At the end, the conversation has the model's
    inputs and the ids of the answer.

    Raises:
        ValueError: if the conversation has become too long for the model.
        RuntimeError: whatever stops the generation, such as too little memory.
    """
    turns = [*conversation.turns, {"role": "user", "content": question}]
    messages = [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    if conversation.image is not None:
        messages[0]["content"].insert(0, {"type": "image", "image": conversation.image})
    grid_sizes = {"latent_grid_size": latent_grid_size, "image_grid_size": image_grid_size}
    inputs = process(processor, messages, grid_sizes).to(model.device)
    max_new_tokens = limit_new_tokens(model.config, inputs, max_new_tokens)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=1, skip_special_tokens=True)

    def is_stopped(input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), conversation.is_stopped, device=input_ids.device)

    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "stopping_criteria": [is_stopped]}
    executor = ThreadPoolExecutor(1)
    run = executor.submit(model.generate, **inputs, **options, streamer=streamer)
    run.add_done_callback(lambda _: streamer.end())  # an error must end the loop below, too
    text = ""
    try:
        for piece in read_pieces(streamer):
            text += piece
            yield text
        output = run.result()  # raises what went wrong
    finally:  # also if the page is closed, which closes this generator
        conversation.is_stopped = True
        executor.shutdown(wait=False)
    conversation.inputs, conversation.answer_ids = inputs, output[0, inputs["input_ids"].shape[1] :]


def read_pieces(streamer: TextIteratorStreamer) -> Iterator[str]:
    """Yield what a streamer yields, and an empty text whenever its timeout passes without a token."""
    while True:
        try:
            yield next(streamer)
        except Empty:
            yield ""
        except StopIteration:
            return


def read_image(preprocess, payload) -> Image.Image | None:
    """Return what Gradio makes of an upload. Raise an error of one line if the file is no image."""
    try:
        image = preprocess(payload)
        if image is not None:
            image.load()  # Pillow would read the pixels later
        return image
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise gr.Error("This file cannot be read as an image.", print_exception=False) from error


def begin(image: Image.Image | None, conversation: Conversation):
    """Return a new conversation, an empty chat, no picture, and the box for questions with a new placeholder."""
    conversation.is_stopped = conversation.is_over = True
    placeholder = WITHOUT_IMAGE if image is None else WITH_IMAGE
    return Conversation(image), [], HIDDEN, gr.update(interactive=False), gr.update(placeholder=placeholder)


HIDDEN = gr.update(value=None, visible=False)


def begin_example(path: str, question: str, conversation: Conversation):
    """Return an example's image and question, and what `begin` returns."""
    image = Image.open(path).convert("RGB")
    return image, question, *begin(image, conversation)


def ask(model, processor, question: str, conversation: Conversation, *sizes: int):
    """Yield the chat while the answer grows, the picture and the button for it; `sizes` as in `stream_answer`."""
    question = question.strip()
    if not question:
        yield gr.skip(), gr.skip(), gr.skip()
        return
    conversation.is_stopped = False
    turns = [*conversation.turns, {"role": "user", "content": question}]
    # A picture shows the last answer, so a new question hides the picture.
    yield [*turns, {"role": "assistant", "content": WAITING}], HIDDEN, gr.update(interactive=False)
    answer, start = "", time.monotonic()
    try:
        for answer in stream_answer(model, processor, conversation, question, *sizes):
            if conversation.is_over:  # what is yielded now would appear in the new conversation
                yield gr.skip(), gr.skip(), gr.skip()
                return
            content = answer or f"{WAITING} {time.monotonic() - start:.0f} s"
            yield [*turns, {"role": "assistant", "content": content}], gr.skip(), gr.skip()
    except (ValueError, RuntimeError) as error:
        yield conversation.turns, gr.skip(), gr.skip()  # as before
        raise gr.Error(message_of(error), print_exception=False) from error
    conversation.turns = [*turns, {"role": "assistant", "content": answer}]
    yield conversation.turns, gr.skip(), gr.update(interactive=conversation.image is not None)


def message_of(error: Exception) -> str:
    """Return one line about an error of the model."""
    return TOO_LITTLE_MEMORY if isinstance(error, torch.OutOfMemoryError) else str(error).partition("\n")[0]


def stop(conversation: Conversation):
    conversation.is_stopped = True


def draw_picture(model, processor, conversation: Conversation, progress=gr.Progress()):  # noqa: B008
    """Return the picture of what the last answer loses when parts of the image are blurred."""
    if conversation.image is None or conversation.answer_ids is None:
        return HIDDEN

    def report(num_done: int, num_forwards: int):
        if conversation.is_over:
            raise ConversationOver
        progress((num_done, num_forwards), desc="Blurring the image part by part", unit="parts")

    question, answer = (turn["content"] for turn in conversation.turns[-2:])
    try:
        occlusion = answer_occlusion(model, conversation.inputs, [conversation.answer_ids], progress=report)
    except ConversationOver:
        return HIDDEN
    except (ValueError, RuntimeError) as error:
        raise gr.Error(message_of(error), print_exception=False) from error
    image = shown_image(processor, conversation.image)
    figure, file = draw_occlusion(image, [question], [answer], occlusion, has_image=False), io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, bbox_inches="tight")
    return gr.update(value=Image.open(file), visible=True)


def make_options(config, image_processor) -> list[gr.Slider]:
    """Return the sliders, folded under a heading."""
    with gr.Accordion("Options", open=False):
        return [
            gr.Slider(
                1,
                config.max_latent_grid_size,
                image_processor.latent_grid_size,
                step=1,
                label="Latent grid",
                info=LATENTS_HELP,
            ),
            gr.Slider(
                1,
                config.num_patches_per_side,
                image_processor.image_grid_size,
                step=1,
                label="Image grid",
                info=GRID_HELP,
            ),
            gr.Slider(1, 1024, 256, step=1, label="Longest answer in tokens", info=LENGTH_HELP),
        ]


def make_examples() -> dict[gr.Button, tuple[str, str]]:
    """Return a button for each example, with the path of its image and its question."""
    gr.Markdown("**Examples**")
    buttons = {}
    for name, question in EXAMPLES:
        path = str(EXAMPLES_DIR / "images" / name)
        buttons[gr.Button(question, icon=path, size="sm", elem_classes="example")] = (path, question)
    return buttons


@dataclass
class Widgets:
    """What the events of the page read and change."""

    conversation: gr.State
    asked: gr.Textbox  # the question on its way to the model
    image: gr.Image
    examples: dict[gr.Button, tuple[str, str]]
    chat: gr.Chatbot
    picture: gr.Image
    question: gr.Textbox
    ask_button: gr.Button
    stop_button: gr.Button
    clear_button: gr.Button
    picture_button: gr.Button
    options: list[gr.Slider]


def make_page(model: FusionForConditionalGeneration, processor: FusionProcessor) -> gr.Blocks:
    """Build the page, not yet served. All that belongs to a user is in a `Conversation`."""
    introduction = INTRODUCTION.format(name=Path(model.name_or_path).name)
    if Path(model.name_or_path).resolve() == SMALL_MODEL:
        introduction += SMALL_MODEL_NOTE
    with gr.Blocks(title="FUSION", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown(introduction)
        connect(lay_out(model, processor), model, processor)
    return page


def lay_out(model: FusionForConditionalGeneration, processor: FusionProcessor) -> Widgets:
    """Place the widgets: on a telephone one below the other, in the order of the code."""
    widgets = {"conversation": gr.State(Conversation()), "asked": gr.Textbox(visible=False)}
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            image = gr.Image(label="Image", type="pil", image_mode=None, sources=["upload", "clipboard"], height=260)
            image.preprocess = partial(read_image, image.preprocess)
            widgets["image"], widgets["examples"] = image, make_examples()
        with gr.Column(scale=5, min_width=300):
            with gr.Row():
                widgets["chat"] = gr.Chatbot(
                    label="Conversation",
                    height=None,
                    min_height=200,
                    max_height=420,
                    buttons=[],
                    placeholder=EMPTY_CHAT,
                    scale=3,
                    min_width=280,
                )
                widgets["picture"] = gr.Image(
                    label="Where it looked",
                    show_label=False,  # on a telephone the label would cover the question
                    visible=False,
                    interactive=False,
                    height=300,
                    scale=2,
                    min_width=280,
                    buttons=["fullscreen"],
                )
            widgets["picture_button"] = gr.Button("Show where it looked", size="sm", interactive=False)
            widgets["question"] = gr.Textbox(
                label="Question", show_label=False, placeholder=WITHOUT_IMAGE, autofocus=True
            )
            with gr.Row():
                widgets["ask_button"] = gr.Button("Ask", variant="primary", min_width=80)
                widgets["stop_button"] = gr.Button("Stop", min_width=80)
                widgets["clear_button"] = gr.Button("Clear", min_width=80)
            widgets["options"] = make_options(model.config, processor.image_processor)
    return Widgets(**widgets)


def connect(page: Widgets, model: FusionForConditionalGeneration, processor: FusionProcessor):
    """Say what happens when a button is pressed."""
    begun = [page.conversation, page.chat, page.picture, page.picture_button, page.question]
    answer = {
        "fn": partial(ask, model, processor),
        "inputs": [page.asked, page.conversation, *page.options],
        "outputs": [page.chat, page.picture, page.picture_button],
        "show_progress": "hidden",
        "trigger_mode": "multiple",  # an example may be pressed again before its answer has ended
        "concurrency_limit": 4,  # further users wait
        "concurrency_id": "ask",
    }
    sending = [page.question.submit, page.ask_button.click]
    taking = gr.on(sending, None, page.question, [page.asked, page.question], js=TAKE_QUESTION)
    asking = [taking.then(**answer, api_name="ask")]
    for button, example in page.examples.items():
        beginning = button.click(
            partial(begin_example, *example),
            page.conversation,
            [page.image, page.asked, *begun],
            cancels=asking[0],
            js=BEGIN_ANSWER,
            show_progress="hidden",
            api_visibility="private",
        )
        asking.append(beginning.success(**answer, api_visibility="private"))
    for event in asking:
        event.failure(None, page.question, page.question, js=PUT_BACK)
        event.then(None, js=END_ANSWER)
    page.stop_button.click(stop, page.conversation, queue=False)
    draw = partial(draw_picture, model, processor)
    # The progress is shown on the picture, which has to be visible for that.
    showing = page.picture_button.click(lambda: gr.update(visible=True), None, page.picture, show_progress="hidden")
    drawing = showing.then(draw, page.conversation, page.picture, api_name="picture", concurrency_limit=1)
    ending = [page.image.input, page.image.clear, page.clear_button.click, page.chat.clear]
    options = {"cancels": [*asking, drawing], "show_progress": "hidden", "js": BEGIN}
    beginning = gr.on(ending, begin, [page.image, page.conversation], begun, **options)
    beginning.failure(lambda: None, None, page.image)  # an image that cannot be read is not shown either


def launch(page: gr.Blocks, host: str, port: int | None, share: bool = False) -> str:
    """Start to serve the page and return its address; `port` None is any free port."""
    _, address, public_address = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        css=STYLE,
        max_file_size="20mb",
    )
    return public_address or address


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(SMALL_MODEL), metavar="MODEL")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for the whole network")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="make a public address through Gradio's servers")
    add_model_options(parser)
    args = parser.parse_args()
    try:
        page = make_page(*load(args.model, dtype=args.dtype, device=args.device, four_bit=args.four_bit))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    print(f"The page: {launch(page, args.host, args.port, args.share)}", flush=True)
    page.block_thread()


if __name__ == "__main__":
    main()
