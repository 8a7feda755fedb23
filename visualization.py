"""
Where the interaction layers of a FUSION look: `interaction_attention` returns their attention, `visualize` draws it.

    from fusion_vlm.visualization import visualize
    answers, figure = visualize(model, processor, "photo.jpg", ["What is on the table?"], "out/attention.png")

The model may be any FUSION: of any decoder, quantised, with LoRA, on any device, loaded as remote code. Drawing needs
matplotlib, which comes with the extra `train`.
"""

import math
import os
import textwrap
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import nn


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_COLUMNS = 4
PANEL_WIDTH, MAX_IMAGE_HEIGHT = 3.2, 5.0  # inches
FONT_SIZE = 9  # points
CHARACTERS_PER_LINE = 36
COLORS = ("#0000ffc0", "#0000ff00", "#ff000000", "#ff0000d0")  # of no, of even (from both sides) and of most attention
LINE_HEIGHT = 1.4 * FONT_SIZE / 72  # inches


@torch.no_grad()
def interaction_attention(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """
    The attention of the latent tokens over the context windows, from one forward of the prompts.

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
    """The `FusionModel` in a model, which may be wrapped. Raises a ValueError if it has no interaction layers."""
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
    Gives arguments and output of the last call of each module, by its key. Calls of other threads do not count, and
    nothing stays on the modules.
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
    What the attention of an interaction layer computes from its projected queries and keys, and does not return.

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
    """`(..., latents, window)`, both row-major, to maps `(..., cells, cells)`."""
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
    latent_grid_size: int | None = None,
    max_new_tokens: int = 64,
) -> tuple[list[str], "Figure"]:
    """
    Asks questions about an image, each on its own, and draws where the interaction layers looked.

    The first panel is the image; then comes one for each question, with the question above it, the answer below it,
    and a heat map over the image: the mean of `interaction_attention` over layers and heads, divided by what an even
    look at a window would give each of its cells. Red cells, above 1, are where a latent looked rather than elsewhere
    in its window, blue ones where it did not; a clear window has nothing in it that stood out. Lines are drawn between
    the windows, for the map does not compare one with another. The colours mean the same in every figure.

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
        latent_grid_size (`int`, *optional*):
            Side of the latent grid: the map has `window_size` times as many cells a side. Defaults to the processor's.
        max_new_tokens (`int`):
            Limit of an answer's length. Answers are greedy.

    Returns:
        The answers, and the figure (`matplotlib.figure.Figure`).

    Raises:
        ImportError: if matplotlib is missing.
        ValueError: if there is no image or no question, and what the processor and `interaction_attention` raise.
    """
    require_matplotlib()
    questions = [questions] if isinstance(questions, str) else list(questions)
    if image is None:
        raise ValueError("`image` is None, expected an image: without one there is nothing to draw.")
    if not questions:
        raise ValueError("`questions` is empty, expected one question at least.")
    image = processor.image_processor.fetch_images(os.fspath(image) if isinstance(image, os.PathLike) else image)
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
        for question in questions
    ]
    inputs = processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={} if latent_grid_size is None else {"latent_grid_size": latent_grid_size},
    ).to(model.device)
    inputs["context_map"] = model.get_context_map(inputs.pop("high_res_pixel_values")[:1])
    heat_maps = interaction_attention(model, inputs).mean(dim=(1, 2)) * model.config.window_size**2
    output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    answers = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    # As the processor makes its pixels of it: upright, on white, 8-bit RGB.
    pixels = processor.image_processor.process_image(image, do_convert_rgb=True)
    shown = Image.fromarray(np.moveaxis(pixels, 0, 2))
    figure = draw_figure(shown, questions, answers, heat_maps.numpy(), model.config.window_size)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=120, bbox_inches="tight")
    return answers, figure


def require_matplotlib():
    """Says early, before anything is computed, that matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("`visualize` needs matplotlib: pip install 'fusion-vlm[train]'") from error


def draw_figure(
    image: Image.Image, questions: list[str], answers: list[str], heat_maps: np.ndarray, window_size: int
) -> "Figure":
    """The figure of `visualize`. Heat maps are `(questions, cells, cells)`, in multiples of an even look."""
    from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
    from matplotlib.figure import Figure  # not `pyplot`, which would change the backend of a program that draws

    questions, answers = ([wrap(text) for text in texts] for texts in (questions, answers))
    num_lines = max(text.count("\n") for text in questions) + max(text.count("\n") for text in answers) + 4
    height = min(PANEL_WIDTH * image.height / image.width, MAX_IMAGE_HEIGHT) + num_lines * LINE_HEIGHT
    num_panels = 1 + len(questions)
    num_rows = math.ceil(num_panels / MAX_COLUMNS)
    num_columns = math.ceil(num_panels / num_rows)
    figure = Figure(figsize=(num_columns * PANEL_WIDTH + 1, num_rows * height), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axis in axes[num_panels:]:
        axis.set_axis_off()

    draw_panel(axes[0], image, "", "")
    # One scale for all figures: blue below an even look, clear at it, red above it, full at three times as much.
    norm = TwoSlopeNorm(1, vmin=0, vmax=3)
    colors = LinearSegmentedColormap.from_list("attention", list(zip((0, 0.5, 0.5, 1), COLORS, strict=True)))
    for axis, question, answer, heat_map in zip(axes[1:], questions, answers, heat_maps, strict=False):
        # In grey, so that all colour is heat.
        draw_panel(axis, image.convert("L").convert("RGB"), question, answer)
        # The four crops are the whole image, whatever its aspect ratio, so the map is too.
        heat = axis.imshow(heat_map, cmap=colors, norm=norm, extent=extent_of(image))
        for edge in np.linspace(0, 1, len(heat_map) // window_size + 1)[1:-1]:
            axis.axvline(edge * image.width, color="0.5", linewidth=0.5)
            axis.axhline(edge * image.height, color="0.5", linewidth=0.5)
    bar = figure.colorbar(heat, ax=axes, shrink=0.7, aspect=30, extend="max", ticks=range(4))
    bar.set_label("attention within a window\n(1: even)", fontsize=FONT_SIZE)
    return figure


def draw_panel(axis: "Axes", image: Image.Image, question: str, answer: str):
    axis.imshow(image, extent=extent_of(image))
    axis.set_xticks([])
    axis.set_yticks([])
    # Dollar signs in a text are no mathematics.
    axis.set_title(question, fontsize=FONT_SIZE, parse_math=False)
    axis.set_xlabel(answer, fontsize=FONT_SIZE, weight="bold", parse_math=False)


def extent_of(image: Image.Image) -> tuple[int, int, int, int]:
    """Left, right, bottom and top, in pixels."""
    return (0, image.width, image.height, 0)


def wrap(text: str) -> str:
    """Breaks lines that are too long for a panel."""
    return "\n".join(textwrap.fill(line, CHARACTERS_PER_LINE) for line in text.splitlines())
