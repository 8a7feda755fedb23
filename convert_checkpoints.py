"""
Converts a released FUSION checkpoint to a folder for the Hugging Face Hub: safetensors, configs, tokenizer and code.

    python convert_checkpoints.py starriver030515/FUSION-Phi3.5-3B out/fusion-phi3.5-3b

This is the only file that knows the released names. It copies tensors one by one, so that it needs little more memory
than one output shard, and it puts the folder in its place only when it is complete.
"""

import argparse
import dataclasses
import json
import os
import pickle
import re
import shutil
import sys
import tempfile
import types
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from pathlib import Path


if not __package__:
    # Run as a script: the folder that this file lies in is the package.
    __package__ = "fusion_vlm"
    package = types.ModuleType(__package__)
    package.__path__ = [str(Path(__file__).resolve().parent)]
    sys.modules.setdefault(__package__, package)

from .configuration_fusion import FusionConfig  # isort: skip

import torch
import transformers
from huggingface_hub import HfApi, snapshot_download, split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import (
    CONFIG_MAPPING,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from .hub.card import released_ids, write_card
from .hub.push import prepare_repository, upload
from .modeling_fusion import FusionForConditionalGeneration
from .processing_fusion import FusionImageProcessor, FusionProcessor


PACKAGE_DIR = Path(__file__).resolve().parent
SHIPPED_FILES = ("configuration_fusion.py", "modeling_fusion.py", "processing_fusion.py", "handler.py")

# Released tensor name -> our parameter name; None: dropped on purpose. Each name must match exactly one rule, in full.
RULES: list[tuple[str, str | None]] = [
    (r"lm_head\.weight", r"lm_head.weight"),
    (r"model\.(embed_tokens|norm)\.weight", r"model.language_model.\1.weight"),
    (r"model\.layers\.(.+)", r"model.language_model.layers.\1"),
    (r"model\.vision_tower\.vision_tower\.vision_model\.(embeddings|encoder)\.(.+)", r"model.vision_tower.\1.\2"),
    # In the files, but its output is never used.
    (r"model\.vision_tower\.vision_tower\.vision_model\.post_layernorm\.(weight|bias)", None),
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

SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES = ("float32", "float16", "bfloat16")

PLACEHOLDER_TOKENS = ("<image>", "<latent>")
FRAME_TOKENS = ("<vision_start>", "<vision_end>")
DEFAULT_LATENT_GRID_SIZE = 8

# Heads of SigLIP's and SigLIP 2's towers, which no tensor shape tells.
NUM_VISION_HEADS = {"base": 12, "large": 16, "so400m": 16, "giant-opt": 16}
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
        shapes (`dict[str, torch.Tensor]`): a tensor on the meta device for each tensor, with its shape and dtype.
        files (`dict[str, Path]`): the file that each tensor is in.

    Raises:
        ConversionError: if there are no weights, or if a file is missing, damaged or incomplete.
    """

    def __init__(self, folder: Path):
        self.shapes: dict[str, torch.Tensor] = {}
        self.files: dict[str, Path] = {}
        listed = self._list_files(folder)
        for path in sorted(set(listed.values())):
            shapes = self._read_shapes(path)
            self.shapes.update(shapes)
            self.files.update(dict.fromkeys(shapes, path))
        if missing := listed.keys() - self.shapes.keys() - {None}:
            raise ConversionError(f"The index of {folder} lists tensors that its files lack: {abbreviate(missing)}.")

    @staticmethod
    def _list_files(folder: Path) -> dict[str | None, Path]:
        for stem, extension in (("model", "safetensors"), ("pytorch_model", "bin")):
            index = folder / f"{stem}.{extension}.index.json"
            if index.is_file():
                listed = {name: folder / file for name, file in read_json(index)["weight_map"].items()}
                if absent := {path.name for path in listed.values() if not path.is_file()}:
                    raise ConversionError(f"{index} lists files that are not there: {abbreviate(absent)}.")
                return listed
            single = folder / f"{stem}.{extension}"
            if single.is_file():
                return {None: single}
        raise ConversionError(
            f"{folder} has no weights: expected model.safetensors or pytorch_model.bin, or the index of either and the"
            " files that it lists."
        )

    @staticmethod
    def _read_shapes(path: Path) -> dict[str, torch.Tensor]:
        with unreadable_file(path):
            if path.suffix == ".bin":
                return {name: tensor.to("meta") for name, tensor in load_bin(path).items()}
            with safe_open(path, framework="pt") as reader:
                slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118
                return {
                    name: torch.empty(part.get_shape(), dtype=SAFETENSORS_DTYPES[part.get_dtype()], device="meta")
                    for name, part in slices.items()
                }

    def load(self, name: str) -> torch.Tensor:
        """One tensor, in memory of its own. The file is closed again, since its mapped pages would count as memory."""
        path = self.files[name]
        with unreadable_file(path):
            if path.suffix == ".bin":
                return load_bin(path)[name].clone()
            with safe_open(path, framework="pt") as reader:
                return reader.get_tensor(name).clone()


@contextmanager
def unreadable_file(path: Path):
    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError) as error:
        raise ConversionError(f"Cannot read {path}: {error}. Is the download complete?") from error


def load_bin(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConversionError(f"{path.parent} has no {path.name}, which a FUSION checkpoint has.") from error
    except ValueError as error:
        raise ConversionError(f"{path} is not valid JSON: {error}.") from error


def abbreviate(names: Iterable, limit: int = 20) -> str:
    """The first names of a long list, sorted, and how many more there are."""
    names = sorted(str(name) for name in names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def map_names(names: Iterable[str]) -> dict[str, str]:
    """
    Applies `RULES`: our parameter names to the released names that fill them.

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


def build_vision_config(tower_name: str, shapes: dict[str, torch.Tensor]) -> SiglipVisionConfig:
    """
    Config of the tower as the checkpoint holds it. Sizes come from its tensors; only the crop and the number of heads,
    which no shape tells, come from the tower's name.
    """
    name = Path(tower_name).name
    match = re.fullmatch(r"siglip2?-(.+)-patch(\d+)-(\d+)", name)
    if not match or match[1] not in NUM_VISION_HEADS:
        raise ConversionError(
            f"`mm_vision_tower` is {tower_name!r}, expected a fixed-resolution SigLIP tower such as"
            " google/siglip-so400m-patch14-384 or google/siglip2-giant-opt-patch16-384."
        )
    prefix = "model.vision_tower.vision_tower.vision_model."
    layer_prefix = f"{prefix}encoder.layers."
    layers = {key.removeprefix(layer_prefix).split(".")[0] for key in shapes if key.startswith(layer_prefix)}
    try:
        patch_embedding = shapes[f"{prefix}embeddings.patch_embedding.weight"]
        num_positions = len(shapes[f"{prefix}embeddings.position_embedding.weight"])
        intermediate_size = len(shapes[f"{layer_prefix}0.mlp.fc1.weight"])
    except KeyError as error:
        raise ConversionError(f"The checkpoint lacks a tensor of the vision tower: {error}.") from error
    patch_size, image_size = patch_embedding.shape[-1], int(match[3])
    if (image_size // patch_size) ** 2 != num_positions:
        raise ConversionError(
            f"`mm_vision_tower` is {tower_name!r}, whose crop of {image_size} makes"
            f" {(image_size // patch_size) ** 2} patches of {patch_size}, but the checkpoint has {num_positions}"
            " position embeddings."
        )
    return SiglipVisionConfig(
        hidden_size=len(patch_embedding),
        intermediate_size=intermediate_size,
        num_hidden_layers=len(layers),
        num_attention_heads=NUM_VISION_HEADS[match[1]],
        image_size=image_size,
        patch_size=patch_size,
        vision_use_head=False,
    )


def build_text_config(released: dict, model_type: str, shapes: dict[str, torch.Tensor]) -> PreTrainedConfig:
    """Config of the decoder: what its class knows of the released config, with the vocabulary of the checkpoint."""
    config_class = CONFIG_MAPPING[model_type]
    known = {field.name for field in dataclasses.fields(config_class)} | {"rope_scaling", "rope_theta"}
    foreign = {"architectures", "dtype", "transformers_version"}
    values = {key: value for key, value in released.items() if key in known - foreign}
    if "model.embed_tokens.weight" in shapes:
        values["vocab_size"] = len(shapes["model.embed_tokens.weight"])
    rope = values.get("rope_scaling") or {}
    if rope.get("type", rope.get("rope_type")) == "longrope" and "factor" not in rope:
        # The ratio that transformers computes itself otherwise, but with a warning at every load.
        factor = values["max_position_embeddings"] / values["original_max_position_embeddings"]
        values["rope_scaling"] = {**rope, "factor": factor}
    return config_class(**values)


def build_config(released: dict, shapes: dict[str, torch.Tensor]) -> FusionConfig:
    """
    Config of a released checkpoint, without the token ids, which the tokenizer tells.

    Raises:
        ConversionError: if this is not the config of a FUSION checkpoint, or of one that is not known.
    """
    if "mm_vision_tower" not in released or "num_of_vision_sampler_layers" not in released:
        raise ConversionError(
            f"Not a FUSION checkpoint: its config.json (model_type {released.get('model_type')!r}) has no"
            " `mm_vision_tower` and `num_of_vision_sampler_layers`. A checkpoint that is converted already can be"
            " loaded as it is."
        )
    model_type = released.get("model_type")
    if model_type not in DECODER_FAMILIES:
        raise ConversionError(
            f"The decoder type {model_type!r} is unknown, expected one of {', '.join(DECODER_FAMILIES)}."
        )
    try:
        start, stride, count = (released[f"{key}_of_vision_sampler_layers"] for key in ("start", "stride", "num"))
        latent_grid_sizes = [isqrt(int(count)) for count in str(released["query_len"]).split(",")]
        return FusionConfig(
            vision_config=build_vision_config(released["mm_vision_tower"], shapes),
            text_config=build_text_config(released, DECODER_FAMILIES[model_type].model_type, shapes),
            interaction_layer_indices=[start + index * stride for index in range(count)],
            num_interaction_heads=NUM_INTERACTION_HEADS,
            latent_grid_sizes=latent_grid_sizes,
            latent_grid_size=DEFAULT_LATENT_GRID_SIZE,
            window_size=released["window_size"],
        )
    except KeyError as error:
        raise ConversionError(f"The released config.json lacks {error}.") from error


def check_parameters(config: FusionConfig, mapped: dict[str, str], shapes: dict[str, torch.Tensor]):
    """
    Compares names and shapes with those of the model.

    Raises:
        ConversionError: listing missing, unexpected and misshapen tensors.
    """
    with torch.device("meta"):
        expected = FusionForConditionalGeneration(config).state_dict()
    if config.tie_word_embeddings:
        mapped.setdefault("lm_head.weight", mapped.get("model.language_model.embed_tokens.weight"))
    problems = []
    if missing := expected.keys() - mapped.keys():
        problems.append(f"missing: {abbreviate(missing)}")
    if unexpected := mapped.keys() - expected.keys():
        problems.append(f"unexpected: {abbreviate(mapped[name] for name in unexpected)}")
    misshapen = [
        f"{mapped[name]} is {tuple(shapes[mapped[name]].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected.keys() & mapped.keys()
        if shapes[mapped[name]].shape != expected[name].shape
    ]
    if misshapen:
        problems.append(f"of the wrong shape: {abbreviate(misshapen)}")
    if problems:
        raise ConversionError("The tensors of the checkpoint do not fit its config; " + "; ".join(problems) + ".")


def convert_tokenizer(folder: Path, family: DecoderFamily) -> PreTrainedTokenizerBase:
    """
    The released tokenizer with two of its reserved tokens renamed to FUSION's placeholders, so that the vocabulary
    stays as it is; padding goes to the left, as generation needs.

    Raises:
        ConversionError: if it cannot be read, or lacks tokens that are needed.
    """
    # By the class that it names: `AutoTokenizer` needs a config that transformers knows, and would choose by that.
    class_name = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    tokenizer_class = getattr(transformers, str(class_name), None)
    if tokenizer_class is None:
        raise ConversionError(f"The tokenizer of {folder} has the unknown class {class_name!r}.")
    try:
        released = tokenizer_class.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        raise ConversionError(
            f"Cannot read the tokenizer of {folder}: {error}. A tokenizer.model without tokenizer.json needs"
            " SentencePiece: pip install sentencepiece protobuf."
        ) from error
    tokenizer_json = json.loads(released.backend_tokenizer.to_str())
    roles = {
        role: released.special_tokens_map.get(role) for role in ("bos_token", "eos_token", "unk_token", "pad_token")
    }
    spare = [
        token
        for token in tokenizer_json["added_tokens"]
        if re.fullmatch(family.spare_token, token["content"]) and token["content"] not in roles.values()
    ]
    if len(spare) < len(PLACEHOLDER_TOKENS):
        raise ConversionError(
            f"The tokenizer has {len(spare)} unused tokens of the form {family.spare_token}, expected at least"
            f" {len(PLACEHOLDER_TOKENS)}, to become {' and '.join(PLACEHOLDER_TOKENS)}."
        )
    for token, name in zip(spare, PLACEHOLDER_TOKENS, strict=False):
        token.update(content=name, special=True, lstrip=False, rstrip=False)
    if missing := {*FRAME_TOKENS, family.end_of_turn_token} - released.get_vocab().keys():
        raise ConversionError(f"The tokenizer lacks tokens of FUSION's prompt: {abbreviate(missing)}.")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tokenizer_json)),
        model_max_length=released.model_max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        extra_special_tokens=[*PLACEHOLDER_TOKENS, *FRAME_TOKENS],
        **roles,
    )


def build_processor(
    tokenizer: PreTrainedTokenizerBase, config: FusionConfig, family: DecoderFamily
) -> FusionProcessor:
    size = config.vision_config.image_size
    image_processor = FusionImageProcessor(
        size={"height": size, "width": size},
        image_grid_size=config.image_grid_size,
        latent_grid_size=config.latent_grid_size,
    )
    return FusionProcessor(
        image_processor,
        tokenizer,
        chat_template=(PACKAGE_DIR / "chat_templates" / f"{family.model_type}.jinja").read_text(),
        end_of_turn_token=family.end_of_turn_token,
    )


def write_weights(
    source: SourceCheckpoint,
    mapped: dict[str, str],
    folder: Path,
    dtype: torch.dtype | None,
    max_shard_size: int | str,
):
    """Writes the shards one after the other, and their index."""
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
    """Replaces the weights and the config of a complete folder by those of the model in 4 bits (NF4, twice)."""
    quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = FusionForConditionalGeneration.from_pretrained(
        folder, quantization_config=quantization_config, dtype=torch.bfloat16
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
) -> Path:
    """
    Converts a released FUSION checkpoint to a folder that `from_pretrained` loads with `trust_remote_code=True`.

    Args:
        source (`str` or `os.PathLike`):
            A folder, or the id of a Hub repository.
        output_dir (`str` or `os.PathLike`):
            The folder to make. May exist if it is empty.
        dtype (`torch.dtype` or `str`, *optional*):
            Of the written tensors, such as `"bfloat16"`. Defaults to that of the source.
        max_shard_size (`int` or `str`):
            Of one file, in bytes or as `"5GB"`. Bounds the memory too.
        quantize (`str`, *optional*):
            `"nf4"` to write 4-bit weights for bitsandbytes, which load without a quantisation config. Needs memory for
            the quantised model, and disk for the other one in between.
        revision, token (`str`, *optional*):
            Of the Hub repository.
        copy_of (`str`, *optional*):
            Hub id of the released checkpoint that a local `source` is a copy of. The model card then names it and has
            its authors' results; a folder does not tell whether it was trained further.
        repo_id (`str`, *optional*):
            The Hub repository that the output is meant for, which the model card names.

    Returns:
        `Path`: the output folder.

    Raises:
        ConversionError: if the source cannot be converted, or `output_dir` is not empty. Nothing is left behind.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ConversionError(
            f"The output folder {output_dir} exists and is not empty. Remove it or name another one."
        )
    if quantize not in (None, "nf4"):
        raise ConversionError(f"The quantisation {quantize!r} is unknown, expected 'nf4'.")
    dtype = parse_dtype(dtype)
    folder = find_source(source, revision=revision, token=token)
    released = read_json(folder / "config.json")
    checkpoint = SourceCheckpoint(folder)
    config = build_config(released, checkpoint.shapes)
    mapped = map_names(checkpoint.shapes)
    check_parameters(config, mapped, checkpoint.shapes)
    known = released_ids(config)
    if copy_of is not None and copy_of not in known:
        raise ConversionError(
            f"{source} is no copy of {copy_of}: its sizes are those of {abbreviate(known) or 'no released model'}."
        )
    origin = copy_of or str(source)

    family = DECODER_FAMILIES[released["model_type"]]
    processor = build_processor(convert_tokenizer(folder, family), config, family)
    config.image_token_id = processor.image_token_id
    config.latent_token_id = processor.latent_token_id
    config.question_end_token_ids = processor.question_end_token_ids
    config.architectures = [FusionForConditionalGeneration.__name__]
    config.dtype = dtype or checkpoint.shapes["model.embed_tokens.weight"].dtype

    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=output_dir.parent, prefix=f".{output_dir.name}.", suffix=".partial"
    ) as partial:
        partial = Path(partial) / output_dir.name
        partial.mkdir()
        write_weights(checkpoint, mapped, partial, dtype, max_shard_size)
        processor.save_pretrained(partial)
        build_generation_config(folder, released).save_pretrained(partial)
        for file in SHIPPED_FILES:
            shutil.copy(PACKAGE_DIR / file, partial)
        # After what it takes to run, because a folder without it does not load.
        config.save_pretrained(partial)
        if quantize:
            write_quantized_weights(partial, partial.with_name("quantized"), max_shard_size)
        write_card(partial, repo_id=repo_id, released=origin if origin in known else None)
        partial.replace(output_dir)
    return output_dir


def find_source(source: str | os.PathLike, revision: str | None, token: str | None) -> Path:
    """The local folder of a checkpoint, downloaded if `source` is a Hub id."""
    if Path(source).is_dir():
        return Path(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise ConversionError(f"{source} is neither a folder nor the id of a Hub repository (owner/name).")
    try:
        files = HfApi(token=token).list_repo_files(source, revision=revision)
        has_safetensors = any(file.endswith(".safetensors") for file in files)
        weights = "*.safetensors" if has_safetensors else "*.bin"
        patterns = ["*.json", "tokenizer.model", weights]
        return Path(snapshot_download(source, revision=revision, token=token, allow_patterns=patterns))
    except Exception as error:  # of whatever HTTP library the Hub client uses
        raise ConversionError(f"{source} is no folder here, and cannot be downloaded from the Hub: {error}") from error


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ConversionError(f"The dtype {dtype!r} is unknown, expected one of {', '.join(DTYPES)}.")
    return getattr(torch, dtype)


def build_generation_config(folder: Path, released: dict) -> GenerationConfig:
    """The released generation config, or the special tokens of the released config."""
    path = folder / "generation_config.json"
    values = read_json(path) if path.is_file() else released
    keep = {"bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k"}
    return GenerationConfig(**{key: value for key, value in values.items() if key in keep})


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder of a released checkpoint, or the id of its Hub repository")
    parser.add_argument("output_dir", help="folder to make; may exist if it is empty")
    parser.add_argument("--dtype", choices=DTYPES, help="of the written tensors (default: that of the source)")
    parser.add_argument("--max-shard-size", default="5GB", help="of one file, and bound of the memory (default: 5GB)")
    parser.add_argument("--quantize", choices=["nf4"], help="write 4-bit weights for bitsandbytes")
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--token", help="Hub token (default: the one of `hf auth login`)")
    parser.add_argument("--copy-of", metavar="ID", help="Hub id of the checkpoint that a local source is a copy of")
    parser.add_argument("--push-to-hub", metavar="REPO", help="upload the folder to this repository, private if new")
    parser.add_argument("--public", action="store_true", help="push to a public repository")
    args = parser.parse_args(argv)
    if args.public and not args.push_to_hub:
        parser.error("--public needs --push-to-hub")
    api, repo_id = HfApi(token=args.token), None
    try:
        if args.push_to_hub:
            # First, because a conversion takes long and a name or token may be wrong.
            repo_id = prepare_repository(api, args.push_to_hub, public=args.public)
        output_dir = convert(
            args.source,
            args.output_dir,
            dtype=args.dtype,
            max_shard_size=args.max_shard_size,
            quantize=args.quantize,
            revision=args.revision,
            token=args.token,
            copy_of=args.copy_of,
            repo_id=repo_id,
        )
        print(f"Wrote {output_dir}")
        if repo_id:
            upload(api, repo_id, output_dir)
            print(f"Uploaded to {repo_id}")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
