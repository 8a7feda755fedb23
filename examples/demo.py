"""
A page to talk with a FUSION model about an image: answers appear as they are written, and can be stopped.

    pip install -e ".[demo]"
    python examples/demo.py MODEL

MODEL is a converted folder or a Hub id; the default is the small model that `train_tiny.py` writes.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import gradio as gr
import torch
from PIL import Image
from transformers import TextIteratorStreamer

from fusion_vlm.commands.main import add_model_options
from fusion_vlm.commands.model import limit_new_tokens, load, process
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor


EXAMPLES_DIR = Path(__file__).resolve().parent
# Scenes that synthesis/ drew, with questions as it asks them: the small model knows no others.
EXAMPLES = [
    [str(EXAMPLES_DIR / "images" / "stars.png"), "what color is the circle?"],
    [str(EXAMPLES_DIR / "images" / "beach.png"), "What colour is each shape?"],
    [str(EXAMPLES_DIR / "images" / "shapes.png"), "Where is each shape?"],
]
INTRODUCTION = """# FUSION: {name}
Choose an image and ask about it. The vision encoder reads the image together with your question."""

WITH_IMAGE, WITHOUT_IMAGE = "Ask about the image", "Ask without an image"
TOO_LITTLE_MEMORY = "The GPU has too little memory for this: choose smaller grids or clear the conversation."


@dataclass
class Conversation:
    """What a user and the model have said; each browser tab has its own."""

    image: Image.Image | None = None
    turns: list[dict[str, str]] = field(default_factory=list)  # role and content, a text
    is_stopped: bool = False  # the answer ends at the next token


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
    Yields the answer to a question as far as it is written, until it ends or the conversation is stopped.

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
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def is_stopped(input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), conversation.is_stopped, device=input_ids.device)

    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "stopping_criteria": [is_stopped]}
    executor = ThreadPoolExecutor(1)
    run = executor.submit(model.generate, **inputs, **options, streamer=streamer)
    run.add_done_callback(lambda _: streamer.end())  # an error must end the loop below, too
    text = ""
    try:
        for piece in streamer:
            text += piece
            yield text
        run.result()  # raises what went wrong
    finally:  # also if the page is closed, which closes this generator
        conversation.is_stopped = True
        executor.shutdown(wait=False)


def read_image(preprocess, payload) -> Image.Image | None:
    """What Gradio makes of an upload, with an error of one line if it is no image."""
    try:
        image = preprocess(payload)
        if image is not None:
            image.load()  # Pillow would read the pixels later
        return image
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise gr.Error("This file cannot be read as an image.", print_exception=False) from error


def begin(image: Image.Image | None, conversation: Conversation):
    """A new conversation, an empty chat, and what the box for questions says."""
    conversation.is_stopped = True
    return Conversation(image), [], gr.update(placeholder=WITHOUT_IMAGE if image is None else WITH_IMAGE)


def ask(model, processor, question: str, conversation: Conversation, *sizes: int):
    """Yields the box for questions and the chat, while the answer grows; `sizes` are those of `stream_answer`."""
    question = question.strip()
    if not question:
        raise gr.Error("Type a question first.", print_exception=False)
    conversation.is_stopped = False
    turns = [*conversation.turns, {"role": "user", "content": question}]
    yield "", turns
    answer = ""
    try:
        for answer in stream_answer(model, processor, conversation, question, *sizes):
            yield "", [*turns, {"role": "assistant", "content": answer}]
    except (ValueError, RuntimeError) as error:
        yield question, conversation.turns  # as before
        message = TOO_LITTLE_MEMORY if isinstance(error, torch.OutOfMemoryError) else str(error).partition("\n")[0]
        raise gr.Error(message, print_exception=False) from error
    conversation.turns = [*turns, {"role": "assistant", "content": answer}]
    yield "", conversation.turns


def stop(conversation: Conversation):
    conversation.is_stopped = True


def make_page(model: FusionForConditionalGeneration, processor: FusionProcessor) -> gr.Blocks:
    """The page, not yet served. All that belongs to a user is in a `Conversation`."""
    config, sizes = model.config, processor.image_processor
    with gr.Blocks(title="FUSION", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        conversation = gr.State(Conversation())
        gr.Markdown(INTRODUCTION.format(name=Path(model.name_or_path).name))
        with gr.Row():
            with gr.Column(scale=2):
                image = gr.Image(
                    label="Image", type="pil", image_mode=None, sources=["upload", "clipboard"], height=300
                )
                image.preprocess = partial(read_image, image.preprocess)
                # Side, and how many there are: its square.
                latents = gr.Slider(
                    1, config.max_latent_grid_size, sizes.latent_grid_size, step=1, label="Latent grid"
                )
                grid = gr.Slider(1, config.num_patches_per_side, sizes.image_grid_size, step=1, label="Image grid")
                length = gr.Slider(1, 1024, 256, step=1, label="Longest answer in tokens")
            with gr.Column(scale=3):
                chat = gr.Chatbot(label="Conversation", height=330, buttons=[])
                question = gr.Textbox(label="Question", show_label=False, placeholder=WITHOUT_IMAGE, autofocus=True)
                with gr.Row():
                    ask_button = gr.Button("Ask", variant="primary")
                    stop_button = gr.Button("Stop")
                    clear_button = gr.Button("Clear")
                gr.Examples(EXAMPLES, [image, question])
        asking = gr.on(
            [question.submit, ask_button.click],
            partial(ask, model, processor),
            [question, conversation, latents, grid, length],
            [question, chat],
            api_name="ask",
            show_progress="minimal",
            concurrency_limit=4,  # further users wait
        )
        stop_button.click(stop, conversation, queue=False)
        beginning = gr.on(
            [image.change, clear_button.click, chat.clear],
            begin,
            [image, conversation],
            [conversation, chat, question],
            cancels=asking,
            show_progress="hidden",
        )
        beginning.failure(lambda: None, None, image)  # an image that cannot be read is not shown either
    return page


def launch(page: gr.Blocks, host: str, port: int | None, share: bool = False) -> str:
    """Starts to serve the page and returns its address; `port` None is any that is free."""
    _, address, public_address = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        max_file_size="20mb",
    )
    return public_address or address


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(EXAMPLES_DIR / "tiny"), metavar="MODEL")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for the whole network")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="make a public address through Gradio's servers")
    add_model_options(parser)
    args = parser.parse_args()
    try:
        page = make_page(*load(args))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    print(f"The page: {launch(page, args.host, args.port, args.share)}", flush=True)
    page.block_thread()


if __name__ == "__main__":
    main()
