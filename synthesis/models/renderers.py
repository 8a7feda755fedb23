"""
Renderers that ask a model for the image: `diffusers.FluxPipeline`, and an endpoint for `/v1/images/generations`.

They draw the description of a sample, or its caption if it has none. The seed depends on the sample, so the same
sample gives the same image as far as the model is deterministic. Calls block: in an event loop, use
`await asyncio.to_thread(renderer, sample)`.
"""

import asyncio
import base64
import binascii
import functools
import io
import os
import threading
from typing import Any

from PIL import Image

from fusion_vlm.synthesis.models.retries import CallError, Retries
from fusion_vlm.synthesis.sample import Sample


FLUX = "black-forest-labs/FLUX.1-dev"


class RenderError(RuntimeError):
    """A model gave no image for a sample. The message says what it gave; the cause, if any, is the client's error."""


def image_prompt(sample: Sample) -> str:
    """
    Return the text that the model is asked to draw.

    Raises:
        ValueError: if the sample has neither a description nor a caption.
    """
    prompt = (sample.description or sample.caption).strip()
    if not prompt:
        raise ValueError(f"Sample {sample.id} has neither a description nor a caption, so there is nothing to render.")
    return prompt


class FluxRenderer:
    """
    FLUX through `diffusers` (extra `flux`), as in the paper: FLUX.1-dev with 50 steps.

    Args:
        pipeline (`str` or `diffusers.FluxPipeline`): the pipeline, or its name or folder to load in bfloat16.
        width (`int`), height (`int`): in pixels, multiples of 16.
        num_inference_steps (`int`): 50 for FLUX.1-dev, 4 for FLUX.1-schnell.
        guidance_scale (`float`): how closely the image follows the text.
        device (`str`): device for a pipeline that is given by name.
    """

    name = "flux"
    draws_scenes = False

    def __init__(
        self,
        pipeline: Any = FLUX,
        width: int = 1024,
        height: int = 1024,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.5,
        device: str = "cuda",
    ):
        self.pipeline = _load_flux(pipeline, device) if isinstance(pipeline, str) else pipeline
        self.model = self.pipeline.name_or_path
        self.width, self.height = width, height
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        # One image at a time, because a pipeline keeps the state of its scheduler.
        self.lock = threading.Lock()

    def __call__(self, sample: Sample) -> Image.Image:
        import torch  # late: it takes seconds to import, and runs with other renderers need none

        # On the CPU, so that the noise is the same on every device.
        generator = torch.Generator("cpu").manual_seed(sample.rng("image").getrandbits(63))
        with self.lock:
            output = self.pipeline(
                prompt=image_prompt(sample),
                width=self.width,
                height=self.height,
                num_inference_steps=self.num_inference_steps,
                guidance_scale=self.guidance_scale,
                generator=generator,
            )
        return output.images[0].convert("RGB")


@functools.cache  # one copy in a process that makes several parts
def _load_flux(name: str, device: str) -> Any:
    try:
        from diffusers import FluxPipeline  # late: an extra
    except ImportError as error:
        raise ImportError("Rendering with FLUX needs `pip install fusion-vlm[flux]`.") from error
    import torch

    pipeline = FluxPipeline.from_pretrained(name, dtype=torch.bfloat16).to(device)
    pipeline.set_progress_bar_config(disable=True)  # a bar for each image would hide the bar of the run
    return pipeline


class EndpointRenderer:
    """
    An endpoint for OpenAI's `/v1/images/generations` that answers in base64 (`response_format: b64_json`).

    The SDK retries, with growing pauses, after broken connections, 408, 409, 429 and 5xx. Answers that hold no image
    are retried here, as those of language models are. The key is read from OPENAI_API_KEY.

    Args:
        url (`str`): address with the version: `http://localhost:8000/v1`.
        model (`str`): name of the model at that endpoint.
        size (`str`): `{width}x{height}` in pixels.
        timeout (`float`): seconds for one try of the SDK. All its tries together may take `max_retries + 1` times as
            long, so an endpoint that sends a byte now and then cannot block a run.
        max_retries (`int`): retries of the SDK for one image.
        send_seed (`bool`): whether to send `seed`. Most servers of open models take it, some others refuse it.
        num_tries (`int`), backoff (`float`): see `Retries`.

    Raises:
        RenderError: from a call, if there is no image after all tries, or the answer is not an image.
    """

    name = "endpoint"
    draws_scenes = False

    def __init__(
        self,
        url: str,
        model: str,
        size: str = "1024x1024",
        timeout: float = 300.0,
        max_retries: int = 4,
        send_seed: bool = True,
        num_tries: int = 4,
        backoff: float = 0.5,
    ):
        try:
            import openai  # late: it is an extra, and takes a second to import
        except ImportError as error:
            raise ImportError("Rendering with an endpoint needs `pip install fusion-vlm[synthesis]`.") from error

        self.openai, self.url, self.model, self.size = openai, url, model, size
        self.api_key = os.environ.get("OPENAI_API_KEY", "none")
        self.timeout, self.max_retries, self.send_seed = timeout, max_retries, send_seed
        self.retries = Retries(timeout * (max_retries + 1), num_tries, backoff)

    def __call__(self, sample: Sample) -> Image.Image:
        request = {
            "model": self.model,
            "prompt": image_prompt(sample),
            "n": 1,
            "size": self.size,
            "response_format": "b64_json",
            "extra_body": {"seed": sample.rng("image").getrandbits(31)} if self.send_seed else {},
        }
        # In an event loop, because only there a call whose answer never ends can be ended.
        try:
            return asyncio.run(self._draw(request))
        except CallError as error:
            raise RenderError(f"{self.url} ({self.model}) gave no image: {error}") from error

    async def _draw(self, request: dict) -> Image.Image:
        client = self.openai.AsyncOpenAI(
            base_url=self.url, api_key=self.api_key, timeout=self.timeout, max_retries=self.max_retries
        )

        async def send(attempt: int, error: CallError | None) -> Image.Image:
            return _decode(await self._send(client, request))

        async with client:
            return await self.retries.run(send)

    async def _send(self, client: Any, request: dict) -> Any:
        try:
            return await client.images.generate(**request)
        except self.openai.APITimeoutError as error:
            raise asyncio.TimeoutError from error
        except self.openai.APIConnectionError as error:
            raise CallError("connection", str(error.__cause__ or error), is_final=True) from error
        except self.openai.APIStatusError as error:
            raise CallError(f"http_{error.status_code}", str(error), is_final=True) from error
        except (self.openai.OpenAIError, ValueError) as error:  # ValueError: truncated JSON
            raise CallError("not_an_image", str(error)) from error


def _decode(response: Any) -> Image.Image:
    # The SDK does not check the answer, which may be text or JSON of any shape.
    data = getattr(response, "data", None)
    first = data[0] if isinstance(data, list) and data else None
    encoded = getattr(first, "b64_json", None)
    if not isinstance(encoded, str):
        raise CallError("not_an_image", f"{str(response)[:200]!r}, expected an image in `data[0].b64_json`")
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            return image.convert("RGB")
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        message = f"{encoded[:60]!r}, expected an image in base64: {str(error)[:100]}"
        raise CallError("not_an_image", message) from error
