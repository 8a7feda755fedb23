"""
Facts about the checkpoints that the authors released: their account, names, pretrained parts and stages.

Nothing here imports torch or transformers, so that a command can name a wrong model at once.
"""

import re
from dataclasses import dataclass


AUTHORS = "starriver030515"  # the account of the released models on the Hub
# Of the released configs: the keys of `DECODER_FAMILIES` in convert_checkpoints.py, which tests/hub/test_names.py
# compares.
RELEASED_MODEL_TYPES = ("fusion_phi", "fusion_llama")
# Wider than the names of `find_released`, so that a misspelled or later release is recognized too.
RELEASED_ID = re.compile(rf"{AUTHORS}/FUSION(-X)?-(Phi|LLaMA)[\w.-]*", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """
    A pretrained part of the released models.

    Args:
        hub_id (`str`): the repository of the part.
        label (`str`): the word for the part in the names of the released models.
        sizes (`dict[str, int | str]`): the fields of a config by which the part is recognized.
    """

    hub_id: str
    label: str
    sizes: dict[str, int | str]

    def matches(self, config) -> bool:
        """Return whether a config has the sizes of the part."""
        return all(getattr(config, key, None) == value for key, value in self.sizes.items())


@dataclass(frozen=True)
class Decoder(Part):
    """A pretrained decoder, with the license that its weights come under."""

    license_id: str
    license_name: str
    license_link: str


@dataclass(frozen=True)
class Stage:
    """
    A stage of training from which the authors released checkpoints.

    Args:
        suffix (`str`): the end of the names of its checkpoints.
        description (`str`): the words for such a checkpoint.
        datasets (`tuple[str, ...]`): Hub ids of the data that the checkpoint was trained on.
        is_final (`bool`): whether no stage follows.
    """

    suffix: str
    description: str
    datasets: tuple[str, ...]
    is_final: bool = False


TOWERS = (
    Part(
        hub_id="google/siglip-so400m-patch14-384",
        label="FUSION",
        sizes={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 26,
            "image_size": 384,
            "patch_size": 14,
        },
    ),
    Part(
        hub_id="google/siglip2-giant-opt-patch16-384",
        label="FUSION-X",
        sizes={
            "hidden_size": 1536,
            "intermediate_size": 6144,
            "num_hidden_layers": 39,
            "image_size": 384,
            "patch_size": 16,
        },
    ),
)
DECODERS = (
    Decoder(
        hub_id="microsoft/Phi-3.5-mini-instruct",
        label="Phi3.5-3B",
        sizes={"model_type": "phi3", "hidden_size": 3072, "num_hidden_layers": 32, "vocab_size": 32013},
        license_id="mit",
        license_name="the MIT License",
        license_link="https://huggingface.co/microsoft/Phi-3.5-mini-instruct/resolve/main/LICENSE",
    ),
    Decoder(
        hub_id="meta-llama/Llama-3.1-8B-Instruct",
        label="LLaMA3.1-8B",
        sizes={"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 128258},
        license_id="llama3.1",
        license_name="the Llama 3.1 Community License",
        license_link="https://www.llama.com/llama3_1/license/",
    ),
)
PRETRAIN_DATA, FINETUNE_DATA = f"{AUTHORS}/FUSION-Pretrain-10M", f"{AUTHORS}/FUSION-Finetune-12M"
STAGES = (
    Stage("", "final checkpoint", (PRETRAIN_DATA, FINETUNE_DATA), is_final=True),
    Stage("-Stage1", "Stage 1 checkpoint", (PRETRAIN_DATA,)),
    Stage("-Stage1.5", "Stage 1.5 checkpoint", (PRETRAIN_DATA, FINETUNE_DATA)),
)
# GB of weights in 4 bits, computed from the shapes (benchmarks/quantization.py).
NF4_GB = {
    "FUSION-Phi3.5-3B": 3.55,
    "FUSION-X-Phi3.5-3B": 4.98,
    "FUSION-LLaMA3.1-8B": 7.35,
    "FUSION-X-LLaMA3.1-8B": 8.78,
}


@dataclass(frozen=True)
class Architecture:
    """Tower and decoder of a released model."""

    tower: Part
    decoder: Decoder

    @property
    def name(self) -> str:
        """Name of the released model."""
        return f"{self.tower.label}-{self.decoder.label}"

    @property
    def nf4_gb(self) -> float:
        """Size of the weights in 4 bits, in GB."""
        return NF4_GB[self.name]

    @property
    def is_llama(self) -> bool:
        """Return whether the weights come under the license of Llama 3.1, which asks for a notice."""
        return self.decoder.license_id == "llama3.1"


def find_architecture(config) -> Architecture | None:
    """
    Return the released model that has exactly the sizes of a config, or None.

    A model that was trained further has the sizes of its origin.
    """
    tower = next((part for part in TOWERS if part.matches(config.vision_config)), None)
    decoder = next((part for part in DECODERS if part.matches(config.text_config)), None)
    return Architecture(tower, decoder) if tower and decoder else None


def find_released(config) -> dict[str, Stage]:
    """Return the Hub ids of the released checkpoints that have the sizes of a config, each with its stage."""
    architecture = find_architecture(config)
    return {f"{AUTHORS}/{architecture.name}{stage.suffix}": stage for stage in STAGES} if architecture else {}
