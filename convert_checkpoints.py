"""
Convert a released FUSION checkpoint to a folder for the Hugging Face Hub: safetensors, configs, tokenizer and code.

    python convert_checkpoints.py starriver030515/FUSION-Phi3.5-3B out/fusion-phi3.5-3b

This is the only file that knows the released names. It copies tensors one by one, so that it needs little more memory
than one output shard, and it puts the folder in its place only when it is complete.
"""

import dataclasses
import json
import logging
import os
import pickle
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from pathlib import Path


# First, because it checks the version of transformers.
from fusion_vlm.configuration_fusion import DEFAULT_LATENT_GRID_SIZE, FusionConfig  # isort: skip

import torch
import transformers
from huggingface_hub import HfApi, snapshot_download, split_torch_state_dict_into_shards
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import (
    CONFIG_MAPPING,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from fusion_vlm.hub.bug_report import one_line
from fusion_vlm.hub.card import write_card
from fusion_vlm.hub.endpoint import add_endpoint_files
from fusion_vlm.hub.loading import nf4_config
from fusion_vlm.hub.names import ModelNameError, resolve
from fusion_vlm.hub.output_folder import check_output_folder, partial_folder
from fusion_vlm.hub.released import find_released
from fusion_vlm.hub.tensors import compare_tensors
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FRAME_TOKENS, IMAGE_TOKEN, LATENT_TOKEN, FusionProcessor


# Notices: what was dropped, or filled in. The command line prints them on stderr.
logger = logging.getLogger(__name__)

PACKAGE_DIR = Path(__file__).resolve().parent

# The released name is the longest form. Which of the wrappers is written depends on the class of the tower.
TOWER = r"model\.vision_tower(?:\.vision_tower)?(?:\.vision_model)?"

# Released tensor name -> our parameter name, or None to drop the tensor. Each name must match one rule, in full.
RULES: list[tuple[str, str | None]] = [
    (r"lm_head\.weight", r"lm_head.weight"),
    (r"model\.(embed_tokens|norm)\.weight", r"model.language_model.\1.weight"),
    (r"model\.layers\.(.+)", r"model.language_model.layers.\1"),
    (rf"{TOWER}\.(embeddings|encoder)\.(.+)", r"model.vision_tower.\1.\2"),
    # The reference never uses their output. Some towers are saved whole, with SigLIP's text model.
    (rf"{TOWER}\.(post_layernorm|head|text_model|logit_scale|logit_bias)(\..+)?", None),
    (r"model\.mm_projector\.0\.(.+)", r"model.multi_modal_projector.linear_1.\1"),
    (r"model\.mm_projector\.2\.(.+)", r"model.multi_modal_projector.linear_2.\1"),
    (r"model\.aux_projector\.0\.(.+)", r"model.text_to_vision_projector.linear_1.\1"),
    (r"model\.aux_projector\.2\.(.+)", r"model.text_to_vision_projector.linear_2.\1"),
    (
        r"model\.vision_sampler_layers\.(\d+)\.layers\.0\.cross_attn\.([qkv])_proj\.0\.(.+)",
        r"model.interaction_layers.\1.\2_norm.\3",
    ),
    (
        r"model\.vision_sampler_layers\.(\d+)\.layers\.0\.cross_attn\.([qkv])_proj\.1\.(.+)",
        r"model.interaction_layers.\1.\2_proj.\3",
    ),
    (
        r"model\.vision_sampler_layers\.(\d+)\.layers\.0\.cross_attn\.(o_proj\..+)",
        r"model.interaction_layers.\1.\2",
    ),
    (
        r"model\.vision_sampler_layers\.(\d+)\.layers\.0\.((?:proj_in|proj_context|proj_out|norm)\..+)",
        r"model.interaction_layers.\1.\2",
    ),
]

# Parts of names that come from a wrapper around the model when it was saved.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Tensors of adapters (PEFT), which have to be merged into the weights before a conversion.
ADAPTERS = (
    r"(.+\.)?(lora_\w+|hada_\w+|lokr_\w+|ia3_\w+|oft_\w+|boft_\w+|vera_\w+|base_layer|modules_to_save|original_module"
    r"|prompt_encoder)(\..+)?"
)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "non_lora_trainables.bin")
# What quantized weights have beside them: scales, zero points, and descriptions of how they are packed.
PACKINGS = (
    r".+\.(qweight|qzeros|g_idx|scales|SCB|weight\..+|(weight|input|output|activation|k|v)_(scale|zero_point|packed|shape"
    r"|format|g_idx)\w*)"
)
# Tensors that are computed from the config. `is_buffer` recognizes others by their dtype: no parameter is an integer.
BUFFERS = r"(.+\.)?(\w*position_ids|\w*inv_freq|(cos|sin)(_cached)?|\w*_mask|num_batches_tracked|_extra_state)"

SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
OTHER_SAFETENSORS_DTYPES = {
    "BOOL": torch.bool,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
MAX_MAPPED_BYTES = 16 * 2**20  # the bytes that are read from a `.bin` file before it is opened again
MAX_HEADER_SIZE = 100_000_000  # of the safetensors format
DTYPES = ("float32", "float16", "bfloat16")

EMBEDDING = "model.language_model.embed_tokens.weight"

VOCABULARIES = ("tokenizer.json", "tokenizer.model")

# Fields that a config may lack, with their values in all four released models.
RECIPE = {"query_len": "4,16,36,64,144", "window_size": 3}
# The decoder layers after which the released models interact: start and stride, for 10 interactions in 32 layers.
RELEASED_INTERACTION = {"start_of_vision_sampler_layers": 0, "stride_of_vision_sampler_layers": 3}
# Fields that are not the decoder's.
OWN_FIELDS = {"model_type", "mm_vision_tower", "num_of_vision_sampler_layers", *RECIPE, *RELEASED_INTERACTION}
# Fields of the decoder that change its output, and that cannot be computed from the shapes of its tensors.
REQUIRED_DECODER_FIELDS = ("num_attention_heads", "rms_norm_eps", "max_position_embeddings")
# Longer contexts than this need scaled rotary positions, in both released decoders.
MAX_UNSCALED_POSITIONS = 8192

# SigLIP and SigLIP 2 towers: layers of the whole tower, and heads, whose number the shapes do not tell.
NUM_VISION_LAYERS = {"base": 12, "large": 24, "so400m": 27, "giant-opt": 40}
NUM_VISION_HEADS = {"base": 12, "large": 16, "so400m": 16, "giant-opt": 16}
VISION_SIZES = (224, 256, 384, 512)
NUM_INTERACTION_HEADS = 16


@dataclass
class DecoderFamily:
    """What a released decoder type needs beyond its config."""

    model_type: str  # of transformers; also names the chat template
    end_of_turn_token: str
    spare_token: str  # pattern of tokens that the tokenizer reserves; two of them become FUSION's placeholders


DECODER_FAMILIES = {
    "fusion_phi": DecoderFamily("phi3", "<|end|>", r"<\|placeholder\d+\|>"),
    "fusion_llama": DecoderFamily("llama", "<|eot_id|>", r"<\|reserved_special_token_\d+\|>"),
}


class ConversionError(ValueError):
    """The source cannot be converted, or the output folder not be written; the message says why."""


class SourceCheckpoint:
    """
    The tensors of a checkpoint folder: one or several safetensors files, or one or several `.bin` files.

    Attributes:
        shapes (`dict[str, torch.Tensor]`): a tensor on the meta device for each parameter, with its shape and dtype.
            Names are without wrappers, and buffers are dropped.
        stored_names (`dict[str, str]`): the name of each in its file.
        files (`dict[str, Path]`): the file that each stored name is in.

    Raises:
        ConversionError: if there are no weights, if a file is missing, damaged or incomplete, or if the tensors are
            quantized or adapters.
    """

    def __init__(self, folder: Path):
        stored: dict[str, torch.Tensor] = {}
        self.files: dict[str, Path] = {}
        self._open_bin: tuple[Path, dict[str, torch.Tensor]] | None = None
        self._num_bytes = 0  # read from it
        listed = list_weights(folder)
        for path in sorted(set(listed.values())):
            for name, shape in read_shapes(path).items():
                # A tensor that the index expects in another file is a left-over of an earlier save.
                if listed.get(name, path) == path:
                    if name in stored:
                        raise ConversionError(f"{name} is both in {self.files[name].name} and in {path.name}.")
                    stored[name], self.files[name] = shape, path
        if missing := {name for name in listed.keys() - stored.keys() if not name.startswith(SINGLE_FILE)}:
            raise ConversionError(f"The index of {folder} lists tensors that its files lack: {abbreviate(missing)}.")
        refuse_adapters(folder, stored)
        refuse_quantized(stored)
        buffers = [name for name, tensor in stored.items() if is_buffer(name, tensor)]
        if buffers:
            logger.warning("notice: dropped %d buffers: %s", len(buffers), abbreviate(buffers))
        self.stored_names = unwrap_names(stored.keys() - set(buffers))
        self.shapes = {name: stored[stored_name] for name, stored_name in self.stored_names.items()}

    def load(self, name: str) -> torch.Tensor:
        """Return one tensor, in memory of its own."""
        name = self.stored_names[name]
        path = self.files[name]
        with unreadable_file(path):
            if path.suffix == ".bin":
                return self._load_from_bin(path, name)
            # Opened for each tensor: the mapped pages of an open file would count as memory.
            with safe_open(path, framework="pt") as reader:
                return reader.get_tensor(name).clone()

    def _load_from_bin(self, path: Path, name: str) -> torch.Tensor:
        if self._open_bin is None or self._open_bin[0] != path:
            self._open_bin, self._num_bytes = (path, load_bin(path)), 0
        tensor = self._open_bin[1][name].detach().clone(memory_format=torch.contiguous_format)
        self._num_bytes += tensor.nbytes
        # Mapped pages count as memory here too. Opening reads the names of all tensors, so it is not done for each
        # tensor. A file of the old format is not mapped, and opening it again would read all of it.
        if self._num_bytes > MAX_MAPPED_BYTES and zipfile.is_zipfile(path):
            self._open_bin = None
        return tensor


SINGLE_FILE = "<all of "  # begins the name that stands for the unknown tensors of a file without an index


def list_weights(folder: Path) -> dict[str, Path]:
    """List the file of each tensor of a checkpoint; without an index, one made-up name stands for all of a file."""
    forms = {}
    for stem, extension in (("model", "safetensors"), ("pytorch_model", "bin")):
        index, single = folder / f"{stem}.{extension}.index.json", folder / f"{stem}.{extension}"
        shards = sorted(folder.glob(f"{stem}-*-of-*.{extension}"))
        if index.is_file():
            forms[extension] = read_index(index)
        elif single.is_file():
            forms[extension] = {f"{SINGLE_FILE}{single.name}>": single}
        elif shards:
            forms[extension] = list_shards(shards)
    if not forms:
        raise ConversionError(describe_missing_weights(folder))
    extension, listed = next(iter(forms.items()))
    if len(forms) > 1:
        logger.warning("notice: the weights are there twice; took the .%s files, not the .bin files", extension)
    return listed


def read_index(index: Path) -> dict[str, Path]:
    """Read the file of each tensor from an index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ConversionError(f"{index} is not an index of weights: it has no weight_map.")
    listed = {name: index.parent / file for name, file in weight_map.items()}
    if absent := {path.name for path in listed.values() if not path.is_file()}:
        raise ConversionError(f"{index} lists files that are not there: {abbreviate(absent)}.")
    return listed


def list_shards(shards: list[Path]) -> dict[str, Path]:
    """List shards that have no index, or raise a ConversionError if one of them is missing."""
    expected = int(shards[0].stem.rpartition("-of-")[2])
    if len(shards) != expected:
        raise ConversionError(
            f"{shards[0].parent} has {len(shards)} of {expected} shards ({abbreviate(path.name for path in shards)})"
            " and no index. Is the download complete?"
        )
    logger.warning("notice: the shards have no index; took all %d", expected)
    return {f"{SINGLE_FILE}{path.name}>": path for path in shards}


def describe_missing_weights(folder: Path) -> str:
    """Return a message about a folder without the weights of a whole model: what it lacks and what it holds."""
    text = (
        f"{folder} has no weights: expected model.safetensors or pytorch_model.bin, or the index of either and the"
        " files that it lists."
    )
    if any((folder / name).is_file() for name in ADAPTER_FILES):
        return f"{text} It holds an adapter: merge it into its base model first, and convert the result."
    if (folder / "mm_projector.bin").is_file():
        return f"{text} mm_projector.bin holds the projector only, which belongs to a base model."
    checkpoints = [path.name for path in folder.glob("checkpoint-*") if path.is_dir()]
    if checkpoints:
        return f"{text} It holds checkpoints of a training run: convert one of {abbreviate(checkpoints)}."
    if list(folder.glob("global_step*")) or list(folder.glob("pytorch_model_fsdp_*")):
        return (
            f"{text} It holds the shards of a training run: consolidate them first (zero_to_fp32.py, or accelerate)."
        )
    return text


def read_shapes(path: Path) -> dict[str, torch.Tensor]:
    """Read names, shapes and dtypes of the tensors of a file."""
    if problem := find_problem(path):
        raise ConversionError(f"Cannot read {path}: {problem}")
    if path.suffix == ".bin":
        with unreadable_file(path):
            return {name: tensor.to("meta") for name, tensor in load_bin(path, notify=True).items()}
    dtypes = SAFETENSORS_DTYPES | OTHER_SAFETENSORS_DTYPES
    header = read_header(path)
    # Only quantized weights have a dtype that torch lacks. `refuse_quantized` finds them as bytes.
    return {
        name: torch.empty(entry["shape"], dtype=dtypes.get(entry["dtype"], torch.uint8), device="meta")
        for name, entry in header.items()
        if name != "__metadata__"
    }


def find_problem(path: Path) -> str | None:
    """Recognize files that are something else than their name says, by their first bytes."""
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return "the file is empty. Is the download complete?"
    if start.startswith(b"version https://git-lfs"):
        return "this is a git-lfs pointer, not the file itself. Fetch it with `git lfs pull`."
    if start.lstrip().startswith((b"<!DOCTYPE", b"<!doctype", b"<html", b"<?xml")):
        return "this is a web page, not the file itself. Download it again; it may need a login."
    if path.suffix == ".safetensors" and start.startswith((b"PK", b"\x80")):
        return "this is a file of torch.save, not a safetensors file. Rename it to pytorch_model.bin."
    if path.suffix == ".bin" and start[8:9] == b"{":
        return "this is a safetensors file, not a file of torch.save. Rename it to model.safetensors."
    if path.suffix == ".bin" and start.startswith(b"PK") and not zipfile.is_zipfile(path):
        return "the file is cut off. Is the download complete?"
    if path.suffix == ".bin" and not start.startswith((b"PK", b"\x80")):
        return "this is not a file of torch.save."
    return None


def read_header(path: Path) -> dict[str, dict]:
    """Read the header of a safetensors file, and compare the size of the file with it."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        content = file.read(length) if length <= MAX_HEADER_SIZE else b""
    try:
        if size < 8 or 8 + length > size and length <= MAX_HEADER_SIZE:
            raise ConversionError(f"Cannot read {path}: the file is cut off in its header. Is the download complete?")
        header = json.loads(content)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values() if "dtype" in entry), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(
            f"Cannot read {path}: this is not a safetensors file, or its header is damaged."
        ) from error
    if end > size:
        raise ConversionError(
            f"Cannot read {path}: the file is cut off, it has {size} of {end} bytes. Is the download complete?"
        )
    return header


@contextmanager
def unreadable_file(path: Path) -> Iterator[None]:
    """Raise a ConversionError in place of the errors of a file that cannot be read."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"Cannot read {path}: it holds other Python objects than tensors, which are not loaded for safety. Is it a"
            " file of weights?"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, KeyError) as error:
        raise ConversionError(f"Cannot read {path}: {error}. Is the download complete?") from error


def load_bin(path: Path, notify: bool = False) -> dict[str, torch.Tensor]:
    """Load a file of torch.save: tensors by name, or a training checkpoint that has them under one key."""
    content = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    for key in ("state_dict", "model", "module"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise ConversionError(f"Cannot read {path}: it holds no tensors by name, but a {type(content).__name__}.")
    others = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others and notify:
        logger.warning("notice: dropped what is no tensor in %s: %s", path.name, abbreviate(others))
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def refuse_adapters(folder: Path, stored: Iterable[str]):
    """Raise a ConversionError for an adapter, in the names of tensors or beside them."""
    adapters = [name for name in stored if re.fullmatch(ADAPTERS, name)]
    files = [name for name in ADAPTER_FILES if (folder / name).is_file()]
    if adapters or files:
        raise ConversionError(
            f"The checkpoint has adapter tensors: {abbreviate(adapters or files)}. Merge them into the weights first"
            " (PEFT: merge_and_unload), and convert the result."
        )


def refuse_quantized(stored: dict[str, torch.Tensor]):
    """Raise a ConversionError for weights that are not stored as floats."""
    floats = SAFETENSORS_DTYPES.values()
    quantized = [
        f"{name} ({str(tensor.dtype).removeprefix('torch.')})"
        for name, tensor in stored.items()
        if re.fullmatch(PACKINGS, name)
        or name.endswith((".weight", ".bias"))
        and tensor.dtype not in (*floats, torch.bool)
    ]
    if quantized:
        raise ConversionError(
            f"The checkpoint is quantized, not in floats: {abbreviate(quantized)}. Convert the original weights, of"
            " dtype bfloat16, float16 or float32; --quantize nf4 quantizes the result."
        )


def is_buffer(name: str, tensor: torch.Tensor) -> bool:
    """Check whether a tensor is computed from the config, or counts something, so that no model needs it."""
    return re.fullmatch(BUFFERS, name) is not None or tensor.dtype not in SAFETENSORS_DTYPES.values()


def unwrap_names(stored: Iterable[str]) -> dict[str, str]:
    """
    Map names without wrappers to the stored names.

    All names have the prefix of the decoder's embedding, whatever it is, and get `model.` in its place.
    """
    unwrapped: dict[str, str] = {}
    stripped = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in stored}
    anchors = [name for name in stripped.values() if re.fullmatch(r"(.+\.)?embed_tokens\.weight", name)]
    prefix = min(anchors, key=len).removesuffix("embed_tokens.weight") if anchors else "model."
    outer = prefix.removesuffix("model.")
    for name, short in sorted(stripped.items()):
        if short.startswith(prefix) and short.removeprefix(prefix) != "lm_head.weight":
            short = "model." + short.removeprefix(prefix)
        else:
            short = short.removeprefix(prefix).removeprefix(outer)
        if short in unwrapped:
            raise ConversionError(f"The checkpoint has two tensors for {short}: {unwrapped[short]} and {name}.")
        unwrapped[short] = name
    renamed = [name for short, name in unwrapped.items() if short != name]
    if renamed:
        logger.warning("notice: removed wrappers from %d names, such as %s", len(renamed), renamed[0])
    return unwrapped


def read_json(path: Path) -> dict:
    """Read a JSON object, or raise a ConversionError that says what is wrong with the file."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ConversionError(f"{path.parent} has no {path.name}, which a FUSION checkpoint has.") from error
    except ValueError as error:
        raise ConversionError(f"{path} is not valid JSON: {find_problem(path) or f'{error}.'}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds a {type(content).__name__}, expected an object with fields.")
    return content


def abbreviate(names: Iterable, limit: int = 20) -> str:
    """Return the first names of a long list, sorted, and the number of the others."""
    names = sorted(str(name) for name in names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def map_names(names: Iterable[str]) -> dict[str, str]:
    """
    Apply `RULES`: map our parameter names to the released names that fill them.

    Raises:
        ConversionError: for names that no rule knows.
    """
    mapped, unknown = {}, []
    for name in names:
        matches = [(match, target) for pattern, target in RULES if (match := re.fullmatch(pattern, name))]
        if len(matches) != 1:
            unknown.append(name)
        elif (target := matches[0][1]) is not None:
            mapped[matches[0][0].expand(target)] = name
    if unknown:
        raise ConversionError(f"The checkpoint has unexpected tensors: {abbreviate(unknown)}.")
    return mapped


def find_tensor(shapes: dict[str, torch.Tensor], pattern: str) -> torch.Tensor | None:
    """Return the tensor whose name matches a pattern, None if there is none or if there are several."""
    matches = [tensor for name, tensor in shapes.items() if re.fullmatch(pattern, name)]
    return matches[0] if len(matches) == 1 else None


def count_layers(shapes: dict[str, torch.Tensor], pattern: str) -> int:
    """Count the different numbers that a pattern captures in the names."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def build_vision_config(tower_name: str | None, shapes: dict[str, torch.Tensor]) -> SiglipVisionConfig:
    """
    Build the config of the tower as the checkpoint holds it, without the last layer of a tower that is there in full.

    Sizes come from the tensors. The crop and the number of heads, which no shape tells, come from the tower's name, or
    from the number of layers and patches, which differ between the SigLIP towers.
    """
    pixels = find_tensor(shapes, rf"{TOWER}\.embeddings\.patch_embedding\.weight")
    positions = find_tensor(shapes, rf"{TOWER}\.embeddings\.position_embedding\.weight")
    mlp = find_tensor(shapes, rf"{TOWER}\.encoder\.layers\.0\.mlp\.fc1\.weight")
    if pixels is None or positions is None or mlp is None:
        raise ConversionError(
            "The checkpoint lacks the vision tower: no patch embedding, position embedding or layer 0. FUSION's tower"
            " is trained, so that it cannot be taken from elsewhere."
        )
    num_layers, patch_size = count_layers(shapes, rf"{TOWER}\.encoder\.layers\.(\d+)\."), pixels.shape[-1]
    variant, image_size = read_tower_name(tower_name)
    if variant is None:
        variant, image_size = recognize_tower(tower_name, num_layers, patch_size, len(positions))
    elif (image_size // patch_size) ** 2 != len(positions):
        raise ConversionError(
            f"`mm_vision_tower` is {tower_name!r}, whose crop of {image_size} makes"
            f" {(image_size // patch_size) ** 2} patches of {patch_size}, but the checkpoint has {len(positions)}"
            " position embeddings."
        )
    depth = NUM_VISION_LAYERS[variant]
    if num_layers not in (depth - 1, depth):
        raise ConversionError(
            f"`mm_vision_tower` is {tower_name!r}, of which FUSION uses {depth - 1} of {depth} layers, but the"
            f" checkpoint has {num_layers} layers of a tower. If it is another tower, name it with --vision-tower."
        )
    return SiglipVisionConfig(
        hidden_size=len(pixels),
        intermediate_size=len(mlp),
        num_hidden_layers=depth - 1,
        num_attention_heads=NUM_VISION_HEADS[variant],
        image_size=image_size,
        patch_size=patch_size,
        vision_use_head=False,
    )


def read_tower_name(tower_name: str | None) -> tuple[str | None, int]:
    """
    Read variant and crop from a tower's name, wherever in a path it stands; `(None, 0)` if there is none.

    Raises:
        ConversionError: for the name of another kind of tower.
    """
    name = str(tower_name or "").lower()
    match = re.search(r"siglip2?-([a-z0-9-]+?)-patch(\d+)-(\d+)", name)
    if match and match[1] in NUM_VISION_HEADS:
        return match[1], int(match[3])
    if match or re.search(r"(?<![a-z])(clip|dinov?\d?|internvit|convnext|naflex)(?![a-z])", name.split("/")[-1]):
        raise ConversionError(
            f"`mm_vision_tower` is {tower_name!r}, expected a fixed-resolution SigLIP tower such as"
            " google/siglip-so400m-patch14-384 or google/siglip2-giant-opt-patch16-384. If this is only a name, give"
            " the tower that it stands for with --vision-tower."
        )
    return None, 0


def recognize_tower(tower_name: str | None, num_layers: int, patch_size: int, num_patches: int) -> tuple[str, int]:
    """Return variant and crop of a tower from its numbers of layers (one may be dropped) and patches."""
    variants = [name for name, number in NUM_VISION_LAYERS.items() if num_layers in (number - 1, number)]
    sizes = [size for size in VISION_SIZES if (size // patch_size) ** 2 == num_patches]
    if len(variants) != 1 or len(sizes) != 1:
        raise ConversionError(
            f"`mm_vision_tower` is {tower_name!r}, which names no known tower, and its {num_layers} layers and"
            f" {num_patches} patches of {patch_size} are those of no known SigLIP tower. Name it with --vision-tower,"
            " such as google/siglip-so400m-patch14-384."
        )
    logger.warning(
        "notice: `mm_vision_tower` is %r; by its %d layers and %d patches of %d, took it for siglip %s with a crop of"
        " %d and %d heads",
        tower_name,
        num_layers,
        num_patches,
        patch_size,
        variants[0],
        sizes[0],
        NUM_VISION_HEADS[variants[0]],
    )
    return variants[0], sizes[0]


def build_text_config(released: dict, model_type: str, shapes: dict[str, torch.Tensor]) -> PreTrainedConfig:
    """Build the config of the decoder from the released fields that its class has, and the checkpoint's vocabulary."""
    foreign = {"architectures", "dtype", "transformers_version"}
    values = {key: value for key, value in released.items() if key in decoder_fields(model_type) - foreign}
    if "model.embed_tokens.weight" in shapes:
        values["vocab_size"] = len(shapes["model.embed_tokens.weight"])
    rope = values.get("rope_scaling") or {}
    if rope.get("type", rope.get("rope_type")) == "longrope" and "factor" not in rope:
        # transformers would compute the same ratio, but with a warning at every load.
        factor = values["max_position_embeddings"] / values["original_max_position_embeddings"]
        values["rope_scaling"] = {**rope, "factor": factor}
    return CONFIG_MAPPING[model_type](**values)


def read_released_config(folder: Path, overrides: dict) -> dict:
    """
    Read the released config and put the overrides in.

    Fields that are null count as missing, except for ids of tokens that a tokenizer may lack.

    Raises:
        ConversionError: if this is not the config of a FUSION checkpoint, or if it has no field of an override's name.
    """
    released = {
        key: value
        for key, value in read_json(folder / "config.json").items()
        if value is not None or key.endswith("_token_id")
    }
    released |= overrides
    model_type, architectures = released.get("model_type"), released.get("architectures") or []
    if model_type is None:
        # FusionPhiForCausalLM -> fusion_phi
        names = {re.sub(r"Fusion(\w+)ForCausalLM", r"fusion_\1", str(name)).lower() for name in architectures}
        found = sorted(names & DECODER_FAMILIES.keys())
        if found:
            logger.warning("notice: config.json has no model_type; took %s by its architectures", found[0])
            released["model_type"] = model_type = found[0]
    if model_type not in DECODER_FAMILIES:
        is_fusion = str(model_type).startswith("fusion_") and model_type != FusionConfig.model_type
        if is_fusion:
            raise ConversionError(
                f"The decoder type {model_type!r} is unknown, expected one of {', '.join(DECODER_FAMILIES)}."
            )
        raise ConversionError(
            f"Not a FUSION checkpoint: the model_type of its config.json is {model_type!r} (architectures:"
            f" {abbreviate(architectures) or 'none'}), expected {' or '.join(DECODER_FAMILIES)}. A checkpoint that is"
            " converted already can be loaded as it is."
        )
    known = decoder_fields(DECODER_FAMILIES[model_type].model_type) | OWN_FIELDS
    if unknown := overrides.keys() - known:
        raise ConversionError(f"No field of the config has the name {abbreviate(unknown)}, so that it cannot be set.")
    return released


def decoder_fields(model_type: str) -> set[str]:
    """List the fields of a decoder's config, under their released names too."""
    return {field.name for field in dataclasses.fields(CONFIG_MAPPING[model_type])} | {"rope_scaling", "rope_theta"}


def fill_config(released: dict, shapes: dict[str, torch.Tensor]) -> dict:
    """
    Fill in fields that a released config lacks, from the tensors or from the recipes, each with a notice.

    Raises:
        ConversionError: for missing fields that change what the model computes and that cannot be filled in.
    """
    filled = dict(released)
    found = read_decoder_sizes(released, shapes)
    found["num_of_vision_sampler_layers"] = count_layers(shapes, r"model\.vision_sampler_layers\.(\d+)\.")
    if not found["num_of_vision_sampler_layers"]:
        raise ConversionError("Not a FUSION checkpoint: it has no interaction layers (model.vision_sampler_layers).")
    values = found | RECIPE
    if (found["num_of_vision_sampler_layers"], found["num_hidden_layers"]) == (10, 32):
        values |= RELEASED_INTERACTION
    for key, value in values.items():
        if key not in released:
            filled[key] = value
            logger.warning("notice: config.json has no %s; took %s", key, json.dumps(value))
    if "vocab_size" in found and filled["vocab_size"] != found["vocab_size"]:
        logger.warning(
            "notice: config.json says vocab_size %s; took the %s rows of the embedding",
            filled["vocab_size"],
            found["vocab_size"],
        )
    wanted = [*REQUIRED_DECODER_FIELDS, *RELEASED_INTERACTION]
    wanted += [] if "rope_parameters" in filled else ["rope_theta"]
    # A long context without scaling is possible, but the config has to say so.
    if filled.get("max_position_embeddings", 0) > MAX_UNSCALED_POSITIONS and "rope_parameters" not in filled:
        wanted.append("rope_scaling")
    counts = ("window_size", "num_of_vision_sampler_layers", "stride_of_vision_sampler_layers")
    for key in counts:
        if key in filled and (not isinstance(filled[key], int) or filled[key] < 1):
            raise ConversionError(f"`{key}` is {filled[key]!r}, expected a positive integer.")
    missing = [key for key in wanted if key not in filled]
    if missing:
        raise ConversionError(
            f"The released config.json lacks {abbreviate(missing)}, which changes what the model computes and which no"
            " tensor tells. Look it up in the config of its decoder, and pass --set KEY=VALUE for each."
        )
    return filled


def read_decoder_sizes(released: dict, shapes: dict[str, torch.Tensor]) -> dict[str, int]:
    """Read the sizes of the decoder from the shapes of its tensors."""
    sizes = {"num_hidden_layers": count_layers(shapes, r"model\.layers\.(\d+)\.")}
    embedding = shapes.get("model.embed_tokens.weight", shapes.get("lm_head.weight"))
    down = shapes.get("model.layers.0.mlp.down_proj.weight")
    if embedding is None or down is None:
        return sizes  # `check_parameters` lists what is missing
    sizes |= {"vocab_size": len(embedding), "hidden_size": embedding.shape[1], "intermediate_size": down.shape[1]}
    if num_heads := released.get("num_attention_heads"):
        head_dim = released.get("head_dim", sizes["hidden_size"] // num_heads)
        keys = shapes.get("model.layers.0.self_attn.k_proj.weight")
        fused = shapes.get("model.layers.0.self_attn.qkv_proj.weight")
        if keys is not None:
            sizes["num_key_value_heads"] = len(keys) // head_dim
        elif fused is not None:
            sizes["num_key_value_heads"] = (len(fused) // head_dim - num_heads) // 2
    return sizes


def build_config(released: dict, shapes: dict[str, torch.Tensor]) -> FusionConfig:
    """
    Build the config of a released checkpoint, without the token ids, which the tokenizer tells.

    Raises:
        ConversionError: if fields are missing or do not fit the tensors.
    """
    released = fill_config(released, shapes)
    start, stride, count = (released[f"{key}_of_vision_sampler_layers"] for key in ("start", "stride", "num"))
    try:
        return FusionConfig(
            vision_config=build_vision_config(released.get("mm_vision_tower"), shapes),
            text_config=build_text_config(released, DECODER_FAMILIES[released["model_type"]].model_type, shapes),
            interaction_layer_indices=[start + index * stride for index in range(count)],
            num_interaction_heads=NUM_INTERACTION_HEADS,
            latent_grid_sizes=read_latent_grid_sizes(released["query_len"]),
            latent_grid_size=DEFAULT_LATENT_GRID_SIZE,
            window_size=released["window_size"],
        )
    except ConversionError:
        raise
    except (KeyError, TypeError, ValueError, ZeroDivisionError, StrictDataclassError) as error:
        raise ConversionError(f"The released config.json cannot be used: {one_line(error)}") from error


def read_latent_grid_sizes(query_len: str | int | list[int]) -> list[int]:
    """Read the sides of the latent grids from their numbers of latents: `"4,16"`, `16` or `[4, 16]`."""
    counts = query_len if isinstance(query_len, list) else str(query_len).split(",")
    sides = [isqrt(int(count)) for count in counts]
    if not sides or [side**2 for side in sides] != [int(count) for count in counts]:
        raise ConversionError(f"`query_len` is {query_len!r}, expected square numbers, such as 4,16,36,64,144.")
    return sides


def drop_last_layers(mapped: dict[str, str], config: FusionConfig):
    """Drop the last layer of a tower that was saved in full."""
    pattern = r"model\.vision_tower\.encoder\.layers\.(\d+)\..+"
    kept = config.vision_config.num_hidden_layers
    last = [name for name in mapped if (match := re.fullmatch(pattern, name)) and int(match[1]) >= kept]
    for name in last:
        mapped.pop(name)
    if last:
        logger.warning("notice: dropped the tower's layers from %d on, whose output FUSION does not use", kept)


def tie_head(config: FusionConfig, mapped: dict[str, str], source: SourceCheckpoint, vocab_size: int):
    """
    Share one tensor between head and embedding where one of them is missing or the config says so.

    Args:
        vocab_size (`int`): what the released config says.

    Raises:
        ConversionError: if both are there and differ although the config ties them.
    """
    head, embedding = (mapped.get(name) for name in ("lm_head.weight", EMBEDDING))
    if config.tie_word_embeddings and head and embedding:
        if not torch.equal(source.load(head), source.load(embedding)):
            raise ConversionError(
                "The config ties the head to the embedding, but lm_head.weight and model.embed_tokens.weight differ."
                " Pass --set tie_word_embeddings=false if the head is meant, or delete it if not."
            )
        mapped["lm_head.weight"] = embedding
    elif head is None and embedding is not None:
        if not config.tie_word_embeddings:
            rows = len(source.shapes[embedding])
            if rows != vocab_size:
                raise ConversionError(
                    f"The checkpoint has no lm_head.weight, and its embedding of {rows} rows cannot stand in for it:"
                    f" the config says vocab_size {vocab_size} and does not tie them."
                )
            logger.warning("notice: the checkpoint has no lm_head.weight; tied the head to the embedding")
        config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
        mapped["lm_head.weight"] = embedding
    elif embedding is None and head is not None and config.tie_word_embeddings:
        mapped[EMBEDDING] = head


def check_parameters(config: FusionConfig, mapped: dict[str, str], shapes: dict[str, torch.Tensor]):
    """
    Compare names and shapes with those of the model.

    Raises:
        ConversionError: listing missing, unexpected and misshapen tensors.
    """
    with torch.device("meta"):
        expected = FusionForConditionalGeneration(config).state_dict()
    found = compare_tensors(expected, {name: shapes[source] for name, source in mapped.items()})
    misshapen = [
        f"{mapped[name]} is {tuple(shapes[mapped[name]].shape)}, expected {tuple(expected[name].shape)}"
        for name in found.misshapen
    ]
    kinds = {
        "missing": found.missing,
        "unexpected": [mapped[name] for name in found.unexpected],
        "of the wrong shape": misshapen,
    }
    problems = [f"{kind}: {abbreviate(names)}" for kind, names in kinds.items() if names]
    if problems:
        raise ConversionError("The tensors of the checkpoint do not fit its config; " + "; ".join(problems) + ".")


def load_tokenizer(folder: Path, num_rows: int) -> PreTrainedTokenizerBase:
    """
    Load the released tokenizer, with the frame tokens at the end of the vocabulary if it was saved without them.

    Raises:
        ConversionError: if it cannot be read, or has more tokens than the embedding of `num_rows`.
    """
    vocabularies = [path for name in VOCABULARIES if (path := folder / name).is_file()]
    if not vocabularies:
        # Some classes would make an empty vocabulary without an error.
        raise ConversionError(f"{folder} has no vocabulary: expected {' or '.join(VOCABULARIES)}.")
    for path in vocabularies:
        if problem := find_problem(path):
            raise ConversionError(f"Cannot read {path}: {problem}")
    # The class is read from the file: `AutoTokenizer` chooses it by a config, whose model type has to be known to it.
    class_name = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    if class_name is None:
        class_name = "PreTrainedTokenizerFast" if (folder / "tokenizer.json").is_file() else "LlamaTokenizer"
        logger.warning("notice: tokenizer_config.json has no tokenizer_class; took %s", class_name)
    tokenizer_class = getattr(transformers, str(class_name), None)
    if tokenizer_class is None:
        raise ConversionError(f"The tokenizer of {folder} has the unknown class {class_name!r}.")
    try:
        tokenizer = tokenizer_class.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        raise ConversionError(
            f"Cannot read the tokenizer of {folder}: {error}. A tokenizer.model without tokenizer.json needs"
            " SentencePiece: pip install sentencepiece protobuf."
        ) from error
    missing = [token for token in FRAME_TOKENS if token not in tokenizer.get_vocab()]
    if len(missing) == len(FRAME_TOKENS) and len(tokenizer) + len(missing) == num_rows:
        # The reference adds these two, in this order, to the decoder's tokenizer, and nothing else.
        tokenizer.add_special_tokens({"additional_special_tokens": missing})
        logger.warning(
            "notice: the tokenizer lacks %s; took the last two rows of the embedding", " and ".join(missing)
        )
    if len(tokenizer) > num_rows:
        raise ConversionError(
            f"The tokenizer has {len(tokenizer)} tokens, but the embedding has {num_rows} rows: they are not of one"
            " model."
        )
    if len(tokenizer) < num_rows:
        logger.warning("notice: the tokenizer has %d tokens for %d rows of the embedding", len(tokenizer), num_rows)
    return tokenizer


def convert_tokenizer(folder: Path, family: DecoderFamily, num_rows: int) -> PreTrainedTokenizerBase:
    """
    Return the released tokenizer with FUSION's placeholders, padding on the left as generation needs.

    The placeholders replace two reserved tokens, so that the size of the vocabulary and all ids stay as they are.

    Raises:
        ConversionError: if it cannot be read, or lacks tokens that are needed.
    """
    released = load_tokenizer(folder, num_rows)
    tokenizer_json = json.loads(released.backend_tokenizer.to_str())
    roles = {
        role: released.special_tokens_map.get(role) for role in ("bos_token", "eos_token", "unk_token", "pad_token")
    }
    spare = [
        token
        for token in tokenizer_json["added_tokens"]
        if re.fullmatch(family.spare_token, token["content"]) and token["content"] not in roles.values()
    ]
    if len(spare) < 2:
        raise ConversionError(
            f"The tokenizer has {len(spare)} unused tokens of the form {family.spare_token}, expected at least 2, to"
            f" become {IMAGE_TOKEN} and {LATENT_TOKEN}."
        )
    for token, name in zip(spare, (IMAGE_TOKEN, LATENT_TOKEN), strict=False):
        token.update(content=name, special=True, lstrip=False, rstrip=False)
    if missing := {*FRAME_TOKENS, family.end_of_turn_token} - released.get_vocab().keys():
        raise ConversionError(f"The tokenizer lacks tokens of FUSION's prompt: {abbreviate(missing)}.")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tokenizer_json)),
        model_max_length=released.model_max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        extra_special_tokens=[IMAGE_TOKEN, LATENT_TOKEN, *FRAME_TOKENS],
        **roles,
    )


def build_processor(
    tokenizer: PreTrainedTokenizerBase, config: FusionConfig, family: DecoderFamily
) -> FusionProcessor:
    """Build the processor of a converted model."""
    return FusionProcessor.from_tokenizer(
        tokenizer,
        config.vision_config,
        chat_template=(PACKAGE_DIR / "chat_templates" / f"{family.model_type}.jinja").read_text(),
        image_grid_size=config.image_grid_size,
        latent_grid_size=config.latent_grid_size,
        end_of_turn_token=family.end_of_turn_token,
    )


def write_weights(
    source: SourceCheckpoint,
    mapped: dict[str, str],
    folder: Path,
    dtype: torch.dtype | None,
    max_shard_size: int | str,
):
    """Write the shards one after the other, and their index."""
    planned = {name: source.shapes[source_name].to(dtype) for name, source_name in mapped.items()}
    plan = split_torch_state_dict_into_shards(
        planned, max_shard_size=max_shard_size, filename_pattern="model{suffix}.safetensors"
    )
    total_size = plan.metadata["total_size"]
    with tqdm(total=total_size, unit="B", unit_scale=True, desc="Converting") as progress:
        for file, names in plan.filename_to_tensors.items():
            shard = {}
            for name in names:
                shard[name] = source.load(mapped[name]).to(dtype)
                progress.update(shard[name].nbytes)
            save_file(shard, folder / file, metadata={"format": "pt"})
            (folder / file).chmod(0o644)
    if plan.is_sharded:
        index = {"metadata": {"total_size": total_size}, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_quantized_weights(folder: Path, scratch: Path, max_shard_size: int | str):
    """Replace the weights and the config of a complete folder by those of the model in 4 bits (NF4, scales too)."""
    model = FusionForConditionalGeneration.from_pretrained(
        folder, quantization_config=nf4_config(torch.bfloat16), dtype=torch.bfloat16
    )
    model.save_pretrained(scratch, max_shard_size=max_shard_size)
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    for path in [*scratch.glob("model*.safetensors*"), scratch / "config.json"]:
        path.replace(folder / path.name)
        (folder / path.name).chmod(0o644)


def convert(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    dtype: torch.dtype | str | None = None,
    max_shard_size: int | str = "5GB",
    quantize: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    copy_of: str | None = None,
    repo_id: str | None = None,
    vision_tower: str | None = None,
    overrides: dict | None = None,
) -> Path:
    """
    Convert a released FUSION checkpoint to a folder that `from_pretrained` loads with `trust_remote_code=True`.

    Args:
        source (`str` or `os.PathLike`):
            A folder, or the id of a Hub repository.
        output_dir (`str` or `os.PathLike`):
            The folder to make. May exist if it is empty.
        dtype (`torch.dtype` or `str`, *optional*):
            Dtype of the written tensors, such as `"bfloat16"`. Defaults to the dtype of the source.
        max_shard_size (`int` or `str`):
            Size of one file, in bytes or as `"5GB"`. It bounds the memory too.
        quantize (`str`, *optional*):
            `"nf4"` to write 4-bit weights for bitsandbytes, which load without a quantization config. This needs
            memory for the quantized model, and meanwhile disk space for the other one.
        revision, token (`str`, *optional*):
            Branch, tag or commit of the Hub repository, and the token to read it with.
        copy_of (`str`, *optional*):
            Hub id of the released checkpoint that a local `source` is a copy of. The model card then names that
            checkpoint and has the authors' results. Without it the card claims neither, because a folder does not
            tell whether it was trained further.
        repo_id (`str`, *optional*):
            The Hub repository that the output is meant for, which the model card names.
        vision_tower (`str`, *optional*):
            Name of the SigLIP tower, where the config has only a path: `"google/siglip-so400m-patch14-384"`.
        overrides (`dict`, *optional*):
            Fields of the released config to replace or to add, such as `{"rope_theta": 10000.0}`.

    Returns:
        `Path`: the output folder.

    Raises:
        ConversionError: if the source cannot be converted, or `output_dir` is not empty. Nothing is left behind.
    """
    output_dir = check_arguments(output_dir, quantize)
    dtype = parse_dtype(dtype)
    folder = find_source(source, revision=revision, token=token)
    overrides = dict(overrides or {})
    if vision_tower is not None:
        overrides["mm_vision_tower"] = vision_tower
    released = read_released_config(folder, overrides)
    checkpoint = SourceCheckpoint(folder)
    config, mapped = fit_config(released, checkpoint)
    released_id = find_released_id(source, copy_of, config)
    family = DECODER_FAMILIES[released["model_type"]]
    processor = build_processor(convert_tokenizer(folder, family, config.text_config.vocab_size), config, family)
    complete_config(config, processor, dtype or find_dtype(checkpoint.shapes))
    generation_config = build_generation_config(folder, released)
    with partial_folder(output_dir) as partial:
        write_weights(checkpoint, mapped, partial, dtype, max_shard_size)
        processor.save_pretrained(partial)
        generation_config.save_pretrained(partial)
        add_endpoint_files(partial, quantized=quantize is not None)
        # Last of what a model needs: a folder without config.json does not load, so an interrupted one never does.
        config.save_pretrained(partial)
        if quantize:
            write_quantized_weights(partial, partial.with_name("quantized"), max_shard_size)
        write_card(partial, repo_id=repo_id, released=released_id)
    return output_dir


def check_arguments(output_dir: str | os.PathLike, quantize: str | None) -> Path:
    """Return the path of the output folder, or raise a ConversionError for what `convert` does not take."""
    try:
        path = check_output_folder(output_dir)
    except ValueError as error:
        raise ConversionError(str(error)) from error
    if quantize not in (None, "nf4"):
        raise ConversionError(f"The quantization {quantize!r} is unknown, expected 'nf4'.")
    return path


def fit_config(released: dict, checkpoint: SourceCheckpoint) -> tuple[FusionConfig, dict[str, str]]:
    """
    Build the config of a checkpoint, and map our names of the tensors to be written to the released names.

    Raises:
        ConversionError: if config and tensors do not fit each other.
    """
    config = build_config(released, checkpoint.shapes)
    mapped = map_names(checkpoint.shapes)
    drop_last_layers(mapped, config)
    tie_head(config, mapped, checkpoint, released.get("vocab_size", config.text_config.vocab_size))
    check_parameters(config, mapped, checkpoint.shapes)
    if config.tie_word_embeddings:
        del mapped["lm_head.weight"]  # loading ties it
    return config, mapped


def find_released_id(source: str | os.PathLike, copy_of: str | None, config: FusionConfig) -> str | None:
    """
    Return the Hub id of the released checkpoint that a source is, None if it is another one.

    Raises:
        ConversionError: if `copy_of` is not a released checkpoint of these sizes.
    """
    known = find_released(config)
    if copy_of is not None and copy_of not in known:
        raise ConversionError(
            f"{source} is no copy of {copy_of}: its sizes are those of {abbreviate(known) or 'no released model'}."
        )
    origin = copy_of or str(source)
    return origin if origin in known else None


def complete_config(config: FusionConfig, processor: FusionProcessor, dtype: torch.dtype):
    """Set the fields of a config that its tensors do not tell: ids of tokens, the class and the dtype."""
    config.image_token_id = processor.image_token_id
    config.latent_token_id = processor.latent_token_id
    config.question_end_token_ids = processor.question_end_token_ids
    config.architectures = [FusionForConditionalGeneration.__name__]
    config.dtype = dtype


def find_source(source: str | os.PathLike, revision: str | None, token: str | None) -> Path:
    """Return the local folder of a checkpoint, downloaded if `source` is a Hub id."""
    try:
        source = resolve(source)
    except ModelNameError as error:
        raise ConversionError(str(error)) from error
    if Path(source).is_dir():
        return Path(source)
    if Path(source).is_file():
        raise ConversionError(f"{source} is a file, expected the folder of a checkpoint.")
    try:
        files = HfApi(token=token).list_repo_files(source, revision=revision)
        # Files of subfolders are skipped: training leaves whole checkpoints there.
        files = [file for file in files if "/" not in file]
        has_safetensors = any(file.endswith(".safetensors") and file not in ADAPTER_FILES for file in files)
        weights = r"model.*\.safetensors" if has_safetensors else r"pytorch_model.*\.bin"
        wanted = [*ADAPTER_FILES, "tokenizer.model", *(file for file in files if re.fullmatch(weights, file))]
        patterns = [file for file in files if file.endswith(".json") or file in wanted]
        return Path(snapshot_download(source, revision=revision, token=token, allow_patterns=patterns))
    except Exception as error:  # the Hub client raises the errors of its HTTP library
        raise ConversionError(f"{source} is no folder here, and cannot be downloaded from the Hub: {error}") from error


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the dtype of a name, or raise a ConversionError for a name that is unknown."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    name = dtype.removeprefix("torch.")
    if name not in DTYPES:
        raise ConversionError(f"The dtype {dtype!r} is unknown, expected one of {', '.join(DTYPES)}.")
    return getattr(torch, name)


def find_dtype(shapes: dict[str, torch.Tensor]) -> torch.dtype:
    """Return the dtype of most parameters, and log the tensors that have another one."""
    numbers: Counter[torch.dtype] = Counter()
    for tensor in shapes.values():
        numbers[tensor.dtype] += tensor.numel()
    dtype = numbers.most_common(1)[0][0]
    if others := [name for name, tensor in shapes.items() if tensor.dtype != dtype]:
        logger.warning(
            "notice: %d tensors are not of dtype %s and are copied as they are; --dtype makes all alike: %s",
            len(others),
            str(dtype).removeprefix("torch."),
            abbreviate(others, limit=5),
        )
    return dtype


def build_generation_config(folder: Path, released: dict) -> GenerationConfig:
    """
    Build the generation config from the released one, or from the special tokens of the released config.

    Sampling settings that contradict each other are dropped with a notice, because transformers would not save them.
    """
    path = folder / "generation_config.json"
    saved = read_json(path) if path.is_file() else {}
    values = {**released, **{key: value for key, value in saved.items() if value is not None}}
    tokens, sampling = ("bos_token_id", "eos_token_id", "pad_token_id"), ("do_sample", "temperature", "top_p", "top_k")
    kept = {key: values[key] for key in tokens if key in values}
    given = {key: values[key] for key in sampling if key in values}
    try:
        if given.get("temperature", 1) <= 0:
            raise ValueError("a temperature of 0 means the likeliest token, without sampling")
        config = GenerationConfig(**kept, **given)
        config.validate(strict=True)
    except (TypeError, ValueError) as error:
        logger.warning("notice: dropped %s of the generation config: %s", abbreviate(given), one_line(error))
        config = GenerationConfig(**kept)
    return config


if __name__ == "__main__":
    from fusion_vlm.commands.main import main

    sys.exit(main(["convert", *sys.argv[1:]]))
