"""The configuration: defaults, fields, round trip, and values that cannot be."""

import dataclasses

import pytest
from transformers import LlamaConfig, PreTrainedConfig, Qwen3Config, SiglipVisionConfig

from fusion_vlm.configuration_fusion import FusionConfig


def test_defaults_are_those_of_the_3b_model():
    config = FusionConfig()
    assert (config.text_config.model_type, config.text_config.hidden_size) == ("phi3", 3072)
    assert (config.vision_config.hidden_size, config.vision_config.num_hidden_layers) == (1152, 26)
    assert (config.num_patches_per_side, config.image_grid_size) == (27, 27)
    assert (config.latent_grid_size, config.latent_grid_sizes) == (8, [2, 4, 6, 8, 12])
    assert config.interaction_layer_indices == list(range(0, 28, 3))


def test_fields_are_pinned():
    """A misspelt field would be swallowed, so a new one is to be noticed here."""
    own = {field.name for field in dataclasses.fields(FusionConfig)}
    own -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
    assert own == {
        "vision_config",
        "text_config",
        "image_token_id",
        "latent_token_id",
        "question_end_token_ids",
        "latent_grid_size",
        "latent_grid_sizes",
        "image_grid_size",
        "interaction_layer_indices",
        "num_interaction_heads",
        "window_size",
        "mapping_loss_coef",
        "projector_hidden_act",
        "tie_word_embeddings",
    }


def test_round_trip_keeps_all_fields_and_code_entries(tmp_path):
    config = FusionConfig(
        vision_config=SiglipVisionConfig(image_size=64, patch_size=8, num_hidden_layers=4),
        text_config=Qwen3Config(num_hidden_layers=3, tie_word_embeddings=True),
        image_token_id=5,
        latent_token_id=6,
        question_end_token_ids=[7, 8],
        interaction_layer_indices=[0, 2],
        image_grid_size=4,
        latent_grid_size=2,
    )
    config.save_pretrained(tmp_path)
    loaded = FusionConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.tie_word_embeddings
    assert set(loaded.auto_map) >= {"AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText"}
    assert (tmp_path / "configuration_fusion.py").is_file()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"latent_grid_size": 55}, "latent grid of side 55 does not fit: expected 1 to 54"),
        ({"latent_grid_size": 0}, "latent grid of side 0 does not fit"),
        ({"latent_grid_sizes": [2, 100]}, "latent grid of side 100 does not fit"),
        ({"image_grid_size": 28}, "`image_grid_size` is 28, expected 1 to 27"),
        ({"interaction_layer_indices": [0, 32]}, r"is \[0, 32\], expected increasing decoder layers from 0 to 31"),
        ({"interaction_layer_indices": [3, 0]}, r"is \[3, 0\], expected increasing"),
        ({"image_token_id": 7, "latent_token_id": 7}, "must differ, both are 7"),
        ({"vision_config": {"num_hidden_layers": 1}}, "tower has 1 layer, expected 2"),
        ({"num_interaction_heads": 7}, "is 7, which does not divide the decoder's hidden size of 3072"),
    ],
)
def test_values_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        FusionConfig(**values)


def test_unknown_decoder_type():
    with pytest.raises(ValueError, match="no_such_decoder"):
        FusionConfig(text_config={"model_type": "no_such_decoder"})


def test_decoder_may_have_fewer_layers_than_the_released_ones():
    config = FusionConfig(text_config=LlamaConfig(num_hidden_layers=5))
    assert config.interaction_layer_indices == [0, 3]
