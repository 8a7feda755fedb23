"""`fusion-vlm ask`: answers to questions about one image, for a shell pipe."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator

from fusion_vlm.commands.errors import UsageError
from fusion_vlm.commands.images import check_image, is_image_name, is_question, read_image, shorten
from fusion_vlm.commands.options import add_generation_options, add_model_options
from fusion_vlm.hub.loading import build_user_message, check_grid_sizes, limit_new_tokens, load, process
from fusion_vlm.hub.names import find_fusion


# Questions of one batch. They share the crops of the image.
BATCH_SIZE = 8

DESCRIPTION = """\
Ask one or more questions about an image. Prints the answers, and nothing else, on stdout, one after the other.
The likeliest answer is taken (no sampling), so that the same question gives the same answer. Answers may have several
lines: with --json each is one line, with its question.

examples:
  fusion-vlm ask out/fusion-phi3.5-3b photo.jpg "What is in the picture?"
  curl -s https://example.org/photo.jpg | fusion-vlm ask out/fusion-phi3.5-3b - "How many people are there?" > answer
  fusion-vlm ask out/fusion-phi3.5-3b photo.jpg "What is it?" "Where is it?" --json | jq -r .answer
  fusion-vlm ask --no-image out/fusion-phi3.5-3b "Name three primary colors." """


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id")
    parser.add_argument("image", metavar="IMAGE", help="a file, an http(s) address, or - for stdin")
    parser.add_argument("questions", metavar="QUESTION", nargs="*", help="what to ask; each is answered on its own")
    parser.add_argument("--no-image", action="store_true", help="ask without an image; leave IMAGE out")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object a line: question, answer, image, num_tokens"
    )
    add_generation_options(parser)
    add_model_options(parser)


def check_questions(model: str, image: str | None, questions: list[str]):
    """
    Check that the image comes first and questions follow, before anything is loaded.

    Raises:
        UsageError: if they are in the wrong order, or if a question is missing or empty.
    """
    names = [question for question in questions if is_image_name(question)]
    if image is not None and is_question(image):
        if len(names) == 1:
            others = [question for question in questions if question != names[0]]
            command = shlex.join(["fusion-vlm", "ask", model, names[0], image, *others])
            raise UsageError(f"The image comes before the question: {command}")
        raise UsageError(
            f"IMAGE is {shorten(image)}, which reads like a question: the image comes before the questions, and"
            " --no-image asks without one."
        )
    if not questions:
        raise UsageError("A QUESTION is missing: it comes after the IMAGE. To ask without an image: --no-image.")
    if names and image is None:
        raise UsageError(f"{shorten(names[0])} is an image, not a question, but --no-image was given.")
    if names:
        raise UsageError(
            f"{shorten(names[0])} is the name of a file or an image, not a question. ask takes one image and then"
            " questions about it."
        )
    if not all(question.strip() for question in questions):
        raise UsageError("A question is empty.")


def run(args: argparse.Namespace):
    """Print an answer to each question."""
    image, questions = args.image, args.questions
    if args.no_image:
        image, questions = None, [image, *questions]
    check_questions(args.model, image, questions)
    if image is not None:
        check_image(image)
    find_fusion(args.model)
    picture = None if image is None else read_image(image)
    model, processor = load(args.model, dtype=args.dtype, device=args.device, four_bit=args.four_bit)
    grid_sizes = check_grid_sizes(model.config, args.latent_grid_size, args.image_grid_size)
    for question, answer, num_tokens in answer_questions(
        model, processor, picture, questions, grid_sizes, args.max_new_tokens
    ):
        if args.json:
            answer = json.dumps({"question": question, "answer": answer, "image": image, "num_tokens": num_tokens})
        print(answer, flush=True)


def answer_questions(
    model, processor, image, questions: list[str], grid_sizes: dict[str, int], max_new_tokens: int
) -> Iterator[tuple[str, str, int]]:
    """
    Answer questions about one image in batches that share its crops; `image` may be None.

    Yields:
        `tuple[str, str, int]`: question, answer, and the number of tokens of the answer.
    """
    import torch
    from tqdm import tqdm

    batches = [questions[start : start + BATCH_SIZE] for start in range(0, len(questions), BATCH_SIZE)]
    quiet = len(batches) == 1 or not sys.stderr.isatty()
    context_map = None
    for batch in tqdm(batches, desc="Answering", disable=quiet):
        inputs = process(processor, [[build_user_message(question, image)] for question in batch], grid_sizes)
        inputs = inputs.to(model.device)
        if image is not None:
            crops = inputs.pop("high_res_pixel_values")
            if context_map is None:
                with torch.no_grad():
                    context_map = model.get_context_map(crops[:1])
            inputs["context_map"] = context_map
        limit = limit_new_tokens(model.config, inputs, max_new_tokens)
        output = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        answers = output[:, inputs["input_ids"].shape[1] :]
        texts = processor.batch_decode(answers, skip_special_tokens=True)
        for question, ids, text in zip(batch, answers.tolist(), texts, strict=True):
            with tqdm.external_write_mode():  # clear of the bar
                yield question, text.strip(), count_tokens(ids, model.generation_config.eos_token_id)


def count_tokens(ids: list[int], eos_token_id: int | list[int] | None) -> int:
    """Count the tokens of an answer up to its end; what follows in a batch is padding."""
    ends = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
    return next((index for index, token in enumerate(ids) if token in ends), len(ids))
