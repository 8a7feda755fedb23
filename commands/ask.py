"""`fusion-vlm ask`: answers to questions about one image, for a shell pipe."""

import argparse
import sys

from tqdm import tqdm

from fusion_vlm.commands.errors import UsageError
from fusion_vlm.commands.model import check_grid_sizes, limit_new_tokens, load, process, read_image, user_message
from fusion_vlm.commands.options import add_generation_options, add_model_options


# Questions that are answered together; they share the crops of the image.
BATCH_SIZE = 8


DESCRIPTION = """\
Ask one or more questions about an image. Prints the answers, and nothing else, on stdout, one after the other.
The likeliest answer is taken (no sampling), so that the same question gives the same answer.

examples:
  fusion-vlm ask out/fusion-phi3.5-3b photo.jpg "What is in the picture?"
  curl -s https://example.org/photo.jpg | fusion-vlm ask out/fusion-phi3.5-3b - "How many people are there?" > answer
  fusion-vlm ask --no-image out/fusion-phi3.5-3b "Name three primary colours." """


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id")
    parser.add_argument("image", metavar="IMAGE", help="a file, an http(s) address, or - for stdin")
    parser.add_argument("questions", metavar="QUESTION", nargs="*", help="what to ask; each is answered on its own")
    parser.add_argument("--no-image", action="store_true", help="ask without an image; leave IMAGE out")
    add_generation_options(parser)
    add_model_options(parser)


def run(args: argparse.Namespace):
    """Print an answer to each question."""
    if args.no_image:
        args.image, args.questions = None, [args.image, *args.questions]
    if not args.questions:
        raise UsageError("ask needs a QUESTION after the IMAGE, or --no-image")
    image = None if args.image is None else read_image(args.image)
    model, processor = load(args.model, dtype=args.dtype, device=args.device, four_bit=args.four_bit)
    import torch  # not at the top, so that a missing image is told at once

    grid_sizes = check_grid_sizes(model.config, args.latent_grid_size, args.image_grid_size)
    batches = [args.questions[start : start + BATCH_SIZE] for start in range(0, len(args.questions), BATCH_SIZE)]
    quiet = len(batches) == 1 or not sys.stderr.isatty()
    context_map = None
    for questions in tqdm(batches, desc="Answering", disable=quiet):
        inputs = process(processor, [[user_message(question, image)] for question in questions], grid_sizes)
        inputs = inputs.to(model.device)
        if image is not None:
            crops = inputs.pop("high_res_pixel_values")
            if context_map is None:
                with torch.no_grad():
                    context_map = model.get_context_map(crops[:1])
            inputs["context_map"] = context_map
        max_new_tokens = limit_new_tokens(model.config, inputs, args.max_new_tokens)
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        for answer in processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True):
            tqdm.write(answer.strip())  # to stdout, clear of the bar
        sys.stdout.flush()
