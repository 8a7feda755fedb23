"""Processor of FUSION: pixels of the base image and its crops (Pillow), prompts with placeholders, questions."""

import base64
import binascii
import inspect
import io
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit


# First, because it checks the version of transformers.
from .configuration_fusion import (  # isort: skip
    DEFAULT_LATENT_GRID_SIZE,
    NUM_CROPS,
    NUM_CROPS_PER_SIDE,
    default_latent_grid_size,
)

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import (
    AddedToken,
    BatchFeature,
    ImagesKwargs,
    PreTrainedConfig,
    ProcessingKwargs,
    ProcessorMixin,
)
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import Unpack


# Tokens that FUSION adds to the decoder's vocabulary. The two of the frame stand before and after the latents.
IMAGE_TOKEN, LATENT_TOKEN = "<image>", "<latent>"
FRAME_TOKENS = ("<vision_start>", "<vision_end>")

# Limits of `read_image`: of what is fetched or sent as text, of what is decoded, and of one fetch.
MAX_IMAGE_BYTES = 50 * 2**20
MAX_IMAGE_PIXELS = 100_000_000
FETCH_SECONDS = 10

# What transformers puts before each control token in the messages of users, see `unmarked`.
CONTROL_TOKEN_MARK = "\U000f0000"

# What differs between the releases of `TESTED_RELEASES`, beside `_defaults` of `FusionProcessorKwargs`: below 5.23,
# transformers ignores `sanitize_control_tokens=True`, and a user's `<|assistant|>` would begin a turn.
CAN_SANITIZE = "sanitize_control_tokens" in inspect.signature(ProcessorMixin.apply_chat_template).parameters


class FusionImageProcessorKwargs(ImagesKwargs, total=False):
    """
    Options of `FusionImageProcessor`.

    Args:
        image_grid_size (`int`):
            Side of the grid of image tokens; its square is the number of image placeholders of a prompt.
        latent_grid_size (`int`):
            Side of the latent grid; its square is the number of latent placeholders of a question.
    """

    image_grid_size: int
    latent_grid_size: int


class FusionImageProcessor(PilBackend):
    """
    Make the base image and four high-resolution crops of each image.

    The image is resized, without keeping its aspect ratio, to `size` for the base image, and to twice `size` for the
    crops, which are its quarters, row-major. `read_image` says what an image may be.

    Returns:
        `pixel_values` `(images, 3, height, width)` and `high_res_pixel_values` `(images, 4, 3, height, width)`,
        float32, normalized to -1 to 1.

    Raises:
        ValueError: for what `read_image` refuses, and for `do_rescale=False` with anything but floats from 0 to 1.
    """

    model_input_names = ["pixel_values", "high_res_pixel_values"]
    valid_kwargs = FusionImageProcessorKwargs

    do_convert_rgb = True
    do_resize = True
    size = {"height": 384, "width": 384}
    resample = PILImageResampling.BICUBIC
    do_rescale = True
    do_normalize = True
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    image_grid_size = 27
    latent_grid_size = DEFAULT_LATENT_GRID_SIZE

    def fetch_images(self, image_url_or_urls):
        """Return an 8-bit RGB image for each source, in lists as the sources are."""
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(source) for source in image_url_or_urls]
        return read_image(image_url_or_urls)

    def read_images(
        self, images, *, input_data_format: str | None = None, do_rescale: bool | None = None
    ) -> list[Image.Image]:
        """
        Return an 8-bit RGB image for each source of a nested list.

        Args:
            images:
                One source, or nested lists of sources.
            input_data_format (`str`, *optional*):
                `"channels_first"` or `"channels_last"`, of arrays. Told from their shapes by default.
            do_rescale (`bool`, *optional*):
                False declares that all sources are floats from 0 to 1.

        Raises:
            ValueError: as `read_image`, and if `do_rescale` is False and a source is something else.
        """
        sources = [open_image(source) for source in flatten_images(images)]
        if not (self.do_rescale if do_rescale is None else do_rescale):
            for source in sources:
                if isinstance(source, Image.Image) or source.dtype.kind != "f" or source.max(initial=0) > 1:
                    raise ValueError(
                        "`do_rescale=False` is for arrays of floats from 0 to 1, but an image is"
                        f" {describe_image(source)}. Leave `do_rescale` out: images of every kind are scaled rightly."
                    )
        return [to_rgb(source, input_data_format) for source in sources]

    def preprocess(self, images: ImageInput, *args, **kwargs) -> BatchFeature:
        """Return the inputs of the model, see the class."""
        options = {name: kwargs.get(name) for name in ("input_data_format", "do_rescale")}
        # `read_images` returns 8-bit images whatever the sources were.
        kwargs = {**kwargs, "input_data_format": None, "do_rescale": True}
        return super().preprocess(self.read_images(images, **options), *args, **kwargs)

    def resize(self, image: np.ndarray, size: SizeDict, resample=None, **kwargs) -> np.ndarray:
        """
        Resize a `(channels, height, width)` array to a square, one side after the other.

        The order of the two passes changes pixels by 1 or 2 of 255, since the result of the first one has 8 bits.
        Pillow before 13 begins with the width. Pillow 13 begins with the height for most portraits, and so did the
        reference's pixels that this package is tested with. Explicit passes give those on every release of Pillow.
        """
        height, width = image.shape[1:]
        begins_with_height = height > size.height and height + size.height > 2 * width
        first = (size.height, width) if begins_with_height else (height, size.width)
        image = super().resize(image, SizeDict(height=first[0], width=first[1]), resample, **kwargs)
        return super().resize(image, size, resample, **kwargs)

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: list[float],
        image_std: list[float],
        return_tensors: str | None = None,
        **kwargs,
    ) -> BatchFeature:
        if not do_resize:
            raise ValueError("FUSION needs images of one size and crops of twice that size: do_resize must be True.")
        if not (size.height and size.width):
            raise ValueError(f"`size` is {size}, expected a height and a width: the aspect ratio is not kept.")
        large_size = SizeDict(height=NUM_CROPS_PER_SIDE * size.height, width=NUM_CROPS_PER_SIDE * size.width)
        base_images, crops = [], []
        for image in images:
            resized = [self.resize(image, size, resample), *split_crops(self.resize(image, large_size, resample))]
            if do_rescale:
                resized = [self.rescale(part, rescale_factor) for part in resized]
            if do_normalize:
                resized = [self.normalize(part, image_mean, image_std) for part in resized]
            base_images.append(resized[0])
            crops.append(np.stack(resized[1:]))
        return BatchFeature({"pixel_values": base_images, "high_res_pixel_values": crops}, tensor_type=return_tensors)


class FusionProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: FusionImageProcessorKwargs
    _defaults = {"text_kwargs": {"padding": True}}  # releases below 5.23 read no class attribute of the processor


class FusionProcessor(ProcessorMixin):
    """
    Make the inputs of FUSION from conversations (`apply_chat_template`) or rendered prompts (`__call__`).

    A prompt holds one `image_token` if it has an image, and one `latent_token` for each question; both are expanded
    here. What stands between the latents' `vision_end_token` and the `end_of_turn_token` is the question, which the
    vision tower reads too.

    Args:
        image_processor (`FusionImageProcessor`)
        tokenizer (`PreTrainedTokenizerBase`):
            Tokens of FUSION that it does not have are added to it.
        chat_template (`str`, *optional*)
        image_token, latent_token, vision_start_token, vision_end_token (`str`):
            The tokens that FUSION adds.
        end_of_turn_token (`str`, *optional*):
            What the chat template puts after a question. Read from the template if it is not given.

    Raises:
        ValueError: if there is no tokenizer.
    """

    valid_processor_kwargs = FusionProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template: str | None = None,
        image_token: str = IMAGE_TOKEN,
        latent_token: str = LATENT_TOKEN,
        vision_start_token: str = FRAME_TOKENS[0],
        vision_end_token: str = FRAME_TOKENS[1],
        end_of_turn_token: str | None = None,
    ):
        if tokenizer is None:
            raise ValueError("FusionProcessor needs a tokenizer: that of the decoder.")
        self.image_token = image_token
        self.latent_token = latent_token
        self.vision_start_token = vision_start_token
        self.vision_end_token = vision_end_token
        known = tokenizer.get_vocab()
        new_tokens = [token for token in self._own_tokens if token not in known]
        if new_tokens:
            tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in new_tokens])
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.latent_token_id = tokenizer.convert_tokens_to_ids(latent_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.end_of_turn_token = end_of_turn_token or self._find_end_of_turn_token()

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        """Load the parts; the Auto class would look for the image processor in the folder, as code to be trusted."""
        return [
            FusionImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs),
            # The tokenizer has no code of its own. Without the False, transformers asks users whether to trust it.
            # Without a config, transformers reads that of the model as one of another type, with a warning.
            cls._load_tokenizer_from_pretrained(
                "tokenizer",
                pretrained_model_name_or_path,
                **{"trust_remote_code": False, "config": PreTrainedConfig(), **kwargs},
            ),
        ]

    def _find_end_of_turn_token(self) -> str:
        question = "question"
        prompt = self.apply_chat_template([{"role": "user", "content": question}]) if self.chat_template else ""
        return prompt.rpartition(question)[2].strip() or self.tokenizer.eos_token

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer,
        vision_config,
        *,
        chat_template: str,
        image_grid_size: int | None = None,
        latent_grid_size: int | None = None,
        end_of_turn_token: str | None = None,
    ) -> "FusionProcessor":
        """
        Build the processor of a new model.

        Args:
            tokenizer (`PreTrainedTokenizerBase`):
                That of the decoder. Tokens of FUSION that it does not have are added to it.
            vision_config (`SiglipVisionConfig`):
                Config of the vision tower, for the sizes of its images and patches.
            chat_template (`str`):
                A template of `chat_templates/`, or one that renders the placeholders as those do.
            image_grid_size (`int`, *optional*):
                Side of the grid of image tokens. Defaults to the side of the tower's patch grid.
            latent_grid_size (`int`, *optional*):
                Side of the latent grid of a question. Defaults to 8, or to the largest that the tower allows.
            end_of_turn_token (`str`, *optional*):
                What the chat template puts after a question. Read from the template if it is not given.
        """
        size = vision_config.image_size
        num_patches_per_side = size // vision_config.patch_size
        image_processor = FusionImageProcessor(
            size={"height": size, "width": size},
            image_grid_size=image_grid_size or num_patches_per_side,
            latent_grid_size=latent_grid_size or default_latent_grid_size(num_patches_per_side),
        )
        return cls(image_processor, tokenizer, chat_template=chat_template, end_of_turn_token=end_of_turn_token)

    @property
    def _own_tokens(self) -> list[str]:
        return [self.image_token, self.latent_token, self.vision_start_token, self.vision_end_token]

    @property
    def model_input_names(self) -> list[str]:
        return super().model_input_names + ["question_input_ids", "question_attention_mask"]

    @property
    def question_end_token_ids(self) -> list[int]:
        """Ids of the chat template's generation prompt, for `FusionConfig.question_end_token_ids`."""
        messages = [{"role": "user", "content": "question"}]
        prompt = self.apply_chat_template(messages)
        generation_prompt = self.apply_chat_template(messages, add_generation_prompt=True).removeprefix(prompt)
        return self.tokenizer(generation_prompt, add_special_tokens=False).input_ids

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | list[str] | None = None,
        **kwargs: Unpack[FusionProcessorKwargs],
    ) -> BatchFeature:
        """
        Make the inputs of rendered prompts.

        Args:
            images (image or `list` of images, *optional*):
                One for each prompt that holds the image token, in order; or a list of at most one for each prompt.
            text (`str` or `list[str]`, *optional*):
                Rendered prompts.
            kwargs:
                Of the tokenizer and of `FusionImageProcessorKwargs`; `image_grid_size` and `latent_grid_size` may be
                given for the call.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` `(batch, sequence)`, `pixel_values`
            `(batch, 3, size, size)` and `high_res_pixel_values` `(batch, 4, 3, size, size)`, `question_input_ids` and
            `question_attention_mask` `(batch, tokens)`. A prompt without an image has zero pixels and a question that
            is all padding.

        Raises:
            ValueError: if images and placeholders do not match, if placeholders are not where the chat template puts
                them, if a question has no end, or if placeholders were truncated.
        """
        if text is None:
            return super().__call__(images=images, **kwargs)
        prompts = [text] if isinstance(text, str) else list(text)
        if kwargs.get("sanitize_control_tokens") and not CAN_SANITIZE:  # 5.23
            raise ValueError("`sanitize_control_tokens=True` for a rendered prompt needs transformers 5.23 or newer.")
        self._check_prompts(prompts)
        images = self._read_images(images, kwargs)
        self._check_num_images(prompts, len(images))
        num_latents = self._get_grid_size("latent_grid_size", kwargs) ** 2
        sanitize = kwargs.get("sanitize_control_tokens", False)
        expanded = [expand_token(prompt, self.latent_token, num_latents) for prompt in prompts]
        has_choice = "add_special_tokens" in {**kwargs, **kwargs.get("text_kwargs", {})}
        if not has_choice and self._have_bos(prompts):
            kwargs["add_special_tokens"] = False
        outputs = super().__call__(images=images or None, text=[prompt for prompt, _ in expanded], **kwargs)
        if "text_replacement_offsets" in outputs:
            outputs["text_replacement_offsets"] = [
                merge_replacements(latents, image)
                for (_, latents), image in zip(expanded, outputs["text_replacement_offsets"], strict=True)
            ]
        # Every prompt has every input, so that prompts with and without images can be batched later on too.
        has_image = [re.search(unmarked(self.image_token), prompt) is not None for prompt in prompts]
        image_shape = (3, self.image_processor.size["height"], self.image_processor.size["width"])
        for name, shape in (("pixel_values", image_shape), ("high_res_pixel_values", (NUM_CROPS, *image_shape))):
            outputs[name] = fill_rows(outputs.get(name), has_image, shape, like=outputs["input_ids"])
        questions = [
            self.read_question(prompt) if image else "" for prompt, image in zip(prompts, has_image, strict=True)
        ]
        outputs.update(self._tokenize_questions(questions, like=outputs["input_ids"], sanitize=sanitize))
        return outputs

    def apply_chat_template(self, conversation, *args, **kwargs):
        """
        Render conversations and, with `tokenize=True`, process them; see `ProcessorMixin.apply_chat_template`.

        Raises:
            ValueError: naming the message, as `check_messages`.
        """
        conversation = getattr(conversation, "messages", conversation)
        if isinstance(conversation, (list, tuple)):
            conversation = [getattr(messages, "messages", messages) for messages in conversation]
        is_batched = isinstance(conversation, (list, tuple)) and isinstance(
            next(iter(conversation), None), (list, tuple)
        )
        options = {
            "is_prompt": kwargs.get("add_generation_prompt", False) and not kwargs.get("continue_final_message"),
            "sanitize_control_tokens": kwargs.get("sanitize_control_tokens", False),
        }
        if not CAN_SANITIZE:
            kwargs.pop("sanitize_control_tokens", None)
        if not is_batched:
            return super().apply_chat_template(self.check_messages(conversation, **options), *args, **kwargs)
        conversations = []
        for index, messages in enumerate(conversation):
            try:
                conversations.append(self.check_messages(messages, **options))
            except ValueError as error:
                raise ValueError(f"Conversation {index}: {error}") from error
        return super().apply_chat_template(conversations, *args, **kwargs)

    def count_tokens(self, messages: list[dict]) -> tuple[int, int]:
        """
        Count the tokens of a conversation, rendered, without and with its image and latent tokens.

        No image is opened, and the grids are those of the image processor.

        Raises:
            ValueError: as `apply_chat_template`, such as for control tokens in a text.
        """
        prompt = self.apply_chat_template(messages)
        add_special_tokens = not self._have_bos([prompt])
        ids = self.tokenizer(prompt, add_special_tokens=add_special_tokens, verbose=False).input_ids
        num_images, num_latents = prompt.count(self.image_token), prompt.count(self.latent_token)
        num_text_tokens = len(ids) - num_images - num_latents
        num_image_tokens = num_images * self.image_processor.image_grid_size**2
        num_latent_tokens = num_latents * self.image_processor.latent_grid_size**2
        return num_text_tokens, num_text_tokens + num_image_tokens + num_latent_tokens

    def _have_bos(self, prompts: list[str]) -> bool:
        """Return whether the chat template has rendered a BOS token into all prompts, so that none is to be added."""
        bos_token = self.tokenizer.bos_token
        return bool(bos_token) and all(prompt.startswith(bos_token) for prompt in prompts)

    def check_messages(
        self, messages: list[dict], *, is_prompt: bool = True, sanitize_control_tokens: bool = False
    ) -> list[dict]:
        """
        Return messages in the form of `normalize_messages`, or say what is wrong with them.

        Args:
            messages (`list[dict]`):
                A conversation.
            is_prompt (`bool`):
                Whether the model is to answer, so that the last message has to be a question.
            sanitize_control_tokens (`bool`):
                Whether control tokens in the texts are going to stay text.

        Raises:
            ValueError: naming the message: as `normalize_messages`, for control tokens in a text, and for a last
                message that is no question.
        """
        turns = normalize_messages(messages)
        if not (sanitize_control_tokens and CAN_SANITIZE):
            self._refuse_control_tokens(messages, is_prompt, sanitize_control_tokens)
        if is_prompt and turns[-1]["role"] != "user":
            raise ValueError(
                f"The last message ({len(messages) - 1}) is of the role {turns[-1]['role']!r}, expected a question of"
                " the role 'user'. To go on with an answer, pass `continue_final_message=True`."
            )
        if is_prompt and not read_text(turns[-1]).strip():
            raise ValueError(f"The last message ({len(messages) - 1}) holds no text, expected a question.")
        return turns

    def _refuse_control_tokens(self, messages: list[dict], is_prompt: bool, sanitize_control_tokens: bool):
        texts = [read_text(message) for message in messages]
        for token in self.find_control_tokens("\0".join(texts)):
            index = next(index for index, text in enumerate(texts) if token in text)
            advice = "Take it out."
            if sanitize_control_tokens:
                advice = "To keep it as text needs transformers 5.23 or newer; with older releases, take it out."
            elif is_prompt:
                advice = "Take it out, or pass `sanitize_control_tokens=True`, with which it stays text."
            role, _ = read_message(messages[index], index)
            raise ValueError(f"Message {index} ({role}) holds the control token {token!r} as text. {advice}")

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self._get_grid_size("image_grid_size", kwargs) ** 2

    def read_question(self, prompt: str) -> str:
        """
        Return the questions of a rendered prompt as the vision tower reads them: each stripped, without a separator.

        Raises:
            ValueError: if a question has no end.
        """
        questions = re.split(unmarked(self.latent_token + self.vision_end_token), prompt)[1:]
        for number, question in enumerate(questions):
            end = re.search(unmarked(self.end_of_turn_token), question)
            if end is None:
                raise ValueError(
                    f"Question {number} of a prompt is not followed by {self.end_of_turn_token!r}, where the vision"
                    " tower would stop reading. Render the prompt with the chat template, or pass the template's own"
                    " `end_of_turn_token` to the processor."
                )
            own_tokens = "|".join(unmarked(token) for token in self._own_tokens)
            questions[number] = re.sub(own_tokens, "", question[: end.start()]).strip()
        return "".join(questions)

    def _tokenize_questions(self, questions: list[str], like, sanitize: bool) -> BatchFeature:
        """Return ids and mask of shape `(batch, tokens)`, of the type of `like`; an empty question is all padding."""
        ids = [self.tokenizer(question).input_ids if question else [] for question in questions]
        if sanitize:
            # Tokenizers refuse to add a BOS to text with marks, so it is added here.
            options = {"sanitize_control_tokens": True, "add_special_tokens": False}
            bos = self.tokenizer("").input_ids
            ids = [bos + self.tokenizer(question, **options).input_ids if question else [] for question in questions]
        length = max(1, *(len(row) for row in ids))
        pad_token_id = self.tokenizer.pad_token_id or 0
        tensor_type = "pt" if isinstance(like, torch.Tensor) else "np" if isinstance(like, np.ndarray) else None
        return BatchFeature(
            {
                "question_input_ids": [row + [pad_token_id] * (length - len(row)) for row in ids],
                "question_attention_mask": [[1] * len(row) + [0] * (length - len(row)) for row in ids],
            },
            tensor_type=tensor_type,
        )

    def _read_images(self, images, kwargs: dict) -> list[Image.Image]:
        """Return 8-bit RGB images; take the options of reading out of `kwargs`, where they would be used again."""
        images_kwargs = kwargs["images_kwargs"] = {**kwargs.get("images_kwargs", {})}
        options = {}
        for name in ("input_data_format", "do_rescale"):
            options[name] = images_kwargs.pop(name, kwargs.pop(name, None))
        return self.image_processor.read_images(images, **options)

    def _check_num_images(self, prompts: list[str], num_images: int):
        num_places = sum(re.search(unmarked(self.image_token), prompt) is not None for prompt in prompts)
        if num_places != num_images:
            raise ValueError(
                f"The number of {self.image_token} tokens in the prompts should be the same as the number of images"
                f" passed, but {num_places} prompts have one, and there are {num_images} images."
            )

    def find_control_tokens(self, text: str) -> list[str]:
        """
        Return the control tokens that `text` spells out, in the order of the vocabulary.

        Control tokens are the special tokens of the tokenizer and the added tokens that the chat template writes.
        """
        added_tokens = self.tokenizer.added_tokens_decoder.values()
        template = self.chat_template or ""
        return [
            token.content
            for token in added_tokens
            if token.content in text and (token.special or (token.content in template and token.content.strip()))
        ]

    def _get_grid_size(self, name: str, kwargs: dict) -> int:
        grid_size = {**kwargs.get("images_kwargs", {}), **kwargs}.get(name, getattr(self.image_processor, name))
        if not isinstance(grid_size, int) or grid_size < 1:
            raise ValueError(f"`{name}` is {grid_size!r}, expected a positive integer: the side of a square grid.")
        return grid_size

    def _check_prompts(self, prompts: list[str]):
        advice = " If a question holds one as text, take it out or pass `sanitize_control_tokens=True`."
        for index, prompt in enumerate(prompts):
            images = [match.start() for match in re.finditer(unmarked(self.image_token), prompt)]
            latents = [match.start() for match in re.finditer(unmarked(self.latent_token), prompt)]
            if len(images) > 1:
                raise ValueError(
                    f"Prompt {index} has {len(images)} {self.image_token} placeholders, expected at most 1: FUSION"
                    " reads one image in a conversation." + advice
                )
            if images and latents and images[0] > latents[0]:
                raise ValueError(
                    f"Prompt {index} has its {self.image_token} placeholder after a {self.latent_token}: the image"
                    " belongs to the first user turn." + advice
                )
            framed = len(re.findall(unmarked(self.latent_token + self.vision_end_token), prompt))
            if len(latents) != framed:
                raise ValueError(
                    f"Prompt {index} has {len(latents)} {self.latent_token} placeholders, expected {framed}, each"
                    f" followed by {self.vision_end_token} and a question." + advice
                )
            if images and not latents:
                raise ValueError(
                    f"Prompt {index} has an {self.image_token} but no {self.latent_token}, so the vision tower would"
                    " read no question, and nothing would read the image again. Render prompts with the chat template:"
                    " `apply_chat_template`, or the switch of an evaluation harness (lm-eval: --apply_chat_template)."
                )

    def _check_special_mm_tokens(self, text, text_inputs, modalities):
        super()._check_special_mm_tokens(text, text_inputs, [*modalities, "latent"])


def unmarked(token: str) -> str:
    """Return a regular expression for `token` that skips what `sanitize_control_tokens` has marked as user text."""
    return f"(?<!{CONTROL_TOKEN_MARK}){re.escape(token)}"


def split_crops(image: np.ndarray) -> list[np.ndarray]:
    """Cut a `(channels, 2 * height, 2 * width)` array into its quarters, row-major."""
    rows = np.split(image, NUM_CROPS_PER_SIDE, axis=1)
    return [crop for row in rows for crop in np.split(row, NUM_CROPS_PER_SIDE, axis=2)]


# Images -------------------------------------------------------------------------------------------------------------


def read_image(source, input_data_format: str | None = None, name: str | None = None) -> Image.Image:
    """
    Return the 8-bit RGB image of any source.

    EXIF orientation is applied, transparency is composited onto white, palettes are expanded, CMYK is converted as
    Pillow does, 16-bit values are divided by 257, and floats are taken as 0 to 1 if none is larger.

    Args:
        source (`str`, `Path`, `bytes`, file object, `dict`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            A path, an http(s), file or data URI, base64, the content of a file, a dict of `datasets`
            (`{"bytes": ..., "path": ...}`), or pixels of shape `(height, width)` or with 1 to 4 channels first or
            last; two channels are grey and alpha.
        input_data_format (`str`, *optional*):
            `"channels_first"` or `"channels_last"`, of pixels. Told from the shape by default.
        name (`str`, *optional*):
            What messages call the source. Defaults to a description of it.

    Raises:
        ValueError: naming the source and the cause: not found, not an image, HTTP status, time-out, too large
            (`MAX_IMAGE_BYTES`, `MAX_IMAGE_PIXELS`), no pixels, a wrong shape, or values that are no colors.
    """
    return to_rgb(open_image(source, name=name), input_data_format)


def open_image(source, formats: tuple[str, ...] | None = None, name: str | None = None) -> Image.Image | np.ndarray:
    """
    Return the decoded image of a source, with its pixels as they are; see `read_image`.

    Args:
        source, name: see `read_image`.
        formats (`tuple[str, ...]`, *optional*): Pillow's names of the formats to read. Defaults to all.
    """
    if isinstance(source, dict) and {"bytes", "path"} & set(source):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.dtype == torch.bfloat16 else source).numpy()
    if isinstance(source, np.ndarray):
        return source[0] if source.ndim == 4 and len(source) == 1 else source
    try:
        image = source if isinstance(source, Image.Image) else Image.open(open_source(source), formats=formats)
        if image.width * image.height > MAX_IMAGE_PIXELS and image is not source:
            raise ValueError(f"it has {image.width} x {image.height} pixels, expected at most {MAX_IMAGE_PIXELS}")
        image.load()
        return image
    except UnidentifiedImageError:
        reason = "it is not an image that Pillow reads"
    except FileNotFoundError:
        reason = "there is no such file"
    except IsADirectoryError:
        reason = "it is a folder"
    except urllib.error.HTTPError as error:
        reason = f"HTTP status {error.code} ({error.reason})"
    except TimeoutError:
        reason = f"no answer within {FETCH_SECONDS} seconds"
    except Exception as error:  # decoders raise errors of all kinds
        reason = str(getattr(error, "reason", error)) or type(error).__name__
    raise ValueError(f"Cannot read an image from {name or describe_image(source)}: {reason}.")


def open_source(source) -> io.BytesIO | Path:
    """Return what `Image.open` takes: a path, or the content of anything else."""
    if isinstance(source, str):
        scheme = source[:8].partition(":")[0].lower() if ":" in source[:8] else ""
        if scheme in ("http", "https"):
            return io.BytesIO(fetch(source))
        if scheme == "data":
            return io.BytesIO(decode_data_uri(source))
        if scheme == "file":
            host, path = urlsplit(source)[1:3]
            if host not in ("", "localhost"):
                raise ValueError(f"{host!r} is another machine, expected file:///path")
            source = urllib.request.url2pathname(path)
        elif "://" in source[:16]:
            raise ValueError("expected an address that begins with http://, https://, file:// or data:")
        elif not os.path.exists(os.path.expanduser(source)):
            content = decode_base64(source) or b""
            if can_be_image(content):  # many names of files are base64, too
                return io.BytesIO(content)
        source = Path(source)
    if isinstance(source, Path):
        # `Path.expanduser` would refuse names such as ~$a.png.
        file = Path(os.path.expanduser(source))
        if file.is_dir():
            raise IsADirectoryError
        return file
    if hasattr(source, "read"):
        if source.seekable():
            source.seek(0)  # it may have been read before
        source = source.read()
    if not isinstance(source, (bytes, bytearray, memoryview)):
        raise ValueError("expected a path, an address, base64, the content of a file, a PIL image, or an array")
    if not source:
        raise ValueError("it is empty")
    return io.BytesIO(source)


def fetch(address: str) -> bytes:
    """
    Return what is at an http(s) address.

    Raises:
        OSError, HTTPException: if the address does not answer with status 200.
        ValueError: if the answer has more than `MAX_IMAGE_BYTES`.
    """
    deadline = time.monotonic() + FETCH_SECONDS
    # Some hosts refuse Python's own name.
    request = urllib.request.Request(address, headers={"User-Agent": "fusion-vlm", "Accept": "image/*"})
    content = bytearray()
    with urllib.request.urlopen(request, timeout=FETCH_SECONDS) as response:
        while chunk := response.read1(2**20):
            content += chunk
            if len(content) > MAX_IMAGE_BYTES:
                raise ValueError(f"it has more than {MAX_IMAGE_BYTES} bytes")
            if time.monotonic() > deadline:  # the time-out of the request is that of each read
                raise TimeoutError
        if response.length:
            raise HTTPException(f"the answer ends {response.length} bytes early")
    return bytes(content)


def decode_data_uri(uri: str) -> bytes:
    """Return the content of `data:[type][;parameters][;base64],content` (RFC 2397)."""
    head, comma, data = uri.partition(",")
    if not comma:
        raise ValueError("a data URI has a comma before its content")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(data)
    content = decode_base64(data)
    if content is None:
        raise ValueError("its content is not base64")
    return content


def decode_base64(text: str) -> bytes | None:
    """Return the bytes of base64 text, with or without line ends and padding; None for other text."""
    if len(text) > MAX_IMAGE_BYTES * 4 / 3 + 4:
        raise ValueError(f"it has more than {MAX_IMAGE_BYTES} bytes")
    text = re.sub(r"\s+|=+\s*$", "", text.replace("-", "+").replace("_", "/"))
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def can_be_image(content: bytes) -> bool:
    """Tell whether content begins as the files of some image format do."""
    try:
        Image.open(io.BytesIO(content))
    except Exception as error:
        return not isinstance(error, UnidentifiedImageError)
    return True


def describe_image(source) -> str:
    """Return a short name of an image's source for messages."""
    if isinstance(source, (str, Path)):
        return repr(str(source)) if len(str(source)) <= 100 else repr(str(source)[:97] + "...")
    if isinstance(source, np.ndarray):
        return f"an array of {source.dtype} and shape {source.shape}"
    if isinstance(source, Image.Image):
        return f"a PIL image of mode {source.mode}"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes"
    name = getattr(source, "name", None)
    return f"a file ({name})" if isinstance(name, str) else f"a {type(source).__name__}"


def flatten_images(images) -> list:
    """Return the sources in nested lists and in batches of pixels; none for `None`."""
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in flatten_images(item)]
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return [] if images is None else [images]


def to_rgb(image: Image.Image | np.ndarray, input_data_format: str | None = None) -> Image.Image:
    """Return an 8-bit RGB image of decoded pixels; see `read_image`."""
    if isinstance(image, np.ndarray):
        image = from_array(image, input_data_format)
    if 0 in image.size:
        raise ValueError(f"The image has no pixels: its size is {image.width} x {image.height}.")
    if image.mode == "RGB" and not image.getexif() and "transparency" not in image.info:
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        # Pillow before 11 opens 16-bit files in mode I, too. What comes from an array has no format.
        if image.mode != "I" or image.format is not None or pixels.max() > 255:
            pixels = pixels.clip(0, 2**16 - 1).astype(np.uint16)
        image = Image.fromarray(to_uint8(pixels))
    elif image.mode == "F":
        image = Image.fromarray(to_uint8(np.asarray(image)))
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def from_array(pixels: np.ndarray, input_data_format: str | None) -> Image.Image:
    """Return a Pillow image of an array of pixels."""
    if 0 in pixels.shape:
        raise ValueError(f"The image has no pixels: its shape is {pixels.shape}.")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    is_first, is_last = (pixels.ndim == 3 and pixels.shape[axis] <= 4 for axis in (0, 2))
    if input_data_format is not None:
        is_first, is_last = input_data_format == "channels_first", input_data_format == "channels_last"
    if not (is_first or is_last) or pixels.ndim != 3:
        raise ValueError(
            f"The image has shape {pixels.shape}, expected (height, width) or 1 to 4 channels before or after these."
        )
    if is_first and is_last and pixels.shape[0] != pixels.shape[2]:
        raise ValueError(
            f"An image of shape {pixels.shape} may have its channels first or last: pass `input_data_format`."
        )
    pixels = pixels.transpose(1, 2, 0) if is_first else pixels
    mode = ("L", "LA", "RGB", "RGBA")[pixels.shape[2] - 1]
    pixels = np.ascontiguousarray(to_uint8(pixels))
    return Image.frombytes(mode, (pixels.shape[1], pixels.shape[0]), pixels.tobytes())


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Return pixels of any dtype as 0 to 255: 16-bit values divided by 257, floats up to 1 multiplied by 255."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return np.round(pixels / 257).astype(np.uint8)
    if pixels.dtype.kind not in "biuf":
        raise ValueError(f"The image has values of dtype {pixels.dtype}, expected numbers.")
    if not np.isfinite(pixels).all():
        raise ValueError("The image holds NaN or infinity.")
    if pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(
            f"The image has values from {pixels.min()} to {pixels.max()}, expected 0 to 255 (or 0 to 1 in floats). Has"
            " it been normalized already?"
        )
    scale = 255 if pixels.dtype == bool or (pixels.dtype.kind == "f" and pixels.max() <= 1) else 1
    return np.round(pixels * scale).astype(np.uint8)


# Messages -----------------------------------------------------------------------------------------------------------

ROLES = ("system", "user", "assistant")
IMAGE_SOURCES = ("image", "image_url", "url", "path", "base64")  # keys of a part of type image or image_url


def normalize_messages(messages: list[dict]) -> list[dict]:
    """
    Return the messages of a conversation in one form.

    Content is a list of at most one image part, `{"type": "image", "image": source}`, and one text part. Messages of a
    user that follow each other become one, since chat clients send an image and the question about it apart. Parts of
    text are joined with a space where an image stood between them, and with a line break elsewhere.

    Args:
        messages (`list[dict]`):
            Each with a `role` (system at the beginning, then user and assistant) and `content`: a text, or a list of
            parts `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}`. An image part may also be of
            OpenAI's type `image_url`, name its source `url`, `path` or `base64`, or have none.

    Raises:
        ValueError: naming the message by its place: for a wrong form, role or order of roles, and for more than one
            image or one that is not the first user's.
    """
    if isinstance(messages, dict):
        raise ValueError("A conversation is one message, expected a list of messages: put it in a list.")
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"A conversation is {shorten(messages)}, expected a list of messages.")
    turns: list[dict] = []
    places: list[int] = []
    for index, message in enumerate(messages):
        role, parts = read_message(message, index)
        places += [index] * sum(part["type"] == "image" for part in parts)
        if role == "system" and index > 0:
            raise ValueError(f"Message {index} is of the role 'system', expected it at the beginning only.")
        if not turns or role != turns[-1]["role"]:
            turns.append({**as_dict(message, ("role", "content")), "content": parts})
        elif role == "user":
            turns[-1]["content"] = turns[-1]["content"] + parts
        else:
            raise ValueError(f"Messages {index - 1} and {index} are both of the role {role!r}, expected them in turn.")
    if len(places) > 1:
        raise ValueError(
            f"Messages hold {len(places)} images ({', '.join(map(str, places))}), expected at most 1: FUSION reads one"
            " image in a conversation. Ask about each image in a conversation of its own."
        )
    users = [turn for turn in turns if turn["role"] == "user"]
    if places and not (users and any(part["type"] == "image" for part in users[0]["content"])):
        raise ValueError(f"Message {places[0]} has the image, expected it in the first message of the role 'user'.")
    return [{**turn, "content": join_texts(turn["content"])} for turn in turns]


def as_dict(value, names: Sequence[str]):
    """Return an object of a client library (a message, say) as a dict of `names`, and anything else as it is."""
    if isinstance(value, (dict, str)) or not hasattr(value, names[0]):
        return value
    return {name: getattr(value, name) for name in names if getattr(value, name, None) is not None}


def read_message(message: dict, index: int) -> tuple[str, list[dict]]:
    """Return role and parts of one message."""
    message = as_dict(message, ("role", "content"))
    if not isinstance(message, dict) or "role" not in message:
        raise ValueError(f"Message {index} is {shorten(message)}, expected a dict with `role` and `content`.")
    if message["role"] not in ROLES:
        raise ValueError(f"Message {index} is of the role {message['role']!r}, expected one of {', '.join(ROLES)}.")
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)):
        hint = " Put the part in a list." if isinstance(content, dict) else ""
        raise ValueError(
            f"Message {index} has the content {shorten(content)}, expected a text or a list of parts.{hint}"
        )
    return message["role"], [read_part(part, index) for part in content]


def read_part(part: dict, index: int) -> dict:
    """Return one part of message `index` as a text part or an image part."""
    part = as_dict(part, ("type", "text", *IMAGE_SOURCES))
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise ValueError(f"Message {index} has the text part {shorten(part)}, expected a text under `text`.")
        if re.search("[\ud800-\udfff]", part["text"]):  # JSON can hold one, tokenizers stop at it
            raise ValueError(f"Message {index} holds half of a surrogate pair, which is no character.")
        return {"type": "text", "text": part["text"]}
    if kind not in ("image", "image_url"):
        raise ValueError(f"Message {index} has the part {shorten(part)}, expected a dict of type text or image.")
    # `datasets` fills all parts up with the keys of all, so a key may have no value.
    sources = [part[key] for key in IMAGE_SOURCES if part.get(key) is not None]
    if len(sources) > 1:
        raise ValueError(f"Message {index} has an image part with {len(sources)} sources, expected one.")
    source = sources[0] if sources else None
    if isinstance(source, dict) and "url" in source:
        source = source["url"]
    return {"type": "image", "image": source} if sources else {"type": "image"}


def join_texts(parts: list[dict]) -> list[dict]:
    """Return the image parts and one text part of all texts, as a person would read them."""
    text, follows_image = "", False
    for part in parts:
        if part["type"] == "image":
            follows_image = True
            continue
        is_separated = not text or not part["text"] or text[-1].isspace() or part["text"][0].isspace()
        text += ("" if is_separated else " " if follows_image else "\n") + part["text"]
        follows_image = False
    images = [part for part in parts if part["type"] == "image"]
    return [*images, {"type": "text", "text": text}]


def read_text(message: dict) -> str:
    """Return all text of a message, of any form that `normalize_messages` takes."""
    return "\n".join(part["text"] for part in read_message(message, 0)[1] if part["type"] == "text")


def shorten(value) -> str:
    """Return how `value` is written, cut for a message."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


# Prompts ------------------------------------------------------------------------------------------------------------


def expand_token(text: str, token: str, count: int) -> tuple[str, list[dict]]:
    """Repeats each `token` in `text` `count` times; returns the replacements in the form of `ProcessorMixin`."""
    replacements, gained = [], 0
    for match in re.finditer(unmarked(token), text):
        start, end = match.span()
        new_span = (start + gained, start + gained + len(token) * count)
        replacements.append(
            {"type": "latent", "span": (start, end), "new_span": new_span, "text": token, "replacement": token * count}
        )
        gained += len(token) * (count - 1)
    return re.sub(unmarked(token), token * count, text), replacements


def merge_replacements(first: list[dict], second: list[dict]) -> list[dict]:
    """Merge replacements made one after the other into one list, from the original text to the final one."""

    def moved(position: int, replacements: list[dict], source: str, target: str) -> int:
        before = [item for item in replacements if item[source][1] <= position]
        return position + (before[-1][target][1] - before[-1][source][1] if before else 0)

    merged = [
        {**item, "new_span": tuple(moved(position, second, "span", "new_span") for position in item["new_span"])}
        for item in first
    ]
    merged += [
        {**item, "span": tuple(moved(position, first, "new_span", "span") for position in item["span"])}
        for item in second
    ]
    return sorted(merged, key=lambda item: item["span"])


def fill_rows(values, has_image: list[bool], shape: tuple[int, ...], like):
    """Spread rows of images over rows of prompts, in the type of `like`, with zeros for a prompt without an image."""
    if values is not None and all(has_image):
        return values
    rows = iter(values if values is not None else [])
    blank = np.zeros(shape, dtype=np.float32)
    if isinstance(like, torch.Tensor):
        return torch.stack([next(rows) if image else torch.from_numpy(blank) for image in has_image])
    filled = [next(rows) if image else blank for image in has_image]
    return np.stack(filled) if isinstance(like, np.ndarray) else filled


FusionImageProcessor.register_for_auto_class("AutoImageProcessor")
FusionProcessor.register_for_auto_class("AutoProcessor")
