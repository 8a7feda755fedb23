"""Requests become prompts: messages and images are read as everywhere in this package, and every prompt is checked."""

import asyncio
import contextlib
from collections.abc import Mapping

import torch

from fusion_vlm.modeling_fusion import locate_prompts
from fusion_vlm.processing_fusion import read_image
from fusion_vlm.serving.chat_request import RequestError, as_system, check_num_images, decode_image
from fusion_vlm.serving.vllm.internals import HfRenderer


# What vLLM's own start-up request leaves out. A prompt without it has no question end.
CHAT_DEFAULTS = {"add_generation_prompt": True}


class FusionRenderer(HfRenderer):
    """
    vLLM's renderer, with FUSION's checks.

    What is wrong with a request is found here, in the process of the server: an exception in the model would end the
    engine, and every other request with it.
    """

    @property
    def processor(self):
        return self.get_mm_processor().info.processor

    def render_messages(self, messages, params):
        """
        Render a conversation.

        Raises:
            ValueError: naming the message, as `FusionProcessor.check_messages`.
        """
        params = params.with_defaults(CHAT_DEFAULTS)
        messages = self.read_messages(messages, params)
        with refuse_failed_fetches(messages):
            return super().render_messages(messages, params)

    async def render_messages_async(self, messages, params):
        """Render a conversation; see `render_messages`."""
        params = params.with_defaults(CHAT_DEFAULTS)
        messages = await asyncio.to_thread(self.read_messages, messages, params)
        with refuse_failed_fetches(messages):
            return await super().render_messages_async(messages, params)

    def read_messages(self, messages: list, params) -> list[dict]:
        """Return messages in the form of `normalize_messages`, with images of data URIs decoded."""
        options = params.chat_template_kwargs
        is_prompt = options["add_generation_prompt"] and not options.get("continue_final_message")
        try:
            messages = [copy_message(message) for message in messages]
            check_num_images(sum(is_image(part) for message in messages for part in message["content"] or []))
            # Twice, because only the first call says what to do about control tokens here: vLLM cannot keep them as
            # text.
            self.processor.check_messages(messages, is_prompt=False)
            messages = self.processor.check_messages(messages, is_prompt=is_prompt)
        except RequestError:
            raise
        except ValueError as error:
            raise ValueError(f"messages: {error}") from error
        return [{**message, "content": [read_part(part) for part in message["content"]]} for message in messages]

    def process_for_engine(self, prompt, arrival_time, *, tok_params=None, **kwargs):
        """
        Expand the placeholders of a prompt.

        Raises:
            ValueError: as `FusionProcessor` and `locate_prompts`, and for a prompt that leaves no room for an answer.
        """
        refuse_truncation(tok_params)
        engine_input = super().process_for_engine(self.add_images(prompt), arrival_time, **kwargs)
        return self.check(engine_input)

    async def process_for_engine_async(self, prompt, arrival_time, *, tok_params=None, **kwargs):
        """Expand the placeholders of a prompt; see `process_for_engine`."""
        refuse_truncation(tok_params)
        prompt = await asyncio.to_thread(self.add_images, prompt)
        return self.check(await super().process_for_engine_async(prompt, arrival_time, **kwargs))

    def add_images(self, prompt: Mapping) -> dict:
        """
        Return a prompt with its images in RGB.

        A prompt without an image gets an empty list, since vLLM would not call the processor otherwise. Files are
        decoded again, because vLLM has converted their pixels in ways of its own.
        """
        if "prompt_token_ids" not in prompt:
            raise ValueError("FUSION needs a prompt of text or token ids.")
        data = dict(prompt.get("multi_modal_data") or {})
        images = data.get("image")
        images = images if isinstance(images, (list, tuple)) else [] if images is None else [images]
        data["image"] = [read_image(getattr(image, "original_bytes", image)) for image in images]
        return {**prompt, "multi_modal_data": data, "multi_modal_uuids": None}

    def check(self, engine_input):
        """Refuse what the model could not process."""
        prompt_ids = engine_input["prompt_token_ids"]
        limit = self.model_config.max_model_len - 1
        if len(prompt_ids) > limit:
            raise ValueError(f"The conversation has {len(prompt_ids)} tokens, the model takes {limit} at most.")
        token_ids = torch.tensor([prompt_ids])
        locate_prompts(self.model_config.hf_config, lambda token_id: token_ids == token_id)
        return engine_input


def refuse_truncation(tok_params):
    """Refuse a shorter prompt than the given one: the cut part would hold images, latents or the question's end."""
    if tok_params is not None and tok_params.truncate_prompt_tokens is not None:
        raise ValueError("truncate_prompt_tokens: a FUSION prompt is processed as a whole, so it cannot be truncated.")


@contextlib.contextmanager
def refuse_failed_fetches(messages: list[dict]):
    """Turn any error of vLLM's fetching of an image into a ValueError; some would be the server's fault else."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        addresses = [
            part["image_url"]["url"] for message in messages for part in message["content"] if "image_url" in part
        ]
        if not addresses:
            raise
        reason = str(error) or type(error).__name__
        raise ValueError(f"messages: Cannot read an image from {addresses[0]!r}: {reason}") from error


def copy_message(message) -> dict:
    """Return a message as a plain dict: vLLM validates parts of content while they are iterated, which works once."""
    message = dict(message)
    content = message.get("content")
    if content is not None and not isinstance(content, (str, dict)):
        content = list(content)
    return {**message, "content": content, "role": as_system(message.get("role"))}


def is_image(part) -> bool:
    return isinstance(part, dict) and part.get("type") in ("image", "image_url")


def read_part(part: dict) -> dict:
    """Return a part as vLLM takes it; `FusionProcessor.check_messages` has checked its form."""
    source = part.get("image")
    if source is None:
        return part
    if isinstance(source, str):
        if source[:5].lower() != "data:":
            return {"type": "image_url", "image_url": {"url": source}}  # vLLM fetches it, by its own options
        source = decode_image(source)
    return {"type": "image_pil", "image_pil": source}
