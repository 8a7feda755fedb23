"""FLUX through a tiny random pipeline, and an endpoint for images that works or fails."""

import asyncio
import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from fusion_vlm.synthesis.models.renderers import EndpointRenderer, FluxRenderer, RenderError, image_prompt
from fusion_vlm.synthesis.sample import Sample


def make_sample(id: str = "a", seed: int = 0, **fields) -> Sample:
    return Sample(id=id, kind="caption_scene", seed=seed, **({"description": "a red ball"} | fields))


def png(size: tuple[int, int] = (8, 6), colour: str = "red", format: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format)
    return base64.b64encode(buffer.getvalue()).decode()


def answer_of(encoded: str) -> dict:
    return {"created": 0, "data": [{"b64_json": encoded}]}


class Endpoint:
    """
    Answers requests with `answers` in turn, then with the last one, and records the bodies of the requests.

    An answer is `(status, content type, body)`, a dict for valid JSON, or "drip" for an answer that never ends.
    """

    def __init__(self, *answers):
        self.requests, self.paths, self.keys = [], [], []
        self.closed = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                endpoint.paths.append(self.path)
                endpoint.keys.append(self.headers.get("Authorization"))
                endpoint.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                endpoint.answer(self, answers[min(len(endpoint.requests), len(answers)) - 1])

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def answer(self, handler: BaseHTTPRequestHandler, answer):
        if answer == "drip":
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.end_headers()
            while not self.closed.wait(0.05):
                try:
                    handler.wfile.write(b" ")
                except OSError:
                    return
            return
        status, kind, body = answer if isinstance(answer, tuple) else (200, "application/json", json.dumps(answer))
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("retry-after-ms", "1")
        handler.end_headers()
        handler.wfile.write(body.encode())

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *arguments):
        self.closed.set()
        self.server.shutdown()
        self.server.server_close()


def test_the_prompt_is_the_description_or_else_the_caption():
    assert image_prompt(make_sample(caption="short")) == "a red ball"
    assert image_prompt(make_sample(caption="short", description="")) == "short"
    with pytest.raises(ValueError, match="Sample a has neither a description nor a caption"):
        image_prompt(make_sample(caption=" ", description=""))


# -- endpoint


def test_an_endpoint_is_asked_as_openai_s_and_its_image_is_given(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with Endpoint(answer_of(png())) as endpoint:
        image = EndpointRenderer(endpoint.url, "flux", size="8x6")(make_sample())
    assert image.mode == "RGB" and image.size == (8, 6) and image.getpixel((0, 0)) == (255, 0, 0)
    assert endpoint.paths == ["/v1/images/generations"] and endpoint.keys == ["Bearer secret"]
    request = endpoint.requests[0]
    seed = request.pop("seed")
    assert isinstance(seed, int) and 0 <= seed < 2**31
    assert request == {
        "model": "flux",
        "prompt": "a red ball",
        "n": 1,
        "size": "8x6",
        "response_format": "b64_json",
    }


def test_the_seed_is_the_sample_s_own_and_can_be_left_out():
    with Endpoint(answer_of(png())) as endpoint:
        renderer = EndpointRenderer(endpoint.url, "flux")
        for sample in (make_sample(), make_sample(), make_sample(id="b"), make_sample(seed=1)):
            renderer(sample)
        EndpointRenderer(endpoint.url, "flux", send_seed=False)(make_sample())
    first, again, other_id, other_seed, without = (request.get("seed") for request in endpoint.requests)
    assert first == again and len({first, other_id, other_seed}) == 3 and without is None


@pytest.mark.parametrize("status", [429, 500, 503])
def test_errors_that_pass_are_tried_again(status):
    with Endpoint((status, "text/plain", "busy"), (status, "text/plain", "busy"), answer_of(png())) as endpoint:
        assert EndpointRenderer(endpoint.url, "flux", max_retries=2)(make_sample()).size == (8, 6)
        assert len(endpoint.requests) == 3


def test_an_error_that_lasts_is_raised_after_all_tries_and_one_of_the_request_at_once():
    with Endpoint((500, "text/html", "<html>" + "x" * 5000)) as endpoint:
        with pytest.raises(RenderError, match="127.0.0.1.* \\(flux\\) gave no image") as error:
            EndpointRenderer(endpoint.url, "flux", max_retries=1)(make_sample())
        assert len(endpoint.requests) == 2 and len(str(error.value)) < 500
    with Endpoint((400, "application/json", '{"error": {"message": "prompt refused"}}')) as endpoint:
        with pytest.raises(RenderError, match="gave no image: .*prompt refused") as error:
            EndpointRenderer(endpoint.url, "flux")(make_sample())
        assert len(endpoint.requests) == 1 and error.value.__cause__.rule == "http_400"


@pytest.mark.parametrize(
    "answer, message",
    [
        ({"error": {"message": "out of memory"}}, "out of memory.*expected an image in"),
        ({"data": []}, "expected an image in `data"),
        ({"data": ["text"]}, "expected an image in `data"),
        ({"data": {"b64_json": "x"}}, "expected an image in `data"),
        ({"data": [{"url": "http://127.0.0.1/a.png"}]}, "a.png.*expected an image in `data"),
        ({"data": [{"b64_json": 3}]}, "expected an image in `data"),
        (["data"], "expected an image in `data"),
        ((200, "application/json", "null"), "expected an image in `data"),
        ((200, "text/html", "<html>hello</html>"), "hello.*expected an image in `data"),
        ((200, "application/json", '{"data": [{"b64'), "gave no image"),
        ((200, "application/json", ""), "gave no image|expected an image"),
        (answer_of("no base64!"), "expected an image in base64"),
        (answer_of(""), "expected an image in base64"),
        (answer_of(base64.b64encode(b"I cannot draw that").decode()), "expected an image in base64"),
        (answer_of(png((64, 64), format="BMP")[:200]), "expected an image in base64"),  # cut off
    ],
)
def test_an_answer_without_an_image_is_refused(answer, message):
    with Endpoint(answer) as endpoint:
        with pytest.raises(RenderError, match=message) as error:
            EndpointRenderer(endpoint.url, "flux", max_retries=0, backoff=0.001)(make_sample())
        assert len(endpoint.requests) == 4 and len(str(error.value)) < 500
    # The same garbage, once or three times, costs no image.
    for num_faults in (1, 3):
        with Endpoint(*[answer] * num_faults, answer_of(png())) as endpoint:
            image = EndpointRenderer(endpoint.url, "flux", max_retries=0, backoff=0.001)(make_sample())
            assert image.size == (8, 6) and len(endpoint.requests) == num_faults + 1
            assert all(request == endpoint.requests[0] for request in endpoint.requests)


def test_an_endpoint_that_never_stops_sending_is_given_up():
    with Endpoint("drip") as endpoint:
        start = time.monotonic()
        with pytest.raises(RenderError, match="timeout: no answer in 0.4 s"):
            EndpointRenderer(endpoint.url, "flux", timeout=0.2, max_retries=1, backoff=0.001)(make_sample())
        assert time.monotonic() - start < 5


def test_an_endpoint_that_is_not_there_is_named():
    with Endpoint(answer_of(png())) as endpoint:
        url = endpoint.url
    with pytest.raises(RenderError, match=url):
        EndpointRenderer(url, "flux", max_retries=0)(make_sample())


def test_an_event_loop_calls_it_in_threads():
    async def render_all(renderer):
        samples = [make_sample(id=str(index)) for index in range(4)]
        return await asyncio.gather(*(asyncio.to_thread(renderer, sample) for sample in samples))

    with Endpoint(answer_of(png())) as endpoint:
        images = asyncio.run(render_all(EndpointRenderer(endpoint.url, "flux")))
    assert [image.size for image in images] == [(8, 6)] * 4


# -- FLUX


class FakePipeline:
    """Has the arguments of FluxPipeline, and draws noise from the generator."""

    name_or_path = "fake"

    def __init__(self):
        self.calls, self.running = [], 0

    def __call__(self, prompt, width, height, num_inference_steps, guidance_scale, generator):
        self.running += 1
        assert self.running == 1, "two images at a time"
        time.sleep(0.01)
        self.calls.append((prompt, num_inference_steps, guidance_scale))
        noise = torch.randint(256, (height, width), generator=generator, dtype=torch.uint8)
        self.running -= 1
        return type("Output", (), {"images": [Image.fromarray(noise.numpy())]})


def test_flux_draws_the_description_with_the_sample_s_seed():
    pipeline = FakePipeline()
    renderer = FluxRenderer(pipeline, width=16, height=32, num_inference_steps=4, guidance_scale=1.5)
    samples = (make_sample(), make_sample(), make_sample(id="b"), make_sample(seed=1))
    images = [renderer(sample) for sample in samples]
    assert images[0].mode == "RGB" and images[0].size == (16, 32)
    first, again, other_id, other_seed = (image.tobytes() for image in images)
    assert first == again and len({first, other_id, other_seed}) == 3
    assert pipeline.calls == [("a red ball", 4, 1.5)] * 4 and renderer.model == "fake"


def test_flux_renders_one_image_at_a_time_whatever_thread_calls():
    renderer = FluxRenderer(FakePipeline(), width=16, height=16)

    async def render_all():
        samples = [make_sample(id=str(index)) for index in range(6)]
        return await asyncio.gather(*(asyncio.to_thread(renderer, sample) for sample in samples))

    alone = [renderer(make_sample(id=str(index))).tobytes() for index in range(6)]
    assert [image.tobytes() for image in asyncio.run(render_all())] == alone


@pytest.fixture(scope="module")
def flux_folder(tmp_path_factory):
    """Save a random FLUX pipeline of a few thousand weights in the form of the Hub."""
    diffusers = pytest.importorskip("diffusers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

    words = ["<pad>", "</s>", "a", "red", "blue", "ball", "cube"]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", pad_token="<pad>", unk_token="<pad>", model_max_length=16
    )
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPTextModel(CLIPTextConfig(**tiny, vocab_size=7, projection_dim=16, bos_token_id=0, eos_token_id=1))
    t5 = T5EncoderModel(T5Config(vocab_size=7, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=[4, 4, 8],
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        shift_factor=0.0,
        scaling_factor=1.0,
    )
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=clip,
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=tokenizer,
        transformer=transformer,
    )
    folder = tmp_path_factory.mktemp("flux")
    pipeline.save_pretrained(folder)
    return str(folder)


def test_a_flux_pipeline_of_diffusers_renders_the_same_image_for_the_same_sample(flux_folder):
    renderer = FluxRenderer(flux_folder, width=32, height=16, num_inference_steps=2, device="cpu")
    samples = (make_sample(), make_sample(), make_sample(id="b"), make_sample(description="a blue cube"))
    first, again, other_seed, other_text = (np.asarray(renderer(sample), dtype=int) for sample in samples)
    assert first.shape == (16, 32, 3) and first.std() > 0
    np.testing.assert_array_equal(first, again)
    assert (first != other_seed).any() and (first != other_text).any()
    assert renderer.model == flux_folder
