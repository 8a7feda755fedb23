"""vLLM beside transformers: the same requests through both, compared by log probabilities and by tokens."""

import contextlib
import copy
import gc
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Qwen3Config
from vllm import LLM, SamplingParams

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.hub.loading import load, process
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor

from ...helpers import LLAMA, PHI, make_messages


NUM_TOP = 20  # log probabilities of the first token that are compared


@dataclass
class Request:
    """A conversation, with grid sizes of its own."""

    messages: list[dict]
    grid_sizes: dict = field(default_factory=dict)

    @property
    def images(self) -> list[Image.Image]:
        parts = [part for message in self.messages for part in message["content"]]
        return [part["image"] for part in parts if part["type"] == "image"]


@dataclass
class Answer:
    prompt_ids: list[int]
    token_ids: list[int]
    log_probs: dict[int, float]  # of the first token's likeliest


class Reference:
    """Transformers' answers to requests, one at a time, each computed once."""

    def __init__(self, folder: Path, dtype: str):
        self.model, self.processor = load(folder, dtype=dtype)
        self.answers = {}

    @torch.no_grad()
    def answer(self, request: Request, max_new_tokens: int, **options) -> Answer:
        key = (id(request), max_new_tokens, *options)
        if key not in self.answers:
            inputs = process(self.processor, request.messages, request.grid_sizes)
            output = self.model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                output_logits=True,
                return_dict_in_generate=True,
                **options,
            )
            length = inputs["input_ids"].shape[1]
            top = output.logits[0][0].float().log_softmax(dim=-1)
            self.answers[key] = (
                request,
                Answer(
                    inputs["input_ids"][0].tolist(),
                    output.sequences[0, length:].tolist(),
                    dict(enumerate(top.tolist())),
                ),
            )
        return self.answers[key][1]


@contextlib.contextmanager
def run_engine(folder: Path, **options):
    """Run vLLM on a folder, with its engine in this process."""
    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "block_size": 32, **options}
    llm = LLM(str(folder), **options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def ask(
    llm: LLM, processor: FusionProcessor, requests: list[Request], max_tokens: int = 12, **options
) -> list[Answer]:
    """Return vLLM's answers to requests that are submitted at once."""
    prompts = [make_prompt(processor, request) for request in requests]
    params = SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=NUM_TOP, **options)
    answers = []
    for output in llm.generate(prompts, params, use_tqdm=False):
        first = output.outputs[0]
        log_probs = {token_id: entry.logprob for token_id, entry in first.logprobs[0].items()}
        answers.append(Answer(list(output.prompt_token_ids), list(first.token_ids), log_probs))
    return answers


def make_prompt(processor: FusionProcessor, request: Request) -> dict:
    """Return vLLM's form of a request."""
    text = processor.apply_chat_template(request.messages, add_generation_prompt=True)
    prompt = {"prompt": text, "mm_processor_kwargs": request.grid_sizes}
    return {**prompt, "multi_modal_data": {"image": request.images}} if request.images else prompt


def measure(answers: list[Answer], expected: list[Answer]) -> float:
    """Return the largest difference of a log probability, of the likeliest first tokens."""
    return max(
        abs(log_prob - right.log_probs[token_id])
        for answer, right in zip(answers, expected, strict=True)
        for token_id, log_prob in answer.log_probs.items()
    )


def check_equal(answers: list[Answer], expected: list[Answer], tolerance: float = 1e-4):
    """Check prompts, first log probabilities and all tokens."""
    for number, (answer, right) in enumerate(zip(answers, expected, strict=True)):
        assert answer.prompt_ids == right.prompt_ids, number
        assert measure([answer], [right]) < tolerance, number
        assert answer.token_ids == right.token_ids, number


# Models and requests ------------------------------------------------------------------------------------------------


def write_random_model(folder: Path, decoder: str, converted: dict[str, Path]) -> Path:
    """
    Write a model of the released layout with random weights.

    It has the real grids (27 for Phi-3, 24 for the others), tokenizers and templates of the goldens, and decoder heads
    of 32, the narrowest that vLLM's CPU attention has.
    """
    source = converted[PHI if decoder == "phi3" else LLAMA]
    config, processor = FusionConfig.from_pretrained(source), FusionProcessor.from_pretrained(source)
    text_config = config.text_config
    if decoder == "qwen3":
        ids = {name: getattr(text_config, name) for name in ("vocab_size", "bos_token_id", "eos_token_id")}
        text_config = Qwen3Config(**ids, max_position_embeddings=4096)
    values = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 5}
    values |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "layer_types": None}
    values = {**text_config.to_dict(), **values}
    if decoder == "phi3":
        # A factor for each frequency of a head, of which there are 16 instead of 4.
        for name in ("long_factor", "short_factor"):
            values["rope_parameters"][name] = [factor for factor in values["rope_parameters"][name] for _ in range(4)]
    config = copy.deepcopy(config)
    config.text_config = type(text_config)(**values)
    config.num_interaction_heads, config.interaction_layer_indices = 4, [0, 2, 4]
    torch.manual_seed(0)
    model = FusionForConditionalGeneration(FusionConfig(**config.to_dict())).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                parameter.normal_(std=0.15)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def draw_image(seed: int, width: int = 50, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def mixed_requests(processor: FusionProcessor) -> list[Request]:
    """Return requests of all kinds: shapes of images, turns, text only, one image often, several grid sizes."""
    shapes = [(300, 200), (90, 240), (64, 64), (37, 12)]
    images = [draw_image(seed, *shape) for seed, shape in enumerate(shapes)]
    questions = ["What is it?", "How many are there?", "Where is the circle? Answer with a single word or phrase."]
    questions += ["Is  this\n\na test?", "What color is the small thing on the left of the other one?", "Why?"]
    turns = ["What is it?", "A red circle.", "Where is it?", "On the left.", "And the other one?"]
    side = processor.image_processor.image_grid_size
    return [
        *(Request(make_messages([question], images[0])) for question in questions),
        *(Request(make_messages(["What is it?"], image)) for image in images[1:]),
        *(Request(make_messages([question])) for question in questions[:3]),
        *(Request(make_messages(turns[:number], images[1])) for number in (3, 5)),
        *(Request(make_messages(turns[:number])) for number in (3, 5)),
        *(Request(make_messages(["Why?"], images[2]), {"latent_grid_size": size}) for size in (2, 3)),
        Request(make_messages(turns[:3], images[0]), {"latent_grid_size": 2, "image_grid_size": side - 2}),
        Request(make_messages(["Hello!"]), {"latent_grid_size": 2}),
    ]
