"""
Runs the tests that transformers has for all its models, processors and configurations on FUSION's classes.

They are not part of the wheel: the source distribution of the installed version is fetched from PyPI, once. Its tests
of `generate`, of export and of pipelines need files that it leaves out, so they are not run.

    HF_HUB_OFFLINE=1 .venv/bin/python tests/run_transformers_common.py [-k PATTERN]
"""

import argparse
import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
from importlib import import_module
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    LlamaConfig,
    Phi3Config,
    Qwen3Config,
    SiglipVisionConfig,
)
from transformers.models.auto import modeling_auto

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.convert_checkpoints import convert
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration, FusionModel
from fusion_vlm.processing_fusion import FusionImageProcessor, FusionProcessor


GOLDEN_DIR = Path(__file__).parent / "fixtures" / "golden"
PACKAGE = "transformers_tests"

# What cannot apply to FUSION. Tests that need hardware or packages that are not there skip themselves.
SKIPPED = {
    "modeling": {
        "test_num_layers_is_small": "the smallest tower with two groups of more than one layer has four layers",
    },
    "image_processing": {
        "test_call_numpy_4_channels": "an image of four channels has alpha, which is composited onto white",
        "test_new_models_require_torchvision_backend": "Pillow only: the released weights saw what it resizes",
    },
    "processing": {
        "test_chat_template_message_objects": "its template reads the address of an image part, which stands under"
        " `image` here (test_messages.py has message objects)",
    },
    "configuration": {},
}

# A prompt of the tiny model: image, latents, question, question end, start of an answer. Ids as low as these survive
# the tests that shrink the vocabulary; all others are drawn from FIRST_TEXT_ID on.
IMAGE_TOKEN_ID, LATENT_TOKEN_ID, QUESTION_END_TOKEN_IDS, FIRST_TEXT_ID = 4, 5, [6, 7], 10
VOCAB_SIZE, HIDDEN_SIZE, IMAGE_SIZE, PATCH_SIZE, LATENT_GRID_SIZE = 99, 32, 8, 2, 2
NUM_QUESTION_TOKENS, NUM_ANSWER_TOKENS = 4, 2


def fetch_tests(folder: Path) -> Path:
    """Return the folder that holds the tests of the installed transformers as a package named `PACKAGE`."""
    version = transformers.__version__
    target = folder / version
    if (target / PACKAGE).exists():
        return target
    with tempfile.TemporaryDirectory() as download:
        command = ["download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary", "transformers"]
        subprocess.run(
            [sys.executable, "-m", "pip", *command, "--dest", download, f"transformers=={version}"], check=True
        )
        (archive,) = Path(download).glob("*.tar.gz")
        prefix = f"transformers-{version}/tests/"
        with tarfile.open(archive) as sdist:
            members = [member for member in sdist.getmembers() if member.name.startswith(prefix)]
            sdist.extractall(download, members=members, filter="data")
        tests = Path(download) / prefix
        (tests / "__init__.py").touch()
        target.mkdir(parents=True, exist_ok=True)
        # Last and at once, so that an interrupted run leaves nothing half done.
        shutil.move(tests, target / PACKAGE)
    return target


def add_missing_modules(image_path: Path):
    """Stands in for what the tests import and the source distribution leaves out."""

    def add(name: str, **attributes):
        module = types.ModuleType(name)
        module.__path__ = []
        module.__dict__.update(attributes)
        sys.modules[name] = module

    add(f"{PACKAGE}.generation")
    add(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    add(f"{PACKAGE}.exporters")
    add(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    add(f"{PACKAGE}.utils")
    add(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs={})
    # One image takes the place of all those on the Hub.
    add("fetch_hub_objects_for_ci", url_to_local_path=lambda url, *args, **kwargs: str(image_path))


def register():
    """Make FUSION known to the Auto classes and the tables that the tests consult, as built-in models are."""
    AutoConfig.register("fusion_vl", FusionConfig, exist_ok=True)
    AutoImageProcessor.register(FusionConfig, slow_image_processor_class=FusionImageProcessor, exist_ok=True)
    AutoProcessor.register(FusionConfig, FusionProcessor, exist_ok=True)
    modeling_auto.MODEL_MAPPING_NAMES["fusion_vl"] = FusionModel.__name__
    names = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    names["fusion_vl"] = FusionForConditionalGeneration.__name__
    # Else `save_pretrained` adds the `auto_map` of shipped code to the object that it saves.
    FusionImageProcessor._auto_class = FusionProcessor._auto_class = None


def draw_text_ids(shape, vocab_size, *args, **kwargs) -> torch.LongTensor:
    """Random ids without FUSION's own tokens."""
    return torch.randint(FIRST_TEXT_ID, vocab_size, tuple(shape))


class TinyModel:
    """Configuration and inputs of a tiny model, in the form that the tests ask for them."""

    batch_size = 7  # what the comparisons of attention implementations use; smaller batches get random rows added
    is_training = True
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = HIDDEN_SIZE
    image_size = IMAGE_SIZE
    patch_size = PATCH_SIZE
    num_image_tokens = (IMAGE_SIZE // PATCH_SIZE) ** 2
    num_latents = LATENT_GRID_SIZE**2
    seq_length = num_image_tokens + num_latents + NUM_QUESTION_TOKENS + len(QUESTION_END_TOKEN_IDS) + NUM_ANSWER_TOKENS

    def __init__(self, text_config_class, tie_word_embeddings: bool):
        self.text_config_class = text_config_class
        self.tie_word_embeddings = tie_word_embeddings
        config = self.get_config()
        self.text_config, self.vision_config = config.text_config.to_dict(), config.vision_config.to_dict()

    def get_config(self) -> FusionConfig:
        sizes = {"hidden_size": HIDDEN_SIZE, "intermediate_size": 37, "num_attention_heads": self.num_attention_heads}
        text_config = self.text_config_class(
            vocab_size=VOCAB_SIZE,
            num_hidden_layers=self.num_hidden_layers,
            num_key_value_heads=2,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=self.tie_word_embeddings,
            **sizes,
        )
        vision_config = SiglipVisionConfig(
            num_hidden_layers=4, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, vision_use_head=False, **sizes
        )
        return FusionConfig(
            vision_config=vision_config,
            text_config=text_config,
            image_token_id=IMAGE_TOKEN_ID,
            latent_token_id=LATENT_TOKEN_ID,
            question_end_token_ids=QUESTION_END_TOKEN_IDS,
            latent_grid_size=LATENT_GRID_SIZE,
            interaction_layer_indices=[0, 1],
            num_interaction_heads=4,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[FusionConfig, dict[str, torch.Tensor]]:
        batch = self.batch_size
        question = draw_text_ids((batch, NUM_QUESTION_TOKENS), VOCAB_SIZE - 16)
        answer = draw_text_ids((batch, NUM_ANSWER_TOKENS), VOCAB_SIZE - 16)
        placeholders = [IMAGE_TOKEN_ID] * self.num_image_tokens + [LATENT_TOKEN_ID] * self.num_latents
        fixed = [torch.tensor(ids).expand(batch, -1) for ids in (placeholders, QUESTION_END_TOKEN_IDS)]
        input_ids = torch.cat([fixed[0], question, fixed[1], answer], dim=1)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": torch.rand(batch, 3, IMAGE_SIZE, IMAGE_SIZE),
            "high_res_pixel_values": torch.rand(batch, 4, 3, IMAGE_SIZE, IMAGE_SIZE),
            "question_input_ids": question,
            "question_attention_mask": torch.ones_like(question),
        }
        return self.get_config(), inputs


def define_modeling_tests() -> list[type[unittest.TestCase]]:
    common = import_module(f"{PACKAGE}.test_modeling_common")
    generation = import_module(f"{PACKAGE}.generation.test_utils")
    common.ids_tensor = draw_text_ids

    class LlamaModelTest(common.ModelTesterMixin, generation.GenerationTesterMixin, unittest.TestCase):
        all_model_classes = (FusionModel, FusionForConditionalGeneration)
        text_config_class, tie_word_embeddings = LlamaConfig, False
        additional_model_inputs = [
            "pixel_values",
            "high_res_pixel_values",
            "question_input_ids",
            "question_attention_mask",
        ]
        test_can_init_all_missing_weights_before_2023 = True  # it takes code without a year for old
        _is_composite = True
        with_context_map = False

        def setUp(self):
            self.model_tester = TinyModel(self.text_config_class, self.tie_word_embeddings)

        def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
            inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
            if return_labels and model_class is FusionForConditionalGeneration:
                inputs["labels"] = torch.zeros_like(inputs["input_ids"])
            if self.with_context_map:
                side = 2 * IMAGE_SIZE // PATCH_SIZE
                inputs["context_map"] = torch.rand(len(inputs.pop("high_res_pixel_values")), HIDDEN_SIZE, side, side)
            return inputs

        def check_training_gradient_checkpointing(self, *args, **kwargs):
            # What watches the first layer of the tower there holds one call of it; with crops there are two.
            self.with_context_map = True
            super().check_training_gradient_checkpointing(*args, **kwargs)

    class TiedModelTest(LlamaModelTest):
        tie_word_embeddings = True

    class Phi3ModelTest(LlamaModelTest):
        text_config_class = Phi3Config

    class Qwen3ModelTest(LlamaModelTest):
        text_config_class = Qwen3Config

    return [LlamaModelTest, TiedModelTest, Phi3ModelTest, Qwen3ModelTest]


def define_image_processing_tests() -> list[type[unittest.TestCase]]:
    common = import_module(f"{PACKAGE}.test_image_processing_common")

    class TinyImages(common.ImageProcessingTester):
        def __init__(self, parent):
            super().__init__(parent, size={"height": 18, "width": 18})

        def _get_image_processing_classes(self):
            return {"pil": FusionImageProcessor}

    class ImageProcessorTest(common.ImageProcessingTestMixin, unittest.TestCase):
        image_processor_tester_class = TinyImages

    return [ImageProcessorTest]


def define_processing_tests(folder: Path) -> list[type[unittest.TestCase]]:
    common = import_module(f"{PACKAGE}.test_processing_common")

    class LlamaProcessorTest(common.ProcessorTesterMixin, unittest.TestCase):
        processor_class = FusionProcessor
        variant = "fusion-llama-siglip2"
        num_latents_is_one = False

        @classmethod
        def _setup_from_components(cls):
            if not (folder / cls.variant).exists():
                convert(GOLDEN_DIR / cls.variant / "checkpoint", folder / cls.variant)
            processor = FusionProcessor.from_pretrained(folder / cls.variant)
            # Prompts that fit the lengths that the tests truncate and pad to.
            processor.image_processor.image_grid_size = 3
            processor.image_processor.latent_grid_size = LATENT_GRID_SIZE
            return processor

        def get_component(self, attribute, *args, **kwargs):
            if attribute == "image_processor":
                return FusionImageProcessor.from_pretrained(self.tmpdirname, **kwargs)
            return super().get_component(attribute, *args, **kwargs)

        def get_processor(self, *args, **kwargs):
            processor = super().get_processor(*args, **kwargs)
            if self.num_latents_is_one:
                processor.image_processor.latent_grid_size = 1
            return processor

        def _test_apply_chat_template(self, *args, **kwargs):
            # Compares with the tokenizer, which does not expand the latents that a prompt without an image has too.
            self.num_latents_is_one = True
            super()._test_apply_chat_template(*args, **kwargs)

        def test_apply_chat_template_assistant_mask(self):
            # With an image token it would put three images into a conversation.
            self.image_token = ""
            super().test_apply_chat_template_assistant_mask()

    class PhiProcessorTest(LlamaProcessorTest):
        variant = "fusion-phi-siglip"

        @staticmethod
        def prepare_processor_dict():
            return {"end_of_turn_token": "<|end|>"}  # not what the tokenizer ends a text with

    return [LlamaProcessorTest, PhiProcessorTest]


def define_configuration_tests() -> list[type[unittest.TestCase]]:
    common = import_module(f"{PACKAGE}.test_configuration_common")

    class ConfigTest(unittest.TestCase):
        model_tester = TinyModel(LlamaConfig, False)

        def check(self, **kwargs):
            common.ConfigTester(self, FusionConfig, has_text_modality=False, **kwargs).run_common_tests()

        def test_defaults(self):
            self.check()

        def test_own_fields(self):
            self.check(
                image_grid_size=16,
                latent_grid_size=6,
                interaction_layer_indices=[0, 5],
                mapping_loss_coef=0.5,
                question_end_token_ids=QUESTION_END_TOKEN_IDS,
                common_properties=["image_token_id"],
            )

    return [ConfigTest]


def make_suite(tests: dict[str, list[type[unittest.TestCase]]], pattern: str | None) -> unittest.TestSuite:
    """Return the tests whose name has `pattern` in it, without those of `SKIPPED`."""
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{pattern}*"] if pattern else None
    suite = unittest.TestSuite()
    for kind, classes in tests.items():
        for test_class in classes:
            for name, reason in SKIPPED[kind].items():
                # An AttributeError here: the test is gone, and its line can go too.
                setattr(test_class, name, unittest.skip(reason)(getattr(test_class, name)))
            suite.addTests(loader.loadTestsFromTestCase(test_class))
    return suite


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", dest="pattern", help="run only the tests whose name holds this")
    parser.add_argument("--verbose", action="store_true", help="print each test, and why it is skipped")
    default = Path(tempfile.gettempdir()) / "transformers-common-tests"
    parser.add_argument("--cache", type=Path, default=default, help="where the tests are kept (default: %(default)s)")
    args = parser.parse_args()

    sys.path.insert(0, str(fetch_tests(args.cache)))
    # Hundreds of warnings that the tests provoke; those that read them add a handler of their own.
    transformers.logging.disable_default_handler()
    transformers.logging.add_handler(logging.NullHandler())
    with tempfile.TemporaryDirectory() as folder:
        image_path = Path(folder) / "image.png"
        Image.effect_noise((64, 48), 64).convert("RGB").save(image_path)
        add_missing_modules(image_path)
        register()
        tests = {
            "modeling": define_modeling_tests(),
            "image_processing": define_image_processing_tests(),
            "processing": define_processing_tests(Path(folder)),
            "configuration": define_configuration_tests(),
        }
        runner = unittest.TextTestRunner(verbosity=2 if args.verbose else 1, buffer=True, warnings="ignore")
        return 0 if runner.run(make_suite(tests, args.pattern)).wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
