"""`fusion-vlm ask`: answers to questions about one image, for a shell pipe."""

import argparse
import sys

from tqdm import tqdm

from .model import check_grid_sizes, limit_new_tokens, load, process, read_image, user_message


# Questions that are answered together; they share the crops of the image.
BATCH_SIZE = 8


def ask(args: argparse.Namespace):
    """Prints an answer to each question of `args.questions` about `args.image`, which may be None."""
    image = None if args.image is None else read_image(args.image)
    model, processor = load(args)
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
