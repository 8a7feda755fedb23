"""
Prompts of FUSION for vLLM's multimodal pipeline: `FusionProcessor` makes the inputs, this file puts them into an item.

A prompt has one item, with or without an image. The item owns all image and latent tokens. Its range begins with the
prompt and ends with the last latent token, so nothing of the prompt can be scheduled before the item.
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property

import torch
from transformers import BatchFeature
from vllm.inputs import mm_input
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange
from vllm.multimodal.processing import BaseDummyInputsBuilder, BaseMultiModalProcessor, BaseProcessingInfo

from fusion_vlm.hub.loading import build_user_message, check_grid_sizes
from fusion_vlm.modeling_fusion import find_group_starts
from fusion_vlm.processing_fusion import FusionProcessor


# Fields of an item. `grid_sizes` and `image_key` are read on the CPU, where a tensor on the GPU would be waited for.
TENSOR_FIELDS = ("pixel_values", "high_res_pixel_values", "question_input_ids")
CPU_FIELDS = ("grid_sizes", "image_key")
GRID_SIZES = ("image_grid_size", "latent_grid_size")
FIELDS = {
    **{name: MultiModalFieldConfig.batched("image") for name in TENSOR_FIELDS},
    **{name: MultiModalFieldConfig.batched("image", keep_on_cpu=True) for name in CPU_FIELDS},
}


class FusionProcessingInfo(BaseProcessingInfo):
    """What vLLM asks about FUSION's inputs."""

    @cached_property
    def processor(self) -> FusionProcessor:
        model = self.ctx.model_config
        return FusionProcessor.from_pretrained(model.model, revision=model.revision)

    def get_hf_processor(self, **kwargs) -> FusionProcessor:
        return self.processor

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": 1}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        image_processor = self.processor.image_processor
        return {"image": image_processor.image_grid_size**2 + image_processor.latent_grid_size**2}


class FusionDummyInputsBuilder(BaseDummyInputsBuilder[FusionProcessingInfo]):
    """The prompt that vLLM measures memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        image = self._get_dummy_images(width=1, height=1, num_images=1)[0] if mm_counts.get("image") else None
        messages = [build_user_message("question", image)]
        return self.info.processor.apply_chat_template(messages, add_generation_prompt=True)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options) -> dict:
        size = self.info.processor.image_processor.size
        num_images = mm_counts.get("image", 0)
        return {"image": self._get_dummy_images(width=size["width"], height=size["height"], num_images=num_images)}


class FusionMultiModalProcessor(BaseMultiModalProcessor[FusionProcessingInfo]):
    """
    Make vLLM's input of a prompt's token ids and of its image, if it has one.

    `apply` is overridden as a whole. vLLM's own steps replace one placeholder by one run of tokens, and the key of an
    image is made of its pixels alone. An item of FUSION has several runs, and is encoded together with its questions.
    """

    def _get_mm_fields_config(self, hf_inputs, hf_processor_mm_kwargs):
        return FIELDS

    def _get_prompt_updates(self, mm_items, hf_processor_mm_kwargs, out_mm_kwargs):
        raise NotImplementedError("`apply` expands placeholders itself")

    def apply(self, inputs, timing_ctx):
        """
        Expand the placeholders of a prompt, and build its item.

        Raises:
            ValueError: as `FusionProcessor` and `check_grid_sizes`.
        """
        config, processor = self.info.get_hf_config(), self.info.processor
        images = inputs.mm_data_items["image"].get_all() if "image" in inputs.mm_data_items else []
        grid_sizes = read_grid_sizes(config, self.info.ctx.get_merged_mm_kwargs(inputs.hf_processor_mm_kwargs))
        prompt_ids = drop_second_bos(inputs.prompt, processor.tokenizer.bos_token_id)
        text = processor.tokenizer.decode(prompt_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        outputs = processor(images=images or None, text=text, return_tensors="pt", **grid_sizes)
        sizes = [grid_sizes.get(name, getattr(processor.image_processor, name)) for name in GRID_SIZES]
        image_grid_size, latent_grid_size = sizes[0] if images else 0, sizes[1]
        counts = {config.image_token_id: image_grid_size**2, config.latent_token_id: latent_grid_size**2}
        # From the given ids and not from `outputs`: tokenizing a text twice need not give the same ids.
        prompt_ids = [token_id for token_id in prompt_ids for _ in range(counts.get(token_id, 1))]
        token_ids = torch.tensor(prompt_ids)
        is_latent = token_ids == config.latent_token_id
        num_questions = int(find_group_starts(is_latent.unsqueeze(0)).sum())
        if not num_questions:
            return mm_input(prompt_ids, mm_kwargs=MultiModalKwargsItems({}), mm_hashes={}, mm_placeholders={})
        fields = {"grid_sizes": torch.tensor([[image_grid_size, latent_grid_size, num_questions]])}
        if images:
            fields |= self.build_image_fields(outputs)
        length = int(is_latent.nonzero()[-1]) + 1
        is_embed = (is_latent | (token_ids == config.image_token_id))[:length]
        return mm_input(
            prompt_ids,
            mm_kwargs=MultiModalKwargsItems.from_hf_inputs(BatchFeature(fields), FIELDS),
            mm_hashes={"image": [hash_item(fields["grid_sizes"], outputs)]},
            mm_placeholders={"image": [PlaceholderRange(offset=0, length=length, is_embed=is_embed)]},
        )

    def build_image_fields(self, outputs: BatchFeature) -> dict[str, torch.Tensor]:
        """Return the fields of an item that its image and its questions make, pixels in the model's dtype."""
        dtype = self.info.ctx.model_config.dtype
        pixels = {name: outputs[name].to(dtype) for name in ("pixel_values", "high_res_pixel_values")}
        image_key = hash_tensor(outputs["high_res_pixel_values"]).unsqueeze(0)
        return {**pixels, "question_input_ids": outputs["question_input_ids"], "image_key": image_key}


def read_grid_sizes(config, kwargs: Mapping[str, object]) -> dict[str, int]:
    """
    Return the grid sizes among the options of a request.

    Raises:
        ValueError: for any other option, and for a size that the model does not have.
    """
    values = dict.fromkeys(GRID_SIZES)
    for name, value in kwargs.items():
        if name not in values:
            raise ValueError(f"mm_processor_kwargs: {name!r} is no option of FUSION, expected {' or '.join(values)}.")
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError(f"mm_processor_kwargs: {name} is {value!r}, expected a whole number.")
        values[name] = value
    return check_grid_sizes(config, **values)


def drop_second_bos(prompt_ids: list[int], bos_token_id: int | None) -> list[int]:
    """Return the ids without the BOS that vLLM puts before a rendered prompt, which begins with its own."""
    return prompt_ids[1:] if prompt_ids[:2] == [bos_token_id] * 2 else prompt_ids


def hash_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the SHA-256 of a tensor's values, as bytes in a tensor."""
    digest = hashlib.sha256(tensor.contiguous().numpy()).digest()
    return torch.tensor(list(digest), dtype=torch.uint8)


def hash_item(grid_sizes: torch.Tensor, outputs: BatchFeature) -> str:
    """
    Return the key of an encoded item: image, questions and sizes.

    The image alone would not do, because the tower reads the questions too. A key that the client sends is not used.
    """
    digest = hashlib.sha256(grid_sizes.numpy())
    for name in TENSOR_FIELDS if grid_sizes[0, 0] else ():  # without an image, these are zeros and padding
        digest.update(outputs[name].contiguous().numpy())
    return digest.hexdigest()
