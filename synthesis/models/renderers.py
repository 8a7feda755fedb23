"""
Renderers that ask a model for the image: `diffusers.FluxPipeline`, and an endpoint for `/v1/images/generations`.

Both are called with a sample, as the renderers of render.py are, and give a `PIL.Image` of its description (of its
caption if it has none). The seed is the sample's own: the same sample gives the same image, as far as the model
repeats itself. Both block: in an event loop, call them as `await asyncio.to_thread(renderer, sample)`.
"""

import asyncio
import base64
import binascii
import io
import os
import threading
from typing import Any

from PIL import Image

from fusion_vlm.synthesis.sample import Sample


class RenderError(RuntimeError):
    """A model gave no image for a sample; says what it gave instead. Its cause, if any, is the client's error."""


def image_prompt(sample: Sample) -> str:
    """
    What the model is asked to draw.

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
        pipeline (`str` or `diffusers.FluxPipeline`): the pipeline, or its name or folder, then loaded in bfloat16.
        width, height (`int`): of the image in pixels, multiples of 16.
        num_inference_steps (`int`): 50 for FLUX.1-dev, 4 for FLUX.1-schnell.
        guidance_scale (`float`): how closely the image follows the text.
        device (`str`): where a pipeline that is given by name runs.
    """

    name = "flux"

    def __init__(
        self,
        pipeline: Any = "black-forest-labs/FLUX.1-dev",
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
        # A pipeline keeps the state of its scheduler, so one image at a time.
        self.lock = threading.Lock()

    def __call__(self, sample: Sample) -> Image.Image:
        import torch

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


def _load_flux(name: str, device: str) -> Any:
    try:
        from diffusers import FluxPipeline
    except ImportError as error:
        raise ImportError("Rendering with FLUX needs `pip install fusion-vlm[flux]`.") from error
    import torch

    pipeline = FluxPipeline.from_pretrained(name, dtype=torch.bfloat16).to(device)
    pipeline.set_progress_bar_config(disable=True)  # a bar for each image would drown the run's own
    return pipeline


class EndpointRenderer:
    """
    An endpoint for OpenAI's `/v1/images/generations` that answers in base64 (`response_format: b64_json`). The SDK
    tries again, with growing pauses, after an error of the connection, 408, 409, 429 or 5xx.

    Args:
        url (`str`): with the version: `http://localhost:8000/v1`.
        model (`str`): name of the model there.
        size (`str`): of the image, `{width}x{height}`.
        api_key (`str`, *optional*): `OPENAI_API_KEY` of the environment by default; one's own endpoint needs none.
        timeout (`float`): seconds for one try. All tries together may take `max_retries + 1` times as long, so that an
            endpoint that sends a byte now and then cannot hold a run.
        max_retries (`int`): how often one image is tried again.
        send_seed (`bool`): whether to send `seed`, which most servers of open models take and some others refuse.

    Raises:
        RenderError: from a call, if there is no image after all tries, or the answer is not an image.
    """

    name = "endpoint"

    def __init__(
        self,
        url: str,
        model: str,
        size: str = "1024x1024",
        api_key: str | None = None,
        timeout: float = 300.0,
        max_retries: int = 4,
        send_seed: bool = True,
    ):
        try:
            import openai
        except ImportError as error:
            raise ImportError("Rendering with an endpoint needs `pip install fusion-vlm[synthesis]`.") from error

        self.openai, self.url, self.model, self.size = openai, url, model, size
        self.api_key = api_key or os.environ.get("OPENAI_API_KEY", "none")
        self.timeout, self.max_retries, self.send_seed = timeout, max_retries, send_seed

    def __call__(self, sample: Sample) -> Image.Image:
        # An event loop of its own: only in one can a call be ended that never stops sending.
        return self._decode(asyncio.run(self._request(sample)))

    async def _request(self, sample: Sample) -> Any:
        seed = {"seed": sample.rng("image").getrandbits(31)} if self.send_seed else {}
        client = self.openai.AsyncOpenAI(
            base_url=self.url, api_key=self.api_key, timeout=self.timeout, max_retries=self.max_retries
        )
        async with client:
            request = client.images.generate(
                model=self.model,
                prompt=image_prompt(sample),
                n=1,
                size=self.size,
                response_format="b64_json",
                extra_body=seed,
            )
            try:
                return await asyncio.wait_for(request, self.timeout * (self.max_retries + 1))
            except asyncio.TimeoutError as error:
                raise RenderError(
                    f"{self.url} ({self.model}) took too long, expected an image within {self.timeout:g} s a try."
                ) from error
            # ValueError: JSON that is cut.
            except (self.openai.OpenAIError, ValueError) as error:
                raise RenderError(f"{self.url} ({self.model}) gave no image: {str(error)[:300]}") from error

    def _decode(self, response: Any) -> Image.Image:
        # The SDK does not check: the answer may be text, or JSON of any shape.
        data = getattr(response, "data", None)
        first = data[0] if isinstance(data, list) and data else None
        encoded = getattr(first, "b64_json", None)
        if not isinstance(encoded, str):
            raise RenderError(
                f"{self.url} ({self.model}) answered {str(response)[:200]!r}, expected an image in `data[0].b64_json`."
            )
        try:
            content = base64.b64decode(encoded)
            with Image.open(io.BytesIO(content)) as image:
                return image.convert("RGB")
        except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise RenderError(
                f"{self.url} ({self.model}) answered {encoded[:60]!r}, expected an image in base64: {error}"
            ) from error
