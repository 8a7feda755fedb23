"""
Show where a FUSION looked.

`answer_occlusion` blurs the image part by part and measures how much less likely the answer becomes,
`interaction_attention` returns the attention of the interaction layers, and `visualize` draws either.

    from fusion_vlm.visualization import visualize
    answers, figure = visualize(model, processor, "photo.jpg", ["What is on the table?"], "out/photo.png")

The model may be any FUSION: of any decoder, quantized, with LoRA, on any device, loaded as remote code. Drawing needs
matplotlib, which comes with the extras `train` and `demo`.

Dimensions named in the shape comments:
    questions  prompts, one answer each      boxes  blurred squares of one batch
    crops      the four quarters of an image, row-major
"""

import math
import os
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fusion_vlm.configuration_fusion import NUM_CROPS, NUM_CROPS_PER_SIDE
from fusion_vlm.hub.loading import build_user_message


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

METHODS = ("occlusion", "attention")
TEXT_INPUTS = ("input_ids", "attention_mask", "question_input_ids", "question_attention_mask")

# Cells a side of an occlusion map. Each cell costs one forward of a question, and a finer grid found fewer objects
# (docs/visualization.md), since its squares are smaller than many of them.
GRID_SIZE = 6
# A blurred square is twice as wide as a cell. Squares of one cell are smaller than most objects: what is left of an
# object suffices for the answer, and nothing drops.
SQUARE_SIZE = 2  # cells
BLUR_SIGMA = 0.1  # share of the side of the image

MAX_COLUMNS = 4
PANEL_WIDTH, MAX_IMAGE_HEIGHT = 3.2, 5.0  # inches
FONT_SIZE = 9  # points
CHARACTERS_PER_LINE = 36
LINE_HEIGHT = 1.4 * FONT_SIZE / 72  # inches
DPI = 120
ATTENTION_COLORS = ("#0000ffc0", "#0000ff00", "#ff000000", "#ff0000d0")  # none, even (from both sides), most
OCCLUSION_COLORS = ("#ffb00000", "#ff9000a0", "#ff0000e0")  # nothing lost, a tenth left, a hundredth left
SHARES_LEFT = (1, 0.5, 0.1, 0.01)  # of an answer's probability: ticks of the color bar, which ends at the last


class AnswerOcclusion(NamedTuple):
    """
    What answers lose when parts of the image are blurred.

    Args:
        log_probs (`torch.Tensor` of shape `(questions,)`):
            Log probability of each whole answer about the unchanged image, float32, on the CPU.
        drops (`torch.Tensor` of shape `(questions, grid_size, grid_size)`):
            By how much that log probability falls when the square around a cell is blurred; below 0 if it rises.
    """

    log_probs: torch.Tensor
    drops: torch.Tensor


@torch.no_grad()
def answer_occlusion(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    answer_ids: Sequence[torch.Tensor],
    *,
    grid_size: int = GRID_SIZE,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> AnswerOcclusion:
    """
    Blur one square of the image at a time and return the drop in the log probability of each answer.

    The squares lie around the cells of a grid and are twice as wide as a cell. An answer is teacher-forced: its log
    probability is the sum over its tokens. Crops are encoded again only where the blur changed them, once for all
    questions. A question costs `grid_size**2 + 1` forwards of its prompt, `batch_size` of them at a time.

    Args:
        model (`nn.Module`):
            A FUSION, or what wraps one, such as a `PeftModel`. Other threads may use the model meanwhile.
        inputs (mapping of `str` to `torch.Tensor`):
            Output of the processor for prompts about one image, on the model's device.
        answer_ids (sequence of `torch.Tensor` of shape `(tokens,)`):
            Token ids of one answer for each prompt, usually with the token that ends the answer.
        grid_size (`int`):
            Cells a side.
        batch_size (`int`):
            Prompts in one forward. The maps do not depend on `batch_size`.
        progress (callable, *optional*):
            Called after each batch with the numbers of forwards done and of all forwards.

    Raises:
        ValueError: if an argument does not fit the others, and what the model raises.
    """
    check_occlusion(model, inputs, answer_ids, grid_size, batch_size)
    crops = inputs["high_res_pixel_values"][0]
    context_map = model.get_context_map(crops.unsqueeze(0))
    image, large_image = inputs["pixel_values"][0], join_crops(crops.unsqueeze(0))[0]
    blurred, large_blurred = blur(image), blur(large_image)
    boxes = [(0.0, 0.0, 0.0, 0.0), *occlusion_boxes(grid_size)]  # the first one blurs nothing
    parts: list[list[torch.Tensor]] = [[] for _ in answer_ids]
    for start in range(0, len(boxes), batch_size):
        batch = boxes[start : start + batch_size]
        images = occlude(image, blurred, batch)
        occluded_crops = split_crops(occlude(large_image, large_blurred, batch))
        context_maps = occluded_context_maps(model, context_map, crops, occluded_crops)
        for question, answer in enumerate(answer_ids):
            prompt = {name: inputs[name][question] for name in TEXT_INPUTS if name in inputs}
            parts[question].append(answer_log_probs(model, prompt, answer, images, context_maps))
            if progress is not None:
                num_done = start * len(answer_ids) + len(batch) * (question + 1)
                progress(num_done, len(boxes) * len(answer_ids))
    log_probs = torch.stack([torch.cat(each) for each in parts]).cpu()  # (questions, 1 + cells)
    drops = (log_probs[:, :1] - log_probs[:, 1:]).unflatten(1, (grid_size, grid_size))
    return AnswerOcclusion(log_probs[:, 0], drops)


def check_occlusion(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    answer_ids: Sequence[torch.Tensor],
    grid_size: int,
    batch_size: int,
):
    """Raise a ValueError that says which argument of `answer_occlusion` does not fit."""
    for name, size in (("grid_size", grid_size), ("batch_size", batch_size)):
        if size < 1:
            raise ValueError(f"`{name}` is {size}, expected at least 1.")
    if model.config.question_end_token_ids is None:
        raise ValueError(
            "Occlusion needs `config.question_end_token_ids`: in a prompt that holds the answer, the end of the"
            " question cannot be guessed. Set it to `processor.question_end_token_ids`."
        )
    num_prompts = len(inputs["input_ids"])
    if len(answer_ids) != num_prompts:
        raise ValueError(f"Got {len(answer_ids)} answers for {num_prompts} prompts, expected one for each.")
    for index, answer in enumerate(answer_ids):
        if answer.ndim != 1 or len(answer) == 0:
            raise ValueError(f"Answer {index} has shape {tuple(answer.shape)}, expected (tokens,) with one at least.")
    for name in ("pixel_values", "high_res_pixel_values"):
        if inputs.get(name) is None:
            raise ValueError(f"`inputs` has no `{name}`, expected the image: occlusion blurs its pixels.")
    for index in range(num_prompts):
        if not (inputs["input_ids"][index] == model.config.image_token_id).any():
            raise ValueError(f"Prompt {index} has no image, so there is nothing to blur.")
        if not torch.equal(inputs["pixel_values"][index], inputs["pixel_values"][0]):
            raise ValueError(f"Prompts 0 and {index} have different images. Pass the prompts of one image at a time.")


def occlusion_boxes(grid_size: int) -> Iterator[tuple[float, ...]]:
    """Yield top, bottom, left and right of the square around each cell, row-major, as shares of the side."""
    margin = (SQUARE_SIZE - 1) / 2
    edges = [(max(0, cell - margin), min(grid_size, cell + 1 + margin)) for cell in range(grid_size)]
    for rows, columns in product(edges, repeat=2):
        yield tuple(edge / grid_size for edge in (*rows, *columns))


def blur(image: torch.Tensor) -> torch.Tensor:
    """Return `(3, size, size)` blurred so far that the colors of single objects are gone, too."""
    sigma = BLUR_SIGMA * image.shape[-1]
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=image.device) / sigma) ** 2)
    weights = (weights / weights.sum()).view(1, 1, -1, 1)
    image = F.pad(image.float().unsqueeze(1), 4 * (radius,), mode="replicate")  # colors as a batch of gray images
    return F.conv2d(F.conv2d(image, weights), weights.transpose(2, 3)).squeeze(1)


def occlude(image: torch.Tensor, blurred: torch.Tensor, boxes: Sequence[tuple[float, ...]]) -> torch.Tensor:
    """Return a copy of `(3, size, size)` for each box, blurred in the box: `(boxes, 3, size, size)`."""
    images = image.repeat(len(boxes), 1, 1, 1)
    for copy, box in zip(images, boxes, strict=True):
        top, bottom, left, right = (round(edge * image.shape[-1]) for edge in box)
        copy[:, top:bottom, left:right] = blurred[:, top:bottom, left:right]
    return images


def join_crops(crops: torch.Tensor) -> torch.Tensor:
    """Join `(boxes, 4, channels, side, side)` to `(boxes, channels, 2 * side, 2 * side)`: pixels or features."""
    crops = crops.unflatten(1, 2 * (NUM_CROPS_PER_SIDE,))  # (boxes, crop row, crop column, channels, row, column)
    return crops.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def split_crops(images: torch.Tensor) -> torch.Tensor:
    """Undo `join_crops`: `(boxes, channels, 2 * side, 2 * side)` to `(boxes, 4, channels, side, side)`."""
    size = (NUM_CROPS_PER_SIDE, -1)
    crops = images.unflatten(3, size).unflatten(2, size)  # (boxes, channels, crop row, row, crop column, column)
    return crops.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def occluded_context_maps(
    model: nn.Module, context_map: torch.Tensor, crops: torch.Tensor, occluded_crops: torch.Tensor
) -> torch.Tensor:
    """
    Return the context map of each occluded image, encoding only the crops that differ from the original.

    Crops are encoded apart from each other, so crops of different images may share a call of `get_context_map`.

    Args:
        context_map (`torch.Tensor` of shape `(1, dim, 2 * side, 2 * side)`)
        crops (`torch.Tensor` of shape `(4, 3, size, size)`)
        occluded_crops (`torch.Tensor` of shape `(boxes, 4, 3, size, size)`)

    Returns:
        `torch.Tensor` of shape `(boxes, dim, 2 * side, 2 * side)`.
    """
    features = split_crops(context_map).repeat(len(occluded_crops), 1, 1, 1, 1)  # (boxes, 4, dim, side, side)
    is_changed = (occluded_crops != crops).flatten(2).any(dim=2)  # (boxes, 4)
    changed = occluded_crops[is_changed]
    if len(changed):
        padding = crops[:1].expand(-len(changed) % NUM_CROPS, -1, -1, -1)
        maps = model.get_context_map(torch.cat([changed, padding]).unflatten(0, (-1, NUM_CROPS)))
        features[is_changed] = split_crops(maps).flatten(0, 1)[: len(changed)]
    return join_crops(features)


def answer_log_probs(
    model: nn.Module,
    prompt: Mapping[str, torch.Tensor],
    answer_ids: torch.Tensor,
    pixel_values: torch.Tensor,
    context_map: torch.Tensor,
) -> torch.Tensor:
    """
    Return the log probability of an answer after a prompt, for each of several images: `(boxes,)`, float32.

    Args:
        prompt (mapping of `str` to `torch.Tensor` of shape `(sequence,)` or `(tokens,)`):
            The inputs that are text.
        answer_ids (`torch.Tensor` of shape `(answer,)`)
        pixel_values (`torch.Tensor` of shape `(boxes, 3, size, size)`)
        context_map (`torch.Tensor` of shape `(boxes, dim, 2 * side, 2 * side)`)
    """
    num_tokens = len(answer_ids)
    prompt = dict(prompt)
    prompt["input_ids"] = torch.cat([prompt["input_ids"], answer_ids[:-1]])
    prompt["attention_mask"] = F.pad(prompt["attention_mask"], (0, num_tokens - 1), value=1)
    outputs = model(
        **{name: tensor.expand(len(pixel_values), -1) for name, tensor in prompt.items()},
        pixel_values=pixel_values,
        context_map=context_map,
        has_generated_tokens=True,  # an answer may hold the token that ends a question
        use_cache=False,
        logits_to_keep=num_tokens,
    )
    log_probs = outputs.logits.float().log_softmax(dim=-1)  # (boxes, answer, vocab_size)
    answer_ids = answer_ids.to(log_probs.device).expand(len(log_probs), -1).unsqueeze(2)
    return log_probs.gather(2, answer_ids).sum(dim=(1, 2))


def split_answers(output_ids: torch.Tensor, end_token_ids: int | list[int] | None) -> list[torch.Tensor]:
    """Return each row of generated ids up to the token that ends the answer; padding follows that token."""
    if end_token_ids is None:
        return list(output_ids)
    is_end = torch.isin(output_ids, torch.tensor(end_token_ids, device=output_ids.device))
    is_past_end = is_end.cumsum(dim=1) - is_end.long() > 0
    return [row[~is_past] for row, is_past in zip(output_ids, is_past_end, strict=True)]


@torch.no_grad()
def interaction_attention(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """
    Return the attention of the latent tokens over the context windows, from one forward of the prompts.

    In each interaction layer, each latent token attends to its own window of `window_size**2` cells. The windows tile
    the image, so the weights of all latents of a question are a map of it. They sum to 1 in each window, that is in
    each block of `window_size` x `window_size` cells: they tell where in its window a latent looked, and not which
    windows mattered. A cell is what the vision tower made of that place, having seen the whole quarter of the image.

    Args:
        model (`nn.Module`):
            A FUSION, or what wraps one, such as a `PeftModel`. Other threads may use it meanwhile.
        inputs (mapping of `str` to `torch.Tensor`):
            What the processor returns, on the model's device; `context_map` may replace `high_res_pixel_values`.

    Returns:
        `torch.Tensor` of shape `(questions, layers, heads, cells, cells)` with `cells = latent_grid_size *
        window_size`, float32, on the CPU: the questions of all prompts, prompt by prompt.

    Raises:
        ValueError: if the model has no interaction layers, the prompts have no latent tokens, or the decoder within
            the model is compiled (around the model, `torch.compile` does no harm); and what the model raises.
    """
    fusion = find_fusion_model(model)
    modules = []
    for index, layer in enumerate(fusion.interaction_layers):
        modules.append(((index, "layer"), layer))
        for path, module in layer.named_modules():
            # There may be several, of which one runs: PEFT keeps a layer beside the copies that it trains.
            name = path.rpartition(".")[2]
            if name in ("q_proj", "k_proj"):
                modules.append(((index, name), module))
    with record_calls(modules) as calls:
        # Not the model around it, which may be compiled: what is compiled does not see new hooks.
        fusion(**inputs, use_cache=False)
    if not calls:
        raise ValueError(
            "No interaction layer was called: the prompts have no latent tokens (render them with the processor's chat"
            " template), or the decoder is compiled (pass the model without `torch.compile`)."
        )
    maps = []
    for index in range(len(fusion.interaction_layers)):
        (*_, map_indices), _ = calls[index, "layer"]
        q, k = calls[index, "q_proj"][1], calls[index, "k_proj"][1]
        weights = attention_weights(q, k, map_indices, fusion.config.num_interaction_heads)
        maps.append(tile_windows(weights).cpu())
    return torch.stack(maps, dim=1)


def find_fusion_model(model: nn.Module) -> nn.Module:
    """Return the `FusionModel` in a model, which may be wrapped. Raise a ValueError without interaction layers."""
    for path, module in model.named_modules():
        parent, _, name = path.rpartition(".")
        if name == "interaction_layers" and len(module):
            return model.get_submodule(parent)
    raise ValueError(
        f"This {type(model).__name__} has no interaction layers, expected a FUSION with at least one in its"
        " `config.interaction_layer_indices`."
    )


@contextmanager
def record_calls(modules: list[tuple[tuple[int, str], nn.Module]]) -> Iterator[dict[tuple[int, str], tuple]]:
    """
    Yield arguments and output of the last call of each module, by its key.

    Calls of other threads are not recorded, and no hook stays on the modules.
    """
    calls, thread = {}, threading.get_ident()

    def record(key: tuple[int, str], module: nn.Module, args: tuple, output: torch.Tensor):
        if threading.get_ident() == thread:
            calls[key] = (args, output)

    with ExitStack() as hooks:
        for key, module in modules:
            hooks.enter_context(module.register_forward_hook(partial(record, key)))
        yield calls


def attention_weights(q: torch.Tensor, k: torch.Tensor, map_indices: torch.Tensor, num_heads: int) -> torch.Tensor:
    """
    Compute the attention weights of an interaction layer from its projected queries and keys.

    Args:
        q (`torch.Tensor` of shape `(questions, latents, dim)`)
        k (`torch.Tensor` of shape `(maps, latents * window, dim)`)
        map_indices (`torch.Tensor` of shape `(questions,)`)

    Returns:
        `torch.Tensor` of shape `(questions, heads, latents, window)`, float32.
    """
    num_questions, num_latents, dim = q.shape
    head_dim = dim // num_heads
    q = q.float().view(num_questions, num_latents, num_heads, head_dim)
    k = k.float()[map_indices.to(k.device)].view(num_questions, num_latents, -1, num_heads, head_dim)
    return (torch.einsum("qlhd,qlwhd->qhlw", q, k) / math.sqrt(head_dim)).softmax(dim=-1)


def tile_windows(weights: torch.Tensor) -> torch.Tensor:
    """Arrange `(..., latents, window)`, both row-major, as maps `(..., cells, cells)`."""
    grid_size, window_size = (math.isqrt(size) for size in weights.shape[-2:])
    windows = weights.unflatten(-1, (window_size, window_size)).unflatten(-3, (grid_size, grid_size))
    # (..., grid row, window row, grid column, window column)
    return windows.transpose(-3, -2).flatten(-4, -3).flatten(-2)


@torch.no_grad()
def visualize(
    model: nn.Module,
    processor,
    image: "Image.Image | np.ndarray | torch.Tensor | str | os.PathLike",
    questions: str | list[str],
    path: str | os.PathLike | None = None,
    *,
    method: str = "occlusion",
    latent_grid_size: int | None = None,
    max_new_tokens: int = 64,
    grid_size: int = GRID_SIZE,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[str], "Figure"]:
    """
    Ask questions about an image, each on its own, and draw where the model looked.

    The first panel is the image. Then comes one panel for each question, with the question above it, the answer below
    it, and a heat map over the image. The colors mean the same in every figure of a method:

    * `"occlusion"`: what `answer_occlusion` returns. Red is where a blur takes the answer's probability away, down to
      a hundredth or less. The probability of the answer stands beside it.
    * `"attention"`: the mean of `interaction_attention` over layers and heads, divided by what an even look at a
      window would give each of its cells. Red cells, above 1, are where a latent looked rather than elsewhere in its
      window, and blue cells are where the latent did not look. Lines separate the windows, for the map does not
      compare them. The map mostly shows edges, and hardly changes with the question.

    Args:
        model (`nn.Module`):
            A FUSION that can `generate`, or what wraps one, such as a `PeftModel`.
        processor (`FusionProcessor`)
        image (`PIL.Image`, array, tensor, path or URL):
            One image, of any kind that the processor takes.
        questions (`str` or `list[str]`):
            At least one.
        path (`str` or `os.PathLike`, *optional*):
            Where to save the figure, as a PNG. Its folder is made.
        method (`str`):
            `"occlusion"` or `"attention"`. Occlusion takes 37 forwards a question, attention takes one.
        latent_grid_size (`int`, *optional*):
            Side of the latent grid. Defaults to the processor's. A map of attention has `window_size` times as many
            cells a side.
        max_new_tokens (`int`):
            Limit of an answer's length. Answers are greedy.
        grid_size, batch_size, progress:
            Arguments of `answer_occlusion`.

    Returns:
        The answers, and the figure (`matplotlib.figure.Figure`).

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if the method is unknown, if there is no image or no question, and what the processor,
            `answer_occlusion` and `interaction_attention` raise.
    """
    require_matplotlib()
    questions = [questions] if isinstance(questions, str) else list(questions)
    if method not in METHODS:
        raise ValueError(f"`method` is {method!r}, expected one of {', '.join(map(repr, METHODS))}.")
    if image is None:
        raise ValueError("`image` is None, expected an image: without one there is nothing to draw.")
    if not questions:
        raise ValueError("`questions` is empty, expected one question at least.")
    image = processor.image_processor.fetch_images(os.fspath(image) if isinstance(image, os.PathLike) else image)
    grid_sizes = {} if latent_grid_size is None else {"latent_grid_size": latent_grid_size}
    inputs = process_questions(processor, image, questions, grid_sizes).to(model.device)
    prompts = share_crops(model, inputs)
    answer_ids = generate_answers(model, prompts, max_new_tokens)
    answers = processor.batch_decode(answer_ids, skip_special_tokens=True)
    shown = shown_image(processor, image)
    if method == "attention":
        heat_maps = interaction_attention(model, prompts).mean(dim=(1, 2)) * model.config.window_size**2
        figure = draw_attention(shown, questions, answers, heat_maps.numpy(), model.config.window_size)
    else:
        options = {"grid_size": grid_size, "batch_size": batch_size, "progress": progress}
        figure = draw_occlusion(shown, questions, answers, answer_occlusion(model, inputs, answer_ids, **options))
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=DPI, bbox_inches="tight")
    return answers, figure


def require_matplotlib():
    """Raise an ImportError that names the extra, before anything is computed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("`visualize` needs matplotlib: pip install 'fusion-vlm[train]'") from error


def process_questions(processor, image: Image.Image, questions: list[str], grid_sizes: dict[str, int]):
    """Return the model's inputs for prompts of one question each about one image."""
    return processor.apply_chat_template(
        [[build_user_message(question, image)] for question in questions],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=grid_sizes,
    )


def share_crops(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the inputs of prompts about one image with the context map of that image instead of the crops."""
    prompts = dict(inputs)
    prompts["context_map"] = model.get_context_map(prompts.pop("high_res_pixel_values")[:1])
    return prompts


def generate_answers(model: nn.Module, prompts: Mapping[str, torch.Tensor], max_new_tokens: int) -> list[torch.Tensor]:
    """Return the ids of the greedy answers, each with the token that ends the answer."""
    output = model.generate(**prompts, do_sample=False, max_new_tokens=max_new_tokens)
    return split_answers(output[:, prompts["input_ids"].shape[1] :], model.generation_config.eos_token_id)


def shown_image(processor, image: Image.Image) -> Image.Image:
    """Return the image as the model reads its pixels: upright, on white, 8-bit RGB."""
    return Image.fromarray(np.moveaxis(processor.image_processor.process_image(image, do_convert_rgb=True), 0, 2))


def draw_attention(
    image: Image.Image, questions: list[str], answers: list[str], heat_maps: np.ndarray, window_size: int
) -> "Figure":
    """Return the figure of attention maps `(questions, cells, cells)`, in multiples of an even look."""
    from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm

    # Blue below an even look, clear at it, red above it, full at three times as much.
    norm = TwoSlopeNorm(1, vmin=0, vmax=3)
    stops = list(zip((0, 0.5, 0.5, 1), ATTENTION_COLORS, strict=True))
    colors = LinearSegmentedColormap.from_list("attention", stops)
    figure, axes, heat = draw_panels(image, questions, answers, heat_maps, colors, norm)
    for axis in axes[1:]:
        for edge in np.linspace(0, 1, heat_maps.shape[1] // window_size + 1)[1:-1]:
            axis.axvline(edge * image.width, color="0.5", linewidth=0.5)
            axis.axhline(edge * image.height, color="0.5", linewidth=0.5)
    bar = figure.colorbar(heat, ax=axes, shrink=0.7, aspect=30, extend="max", ticks=range(4))
    bar.set_label("attention within a window\n(1: even)", fontsize=FONT_SIZE)
    return figure


def draw_occlusion(
    image: Image.Image, questions: list[str], answers: list[str], occlusion: AnswerOcclusion, *, has_image: bool = True
) -> "Figure":
    """
    Return the figure of occlusion maps.

    Args:
        image (`PIL.Image.Image`):
            Upright, 8-bit RGB.
        has_image (`bool`):
            Whether the first panel is the image without a map.
    """
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    norm = Normalize(0, -math.log(SHARES_LEFT[-1]))
    colors = LinearSegmentedColormap.from_list("occlusion", OCCLUSION_COLORS)
    answers = [
        f"{answer} ({format_share(log_prob)})"
        for answer, log_prob in zip(answers, occlusion.log_probs.tolist(), strict=True)
    ]
    drops = occlusion.drops.numpy()
    figure, axes, heat = draw_panels(image, questions, answers, drops, colors, norm, has_image=has_image)
    ticks = [-math.log(share) for share in SHARES_LEFT]
    bar = figure.colorbar(heat, ax=axes, shrink=0.7, aspect=30, extend="max", ticks=ticks)
    bar.ax.set_yticklabels([f"{share:.0%}" for share in SHARES_LEFT])
    bar.set_label("probability of the answer that is left\nwhen this part is blurred", fontsize=FONT_SIZE)
    return figure


def format_share(log_prob: float) -> str:
    """Return a probability as a percentage."""
    share = math.exp(log_prob)
    return f"{share:.0%}" if share >= 0.01 else "< 1%"


def draw_panels(
    image: Image.Image,
    questions: list[str],
    answers: list[str],
    heat_maps: np.ndarray,
    colors: "Colormap",
    norm: "Normalize",
    *,
    has_image: bool = True,
) -> tuple["Figure", "np.ndarray", "ScalarMappable"]:
    """Return a figure of the image and of one panel for each question, its axes, and what a color bar shows."""
    from matplotlib.figure import Figure  # not `pyplot`, which would change the backend of a program that draws

    questions, answers = ([wrap(text) for text in texts] for texts in (questions, answers))
    num_lines = max(text.count("\n") for text in questions) + max(text.count("\n") for text in answers) + 4
    height = min(PANEL_WIDTH * image.height / image.width, MAX_IMAGE_HEIGHT) + num_lines * LINE_HEIGHT
    num_panels = has_image + len(questions)
    num_rows = math.ceil(num_panels / MAX_COLUMNS)
    num_columns = math.ceil(num_panels / num_rows)
    figure = Figure(figsize=(num_columns * PANEL_WIDTH + 1, num_rows * height), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axis in axes[num_panels:]:
        axis.set_axis_off()
    if has_image:
        draw_panel(axes[0], image, "", "")
    # Pale and gray, so that all color is heat.
    pale = Image.blend(image.convert("L"), Image.new("L", image.size, 255), 0.5).convert("RGB")
    for axis, question, answer, heat_map in zip(axes[has_image:], questions, answers, heat_maps, strict=False):
        draw_panel(axis, pale, question, answer)
        # The four crops are the whole image, whatever its aspect ratio, so the map is too.
        heat = axis.imshow(heat_map, cmap=colors, norm=norm, extent=image_extent(image))
    return figure, axes[:num_panels], heat


def draw_panel(axis: "Axes", image: Image.Image, question: str, answer: str):
    """Draw an image with the question above it and the answer below it."""
    axis.imshow(image, extent=image_extent(image))
    axis.set_xticks([])
    axis.set_yticks([])
    # matplotlib would read text between dollar signs as a formula.
    axis.set_title(question, fontsize=FONT_SIZE, parse_math=False)
    axis.set_xlabel(answer, fontsize=FONT_SIZE, weight="bold", parse_math=False)


def image_extent(image: Image.Image) -> tuple[int, int, int, int]:
    """Return left, right, bottom and top of an image, in pixels."""
    return (0, image.width, image.height, 0)


def wrap(text: str) -> str:
    """Break lines that are too long for a panel."""
    return "\n".join(textwrap.fill(line, CHARACTERS_PER_LINE) for line in text.splitlines())
