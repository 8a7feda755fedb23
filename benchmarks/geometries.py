"""Sizes and random inputs that the benchmarks measure on."""

from dataclasses import dataclass
from functools import partial

import torch
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel, SiglipVisionConfig
from transformers.initialization import no_init_weights

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration


NUM_ANSWER_TOKENS = 64
# Decoder and tower of the released models.
RELEASED = {
    "FUSION-Phi3.5-3B": ("phi", "so400m"),
    "FUSION-X-Phi3.5-3B": ("phi", "giant"),
    "FUSION-LLaMA3.1-8B": ("llama", "so400m"),
    "FUSION-X-LLaMA3.1-8B": ("llama", "giant"),
}


@dataclass(frozen=True)
class Settings:
    """The settings of a benchmark; the processes that measure memory get a pickled copy."""

    geometries: tuple[str, ...]
    device: str
    dtype: torch.dtype
    repeats: int
    quick: bool


def released_config(name: str) -> FusionConfig:
    """Return a config with the sizes of a released model; `name` is one of `RELEASED`."""
    decoder, tower = RELEASED[name]
    sizes = {}
    if decoder == "llama":
        sizes["text_config"] = LlamaConfig(
            vocab_size=128258,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            pad_token_id=None,
        )
    if tower == "giant":
        sizes["vision_config"] = SiglipVisionConfig(
            hidden_size=1536,
            intermediate_size=6144,
            num_hidden_layers=39,
            num_attention_heads=16,
            image_size=384,
            patch_size=16,
            vision_use_head=False,
        )
    config = FusionConfig(question_end_token_ids=[32001], **sizes)
    if decoder == "phi":
        config.text_config.vocab_size = 32013  # the rows of the released embedding; the default is Phi-3's
    return config


def make_config(geometry: str, quick: bool) -> FusionConfig:
    """Return the sizes of a geometry: "so400m" or "giant" at reduced widths, or "full-3b"; few layers if `quick`."""
    if geometry == "full-3b":
        return released_config("FUSION-Phi3.5-3B")
    num_layers, patch_size = {"so400m": (26, 14), "giant": (39, 16)}[geometry]
    vision_config = SiglipVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=5 if quick else num_layers,
        num_attention_heads=16,
        image_size=384,
        patch_size=patch_size,
        vision_use_head=False,
    )
    text_config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=4 if quick else 8,
        num_attention_heads=8,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return FusionConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=8190,
        latent_token_id=8191,
        question_end_token_ids=[8189],
        interaction_layer_indices=[0, 3] if quick else [0, 3, 6],
    )


@torch.no_grad()
def build_model(model_class: type, config: PreTrainedConfig, settings: Settings) -> PreTrainedModel:
    """Build a model with random weights, whose scale keeps the size of activations from layer to layer."""
    torch.manual_seed(0)
    with no_init_weights():
        model = model_class._from_config(config, dtype=settings.dtype)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return model.to(settings.device).eval()


def build_fusion(geometry: str, settings: Settings) -> FusionForConditionalGeneration:
    return build_model(FusionForConditionalGeneration, make_config(geometry, settings.quick), settings)


def make_example(config: FusionConfig, settings: Settings, index: int, one_image: bool, has_answer: bool) -> dict:
    """
    Return inputs like the processor's for one question of 16 to 23 tokens, with random ids and pixels.

    Args:
        index: number of the example, which seeds its question, and its image unless `one_image`.
        has_answer: whether to add an answer and its labels, for training.
    """
    generator = torch.Generator().manual_seed(index)
    image_generator = torch.Generator().manual_seed(0 if one_image else index)
    size = config.vision_config.image_size

    def text(length):
        return torch.randint(1000, 8000, (1, length), generator=generator)

    question = text(16 + index % 8)
    image = torch.full((1, config.image_grid_size**2), config.image_token_id)
    latents = torch.full((1, config.latent_grid_size**2), config.latent_token_id)
    end = torch.tensor([config.question_end_token_ids])
    prompt = torch.cat([text(20), image, text(2), latents, text(2), question, text(3), end], dim=1)
    example = {
        "input_ids": prompt,
        "pixel_values": torch.rand(1, 3, size, size, generator=image_generator) * 2 - 1,
        "high_res_pixel_values": torch.rand(1, 4, 3, size, size, generator=image_generator) * 2 - 1,
        "question_input_ids": question,
    }
    if has_answer:
        answer = text(NUM_ANSWER_TOKENS)
        example["input_ids"] = torch.cat([prompt, answer], dim=1)
        example["labels"] = torch.cat([torch.full_like(prompt, -100), answer], dim=1)
    return {
        name: value.to(settings.device, settings.dtype if value.is_floating_point() else None)
        for name, value in example.items()
    }


def make_examples(config: FusionConfig, settings: Settings, count: int, one_image: bool = False) -> list[dict]:
    return [make_example(config, settings, index, one_image, has_answer=False) for index in range(count)]


def pad(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad ids of shape `(1, length)` each to a batch, and return the batch with its mask."""
    masks = [torch.ones_like(row[0]) for row in rows]
    pad_rows = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side=side)
    return pad_rows([row[0] for row in rows]), pad_rows(masks)


def collate(examples: list[dict]) -> dict:
    """Make one batch, with the padding of the processor."""
    batch = {
        name: torch.cat([example[name] for example in examples]) for name in ("pixel_values", "high_res_pixel_values")
    }
    batch["input_ids"], batch["attention_mask"] = pad([example["input_ids"] for example in examples], "left")
    batch["question_input_ids"], batch["question_attention_mask"] = pad(
        [example["question_input_ids"] for example in examples], "right"
    )
    return batch
