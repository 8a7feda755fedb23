"""Processor of FUSION: pixels of the base image and its crops (Pillow), prompts with placeholders, questions."""

import os
import re

from transformers.utils.versions import require_version


require_version("transformers>=5.23.0", "FUSION needs transformers 5.23 or newer: pip install --upgrade transformers")

# What follows may not exist in older versions, so the check above must come first.
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image, ImageOps, UnidentifiedImageError  # noqa: E402
from transformers import AddedToken, BatchFeature, ImagesKwargs, ProcessingKwargs, ProcessorMixin  # noqa: E402
from transformers.image_processing_backends import PilBackend  # noqa: E402
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict, load_image  # noqa: E402
from transformers.processing_utils import Unpack  # noqa: E402
from transformers.utils import logging  # noqa: E402


logger = logging.get_logger(__name__)

# What transformers puts before each control token in the messages of users, see `unmarked`.
CONTROL_TOKEN_MARK = "\U000f0000"


class FusionImageProcessorKwargs(ImagesKwargs, total=False):
    """
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
    Makes the base image and four high-resolution crops of each image.

    The image is resized, without keeping its aspect ratio, to `size` for the base image, and to twice `size` for the
    crops, which are its quarters, row-major. Every kind of image becomes 8-bit RGB first: EXIF orientation is applied,
    transparency is composited onto white, palettes are expanded, CMYK is converted as Pillow does, 16-bit values are
    divided by 257, floats are taken as 0 to 1.

    Returns:
        `pixel_values` `(images, 3, height, width)` and `high_res_pixel_values` `(images, 4, 3, height, width)`,
        float32, normalised to -1 to 1.

    Raises:
        ValueError: for what is not an image or cannot be opened as one, an image without pixels, NaN in an array.
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
    latent_grid_size = 8

    def fetch_images(self, image_url_or_urls):
        """Opens paths, URLs and base64 strings; leaves images alone."""
        if not isinstance(image_url_or_urls, str):
            return super().fetch_images(image_url_or_urls)
        try:
            # `load_image` would clip 16-bit files to white.
            if os.path.isfile(image_url_or_urls):
                image = Image.open(image_url_or_urls)
                image.load()
                return image
            if (
                "://" not in image_url_or_urls
                and os.path.splitext(image_url_or_urls)[1] in Image.registered_extensions()
            ):
                raise FileNotFoundError("there is no such file")
            return load_image(image_url_or_urls)
        except (UnidentifiedImageError, OSError, ValueError) as error:
            source = image_url_or_urls if len(image_url_or_urls) < 200 else image_url_or_urls[:200] + "..."
            raise ValueError(f"Cannot read an image from {source!r}: {error}. Is it an image file?") from error

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, **kwargs) -> np.ndarray:
        """One image of any accepted kind to a `uint8` array of shape `(channels, height, width)`."""
        if isinstance(image, Image.Image):
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits, for which Pillow has a 32-bit mode too
                image = to_uint8(np.asarray(image).clip(0, 2**16 - 1).astype(np.uint16))
            elif image.mode == "F":
                image = to_uint8(np.asarray(image))
        elif isinstance(image, (np.ndarray, torch.Tensor)):
            image = to_uint8(image.cpu().numpy() if isinstance(image, torch.Tensor) else image)
        shape = image.size if isinstance(image, Image.Image) else image.shape
        if 0 in shape:
            raise ValueError(f"The image has no pixels (its size is {tuple(shape)}).")
        if isinstance(image, np.ndarray) and image.ndim == 2:
            image, input_data_format = image[None], "channels_first"
        return super().process_image(
            image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **kwargs
        )

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
        double_size = SizeDict(height=2 * size.height, width=2 * size.width)
        base_images, crops = [], []
        for image in images:
            resized = [self.resize(image, size, resample), *split_crops(self.resize(image, double_size, resample))]
            if do_rescale:
                resized = [self.rescale(part, rescale_factor) for part in resized]
            if do_normalize:
                resized = [self.normalize(part, image_mean, image_std) for part in resized]
            base_images.append(resized[0])
            crops.append(np.stack(resized[1:]))
        return BatchFeature({"pixel_values": base_images, "high_res_pixel_values": crops}, tensor_type=return_tensors)


class FusionProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: FusionImageProcessorKwargs


class FusionProcessor(ProcessorMixin):
    """
    Makes the inputs of FUSION from conversations (`apply_chat_template`) or rendered prompts (`__call__`).

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
    text_kwargs = {"padding": True}

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        latent_token: str = "<latent>",
        vision_start_token: str = "<vision_start>",
        vision_end_token: str = "<vision_end>",
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
        """The image processor of this file: the Auto class would look for it in the folder, as code to be trusted."""
        return [
            FusionImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs),
            # Tokenizers have no code of ours; without a word on it, users would be asked whether to trust it.
            cls._load_tokenizer_from_pretrained(
                "tokenizer", pretrained_model_name_or_path, **{"trust_remote_code": False, **kwargs}
            ),
        ]

    def _find_end_of_turn_token(self) -> str:
        question = "question"
        prompt = self.apply_chat_template([{"role": "user", "content": question}]) if self.chat_template else ""
        return prompt.rpartition(question)[2].strip() or self.tokenizer.eos_token

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
        self._check_prompts(prompts)
        num_latents = self._get_grid_size("latent_grid_size", kwargs) ** 2
        sanitize = kwargs.get("sanitize_control_tokens", False)
        expanded = [expand_token(prompt, self.latent_token, num_latents) for prompt in prompts]
        has_bos = self.tokenizer.bos_token and all(prompt.startswith(self.tokenizer.bos_token) for prompt in prompts)
        if has_bos and "add_special_tokens" not in {**kwargs, **kwargs.get("text_kwargs", {})}:
            # The template has rendered it already.
            kwargs["add_special_tokens"] = False
        outputs = super().__call__(images=images, text=[prompt for prompt, _ in expanded], **kwargs)
        if "text_replacement_offsets" in outputs:
            outputs["text_replacement_offsets"] = [
                merge_replacements(latents, image)
                for (_, latents), image in zip(expanded, outputs["text_replacement_offsets"], strict=True)
            ]
        # Every prompt has every input, so that prompts with and without images can be batched later on too.
        has_image = [re.search(unmarked(self.image_token), prompt) is not None for prompt in prompts]
        image_shape = (3, self.image_processor.size["height"], self.image_processor.size["width"])
        for name, shape in (("pixel_values", image_shape), ("high_res_pixel_values", (4, *image_shape))):
            outputs[name] = fill_rows(outputs.get(name), has_image, shape, like=outputs["input_ids"])
        questions = [
            self.read_question(prompt) if image else "" for prompt, image in zip(prompts, has_image, strict=True)
        ]
        outputs.update(self._tokenize_questions(questions, like=outputs["input_ids"], sanitize=sanitize))
        return outputs

    def apply_chat_template(self, conversation, *args, **kwargs):
        """
        Renders conversations and, with `tokenize=True`, processes them; see `ProcessorMixin.apply_chat_template`.

        Raises:
            ValueError: if a conversation has more than one image, or one outside its first user turn.
        """
        is_batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        for index, messages in enumerate(conversation if is_batched else [conversation]):
            check_images(messages, index)
        return super().apply_chat_template(conversation, *args, **kwargs)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self._get_grid_size("image_grid_size", kwargs) ** 2

    def read_question(self, prompt: str) -> str:
        """
        The questions of a rendered prompt as the vision tower reads them: each stripped, without a separator.

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
        """Ids and mask of shape `(batch, tokens)`, of the type of `like`; an empty question is all padding."""
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
                logger.warning_once(
                    f"A prompt has an image but no {self.latent_token}: the vision tower reads no question, and"
                    " nothing re-reads the image. Use `apply_chat_template`, which renders what it was trained with."
                )

    def _check_special_mm_tokens(self, text, text_inputs, modalities):
        super()._check_special_mm_tokens(text, text_inputs, [*modalities, "latent"])


def unmarked(token: str) -> str:
    """Pattern of a token that is none of those which `sanitize_control_tokens` has marked as what a user wrote."""
    return f"(?<!{CONTROL_TOKEN_MARK}){re.escape(token)}"


def split_crops(image: np.ndarray) -> list[np.ndarray]:
    """The quarters of a `(channels, 2 * height, 2 * width)` array, row-major."""
    return [crop for row in np.split(image, 2, axis=1) for crop in np.split(row, 2, axis=2)]


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Pixels of any dtype to 0 to 255: 16-bit values are divided by 257, floats up to 1 multiplied by 255."""
    if image.dtype == np.uint8 or image.size == 0:
        return image
    if image.dtype == np.uint16:
        return np.round(image / 257).astype(np.uint8)
    if not np.isfinite(image).all():
        raise ValueError("The image holds NaN or infinity.")
    if image.min() < 0 or image.max() > 255:
        raise ValueError(
            f"The image has values from {image.min()} to {image.max()}, expected 0 to 255 (or 0 to 1 in floats). Has"
            " it been normalised already?"
        )
    scale = 255 if image.dtype == bool or (np.issubdtype(image.dtype, np.floating) and image.max() <= 1) else 1
    return np.round(image * scale).astype(np.uint8)


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
    """Replacements made one after the other, as one list from the original text to the final one."""

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
    """Rows of images as rows of prompts, in the type of `like`: zeros of `shape` for a prompt without an image."""
    if values is not None and all(has_image):
        return values
    rows = iter(values if values is not None else [])
    blank = np.zeros(shape, dtype=np.float32)
    if isinstance(like, torch.Tensor):
        return torch.stack([next(rows) if image else torch.from_numpy(blank) for image in has_image])
    filled = [next(rows) if image else blank for image in has_image]
    return np.stack(filled) if isinstance(like, np.ndarray) else filled


def check_images(messages: list[dict], conversation: int):
    """Checks that a conversation has messages, of text and at most one image, which is in its first user turn."""
    if not messages or not all(isinstance(message, dict) and "role" in message for message in messages):
        raise ValueError(
            f"Conversation {conversation} is {messages!r}, expected a list of messages, each a dict with `role` and"
            " `content`."
        )
    places = []
    for turn, message in enumerate(messages):
        parts = message.get("content")
        for part in parts if isinstance(parts, (list, tuple)) else []:
            kind = part.get("type") if isinstance(part, dict) else part
            if kind not in ("text", "image", "image_url"):
                raise ValueError(
                    f"Conversation {conversation} has a part of type {kind!r} in message {turn}, expected a dict of"
                    " type text or image."
                )
            if kind != "text":
                places.append((turn, message["role"]))
    if len(places) > 1:
        raise ValueError(
            f"Conversation {conversation} has {len(places)} images, expected at most 1: FUSION reads one image in a"
            " conversation. Ask about each image in a conversation of its own."
        )
    first_user_turn = next((turn for turn, message in enumerate(messages) if message["role"] == "user"), None)
    if places and places[0][0] != first_user_turn:
        raise ValueError(
            f"Conversation {conversation} has its image in message {places[0][0]} ({places[0][1]}), expected it in"
            f" the first user message, {first_user_turn}."
        )


FusionImageProcessor.register_for_auto_class("AutoImageProcessor")
FusionProcessor.register_for_auto_class("AutoProcessor")
