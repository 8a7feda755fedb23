"""
Check the weights of a converted folder, tensor by tensor, without loading the model.

Training makes two matrices that are multiplied resemble each other: large rows of one belong to large columns of the
other, and similar rows belong to similar columns. `fit_score` measures both. It is far from 0 for trained pairs, and
close to 0 if one of the two is shuffled, transposed or random. docs/verify.md has figures.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from safetensors import safe_open

from fusion_vlm.configuration_fusion import FusionConfig


# A pair below LOST fits no better than a shuffled one, a pair above STRONG fits beyond doubt. Shuffled pairs reach 6,
# trained ones 12 at least, on the small model and on SmolLM2-135M (docs/verify.md).
LOST, STRONG = 8.0, 10.0
LOST_STRUCTURE = 4.0  # the same for single matrices
MAX_RMS, MIN_RMS = 10.0, 1e-6
NUM_SAMPLES = 512  # rows and columns that a comparison looks at
NUM_SHUFFLES = 32

# Parts in the order of the report. Each tensor belongs to the first part whose pattern matches its name.
PARTS = (
    ("vision_tower.embeddings", r"model\.vision_tower\.embeddings\..+"),
    (r"vision_tower.layers.\1", r"model\.vision_tower\.encoder\.layers\.(\d+)\..+"),
    ("multi_modal_projector", r"model\.multi_modal_projector\..+"),
    ("text_to_vision_projector", r"model\.text_to_vision_projector\..+"),
    ("decoder.embed_tokens", r"model\.language_model\.embed_tokens\..+"),
    (r"decoder.layers.\1", r"model\.language_model\.layers\.(\d+)\..+"),
    ("decoder.norm", r"model\.language_model\..+"),
    (r"interaction_layers.\1", r"model\.interaction_layers\.(\d+)\..+"),
    ("lm_head", r"lm_head\..+"),
)


@dataclass
class PartWeights:
    """
    Findings about the tensors of one part, such as `vision_tower.layers.3`.

    Args:
        name (`str`): as in `PARTS`.
        num_parameters (`int`): of all tensors of the part.
        rms (`list[float]`): root mean square of each matrix.
        fits (`dict[str, float]`): `fit_score` of each pair of matrices, by the pair's name.
        structures (`dict[str, float]`): structure of single matrices that have no pair.
        faults (`list[str]`): certain damage.
        doubts (`list[str]`): possible damage, which counts if the model fails.
    """

    name: str
    num_parameters: int = 0
    rms: list[float] = field(default_factory=list)
    fits: dict[str, float] = field(default_factory=dict)
    structures: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    @property
    def stack(self) -> str:
        """Name without the number of the layer."""
        return re.sub(r"\.\d+$", "", self.name)


def check_weights(folder: Path) -> list[PartWeights]:
    """Read every tensor of a folder once and judge each part."""
    config = FusionConfig.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    parts = []
    for name, tensors in read_parts(folder):
        part = PartWeights(name)
        check_values(part, tensors)
        matrices = rename_matrices(part, tensors, config)
        compare_matrices(part, matrices, config, generator)
        parts.append(part)
    judge_fits(parts)
    return parts


def read_parts(folder: Path) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yield each part with its tensors, in float32 and by their names within the part."""
    files = find_tensors(folder)
    groups = defaultdict(list)
    for name in files:
        for part, pattern in PARTS:
            if match := re.fullmatch(pattern, name):
                groups[match.expand(part)].append(name)
                break
    stacks = [part.partition(r".\1")[0] for part, _ in PARTS]
    position = {part: (stacks.index(re.sub(r"\.\d+$", "", part)), layer_number(part)) for part in groups}
    for part in sorted(groups, key=position.get):
        yield part, {name: read_tensor(files, name) for name in groups[part] if not is_packing(name)}


def layer_number(part: str) -> int:
    """Return the number of the layer in the name of a part, 0 if it has none."""
    number = part.rpartition(".")[2]
    return int(number) if number.isdecimal() else 0


def find_tensors(folder: Path) -> dict[str, Path]:
    """List the tensors of all safetensors files of a folder, with the file of each."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as reader:
        return dict.fromkeys(reader.keys(), path)


def is_packing(name: str) -> bool:
    """Check whether a tensor only describes how bitsandbytes packed another one."""
    return re.search(r"\.(weight\..+|SCB|weight_format)$", name) is not None


def read_tensor(files: dict[str, Path], name: str) -> torch.Tensor:
    """Read one tensor in float32; what bitsandbytes packed in 4 or 8 bits is unpacked."""

    def read(name: str) -> torch.Tensor:
        with safe_open(files[name], framework="pt") as reader:
            return reader.get_tensor(name)

    states = {other.removeprefix(f"{name}."): read(other) for other in files if other.startswith(f"{name}.")}
    row_scales = name.removesuffix("weight") + "SCB"
    if states:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        return dequantize_4bit(read(name), QuantState.from_dict(states, device=torch.device("cpu"))).float()
    if row_scales in files:
        return read(name).float() * read(row_scales)[:, None] / 127
    return read(name).float()


def check_values(part: PartWeights, tensors: dict[str, torch.Tensor]):
    """Find values that are not finite, weights that are all zero, and scales that no trained weight has."""
    for name, tensor in tensors.items():
        part.num_parameters += tensor.numel()
        rms = tensor.norm().item() / math.sqrt(tensor.numel())
        if not math.isfinite(rms):
            part.faults.append(f"{name} has {int((~tensor.isfinite()).sum())} values that are NaN or infinite")
        elif name.endswith("weight") and rms == 0:
            part.faults.append(f"{name} is all zeros")
        elif tensor.ndim > 1:
            part.rms.append(rms)
            if not MIN_RMS < rms < MAX_RMS:
                part.faults.append(f"{name} has a root mean square of {rms:.3g}")


def rename_matrices(
    part: PartWeights, tensors: dict[str, torch.Tensor], config: FusionConfig
) -> dict[str, torch.Tensor]:
    """
    Return the matrices of a part under short names: `q`, `k`, `v`, `o`, `gate`, `up`, `down`, `fc1`, `fc2` and so on.

    Matrices that a decoder fuses are split, and keys and values that several query heads share are repeated.
    """
    matrices = {}
    for name, tensor in tensors.items():
        # `check_values` has reported tensors that are zero or not finite; they have no structure to compare.
        if tensor.ndim > 1 and 0 < tensor.norm().item() < math.inf:
            short = name.removesuffix(".weight").rpartition(".")[2]
            matrices[{"out_proj": "o"}.get(short, short.removesuffix("_proj"))] = tensor.flatten(1)
    if not part.name.startswith("decoder.layers"):
        return matrices
    text = config.text_config
    num_heads = text.num_attention_heads
    num_groups = getattr(text, "num_key_value_heads", None) or num_heads
    head_dim = head_size(part, config)
    if "qkv" in matrices:
        sizes = [num_heads * head_dim, num_groups * head_dim, num_groups * head_dim]
        matrices |= dict(zip("qkv", matrices.pop("qkv").split(sizes), strict=True))
    if "gate_up" in matrices:
        matrices |= dict(zip(("gate", "up"), matrices.pop("gate_up").chunk(2), strict=True))
    for name in {"k", "v"} & matrices.keys():
        heads = matrices[name].unflatten(0, (num_groups, -1))  # (groups, head_dim, dim)
        matrices[name] = heads.repeat_interleave(num_heads // num_groups, dim=0).flatten(0, 1)
    return matrices


def head_size(part: PartWeights, config: FusionConfig) -> int:
    """Return the size of an attention head in a part."""
    if part.name.startswith("vision_tower"):
        return config.vision_config.hidden_size // config.vision_config.num_attention_heads
    text = config.text_config
    if part.name.startswith("interaction_layers"):
        return text.hidden_size // config.num_interaction_heads
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


# Matrices that are multiplied: the rows of the first meet the columns of the second, or its rows for q and k. The last
# field says whether they meet head by head.
PAIRS = (
    ("q", "k", "rows", True),
    ("v", "o", "columns", True),
    ("fc1", "fc2", "columns", False),
    ("up", "down", "columns", False),
    ("linear_1", "linear_2", "columns", False),
    ("proj_in", "q", "columns", False),
    ("proj_context", "k", "columns", False),
    ("proj_context", "v", "columns", False),
    ("o", "linear_1", "columns", False),
)


def compare_matrices(
    part: PartWeights, matrices: dict[str, torch.Tensor], config: FusionConfig, generator: torch.Generator
):
    """Fill in how well the pairs of a part fit, and the structure of the matrices that are in no pair."""
    paired = set()
    for first, second, axis, by_head in PAIRS:
        if not {first, second} <= matrices.keys():
            continue
        size = head_size(part, config) if by_head else None
        rows, others = matrices[first], matrices[second]
        others = others if axis == "rows" else others.T
        if len(rows) != len(others):
            continue
        paired |= {first, second}
        fit = part.fits[f"{first}-{second}"] = fit_score(rows, others, generator, size)
        are_square = rows.shape[0] == rows.shape[1] and others.shape[0] == others.shape[1]
        # Inputs that both matrices share make transposed matrices fit a little, up to 20. Trained ones exceed that.
        if fit < 2 * STRONG and are_square and fit_score(rows.T, others.T, generator, size) > max(STRONG, 3 * fit):
            part.faults.append(f"{first} and {second} fit only when both are transposed")
    for name in sorted(matrices.keys() - paired):
        part.structures[name] = structure_score(matrices[name], generator)
        if name in ("embed_tokens", "position_embedding", "lm_head"):
            part.structures[f"order of {name}"] = order_score(matrices[name], generator)
        if name == "patch_embedding":
            part.structures["order of its pixels"] = order_score(matrices[name].T, generator)


def fit_score(first: torch.Tensor, second: torch.Tensor, generator: torch.Generator, size: int | None = None) -> float:
    """
    Compare two matrices whose rows belong together, block by block of `size` rows.

    Returns:
        `float`: about 0, with a deviation of 1, if the rows are in no relation; larger the better they fit.
    """
    scores = []
    for rows, others in zip(first.split(size or len(first)), second.split(size or len(first)), strict=True):
        scores.append(rank_correlation(rows.norm(dim=1), others.norm(dim=1)))
        sample = torch.randperm(len(rows), generator=generator)[:NUM_SAMPLES]
        scores.append(similarity_score(rows[sample], others[sample], generator))
    squares = torch.tensor(scores).square()
    return ((squares.sum() - len(scores)) / math.sqrt(2 * len(scores))).item()


def rank_correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return Spearman's correlation in units of its deviation for unrelated values."""
    ranks = [values.argsort().argsort().double() for values in (first, second)]
    ranks = [(rank - rank.mean()) / rank.std(correction=0) for rank in ranks]
    return ((ranks[0] @ ranks[1]) / math.sqrt(len(first))).item()


def similarity_score(first: torch.Tensor, second: torch.Tensor, generator: torch.Generator) -> float:
    """Check whether rows that are alike in one matrix are alike in the other, in units of shuffled rows' deviation."""
    similarities = []
    for rows in (first, second):
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        cosines = (rows @ rows.T).fill_diagonal_(0)
        similarities.append(cosines - cosines.sum() / (len(rows) * (len(rows) - 1)))
        similarities[-1].fill_diagonal_(0)
    first, second = similarities
    shuffled = []
    for _ in range(NUM_SHUFFLES):
        order = torch.randperm(len(first), generator=generator)
        shuffled.append((first[order][:, order] * second).sum())
    return standardize((first * second).sum(), torch.stack(shuffled))


def structure_score(matrix: torch.Tensor, generator: torch.Generator) -> float:
    """Compare the concentration of a matrix's singular values with that of copies with shuffled elements."""
    rows = torch.randperm(matrix.shape[0], generator=generator)[:NUM_SAMPLES]
    columns = torch.randperm(matrix.shape[1], generator=generator)[:NUM_SAMPLES]
    block = matrix[rows][:, columns]
    block = block - block.mean()

    def concentration(block: torch.Tensor) -> torch.Tensor:
        return (block @ block.T).square().sum()

    shuffled = [
        concentration(block.flatten()[torch.randperm(block.numel(), generator=generator)].view_as(block))
        for _ in range(NUM_SHUFFLES)
    ]
    return standardize(concentration(block), torch.stack(shuffled))


def order_score(matrix: torch.Tensor, generator: torch.Generator) -> float:
    """Check whether neighboring rows are alike in norm or direction, as those of trained embeddings are."""
    sample = slice(0, 8 * NUM_SAMPLES)
    rows = matrix[sample] - matrix[sample].mean(dim=0)
    norms = rows.norm(dim=1)
    rows = rows / norms.clamp_min(1e-12)[:, None]
    scores = [rank_correlation(norms[1:], norms[:-1])]
    cosines = []
    for _ in range(NUM_SHUFFLES):
        order = torch.randperm(len(rows), generator=generator)
        cosines.append((rows[order][1:] * rows[order][:-1]).sum())
    scores.append(standardize((rows[1:] * rows[:-1]).sum(), torch.stack(cosines)))
    return max(scores, key=abs)


def standardize(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the distance of a value from the mean of reference values, in their standard deviations."""
    return ((value - reference.mean()) / reference.std().clamp_min(1e-12)).item()


def judge_fits(parts: list[PartWeights]):
    """
    Sort the pairs that do not fit into faults and doubts.

    A pair that is lost is a fault where the same pair of most other layers is strong, or where most pairs of the part
    are lost. Otherwise this kind of pair may be weak in every layer of this model, so it is a doubt.
    """
    scores = defaultdict(list)
    for part in parts:
        for name, score in (part.fits | part.structures).items():
            scores[part.stack, name].append(abs(score))

    def is_strong_elsewhere(part: PartWeights, name: str) -> bool:
        siblings = scores[part.stack, name]
        return len(siblings) > 2 and median(siblings) > STRONG

    for part in parts:
        lost = [pair for pair, score in part.fits.items() if score < LOST]
        mostly = len(part.fits) > 1 and len(lost) > len(part.fits) / 2
        for pair in lost:
            found = part.faults if mostly or is_strong_elsewhere(part, pair) else part.doubts
            found.append(f"{pair.replace('-', ' and ')} do not fit each other ({part.fits[pair]:.1f})")
        for name, score in part.structures.items():
            if abs(score) < LOST_STRUCTURE:
                found = part.faults if is_strong_elsewhere(part, name) else part.doubts
                found.append(f"{name} looks like shuffled numbers ({score:.1f})")
