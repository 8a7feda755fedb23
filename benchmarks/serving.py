"""
Requests per second of FUSION on vLLM, of the one-process server, and of transformers in static batches.

    OMP_WAIT_POLICY=PASSIVE .venv-vllm/bin/python benchmarks/serving.py [--model FOLDER] [SECTION ...]

Sections, all by default:

    servers     clients one after the other, 8 and 64 at once, short and long answers
    batches     vLLM beside transformers, one by one and in static batches
    maps        8 questions about one image, with and without the cache of context maps
    llava       LLaVA-NeXT and LLaVA in vLLM, with random weights and the tower and decoder of the same model

Contenders take turns within one run, and the best of the rounds counts: compare figures of one run only. Without
--model a random model is made whose answers are as long as they may be; the small model's end by themselves.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from llava_models import register_llava, write_llava_folder
from PIL import Image
from transformers import LlamaConfig, SiglipVisionConfig

from fusion_vlm.configuration_fusion import FusionConfig
from fusion_vlm.hub.loading import build_user_message, load, process
from fusion_vlm.modeling_fusion import FusionForConditionalGeneration
from fusion_vlm.processing_fusion import FusionProcessor


ROOT = Path(__file__).parents[1]
NAME, ROUNDS, BATCH = "model", 2, 16
NUM_LLAVA = 8  # requests at once; prompts of LLaVA-NeXT are long
QUESTIONS = [
    "What color is the circle?",
    "Where is the star? Answer with a single word or phrase.",
    "How many shapes are there?",
    "What is in the image?",
]


def write_medium_model(folder: Path) -> Path:
    """Write a random model of 80 M parameters: 12 x 12 patches, 36 latents, decoder of 8 layers."""
    source = FusionProcessor.from_pretrained(ROOT / "small_model" / "model")
    vision_config = SiglipVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=12,
        num_attention_heads=4,
        image_size=144,
        patch_size=12,
        vision_use_head=False,
    )
    processor = FusionProcessor.from_tokenizer(
        source.tokenizer, vision_config, chat_template=source.chat_template, latent_grid_size=6
    )
    text_config = LlamaConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=12,
        max_position_embeddings=2048,
        eos_token_id=processor.tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    config = FusionConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=processor.image_token_id,
        latent_token_id=processor.latent_token_id,
        question_end_token_ids=processor.question_end_token_ids,
        num_interaction_heads=12,
    )
    torch.manual_seed(0)
    model = FusionForConditionalGeneration(config)
    with torch.no_grad():  # no answer ends early
        model.lm_head.weight[processor.tokenizer.eos_token_id] = -model.lm_head.weight.abs().max()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def draw_images(number: int, seed: int) -> list[Image.Image]:
    """Draw fresh images, which no cache has."""
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (96, 128, 3), dtype=np.uint8)) for _ in range(number)]


# Servers ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def run_server(model: Path, engine: str) -> Iterator[int]:
    """Run `fusion-vlm serve`, and yield its port once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "fusion_vlm.commands.main", "serve", str(model), "--engine", engine]
    command += ["--port", str(port), "--name", NAME, "--dtype", "float32"]
    if engine == "vllm":
        command += ["--max-model-len", "1024", "--max-num-batched-tokens", "4096", "--enforce-eager"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for_server(port, process, log)
            yield port
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def wait_for_server(port: int, process: subprocess.Popen, log):
    """Wait until a server answers; raise the end of its log if it does not start."""
    while process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return
        time.sleep(0.5)
    log.seek(0)
    raise RuntimeError(log.read().decode()[-2000:])


def ask(port: int, image: Image.Image, question: str, max_tokens: int) -> tuple[float, int]:
    """Return the seconds to the first token and the number of streamed pieces of one answer."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    body = {"model": NAME, "messages": [{"role": "user", "content": content}], "stream": True, "temperature": 0}
    body |= {"max_tokens": max_tokens, "stream_options": {"include_usage": True}}
    address = f"http://127.0.0.1:{port}/v1/chat/completions"
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    begin, first, num_tokens = time.perf_counter(), None, 0
    with urllib.request.urlopen(request, timeout=600) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if first is None and event["choices"] and event["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - begin
            if event.get("usage"):
                num_tokens = event["usage"]["completion_tokens"]
    return first or time.perf_counter() - begin, num_tokens


def measure_server(port: int, num_clients: int, max_tokens: int, seed: int, one_image: bool) -> dict[str, float]:
    """Return requests and tokens per second, and the mean seconds to the first token."""
    number = max(8, num_clients)
    images = draw_images(1, seed) * number if one_image else draw_images(number, seed)
    begin = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as pool:
        jobs = [
            pool.submit(ask, port, image, f"{QUESTIONS[index % len(QUESTIONS)]} {index}", max_tokens)
            for index, image in enumerate(images)
        ]
        answers = [job.result() for job in jobs]
    seconds = time.perf_counter() - begin
    firsts, tokens = zip(*answers, strict=True)
    return {"req/s": number / seconds, "tok/s": sum(tokens) / seconds, "first token": sum(firsts) / number}


def compare_servers(model: Path, lengths: list[int]):
    with run_server(model, "vllm") as fast, run_server(model, "transformers") as own:
        for port in (fast, own):
            measure_server(port, 1, 2, 99, False)  # warms up
        print("| clients | answer | images | vLLM req/s | own req/s | ratio | vLLM first token | own first token |")
        print("|---|---|---|---|---|---|---|---|")
        cases = [(clients, length, False) for length in lengths for clients in (1, 8, 64)]
        for number, (clients, length, one_image) in enumerate([*cases, (64, lengths[0], True)]):
            best = {}
            for turn in range(ROUNDS):
                for name, port in (("vllm", fast), ("own", own)):
                    result = measure_server(port, clients, length, 1000 * number + turn, one_image)
                    if name not in best or result["req/s"] > best[name]["req/s"]:
                        best[name] = result
            vllm, other = best["vllm"], best["own"]
            print(
                f"| {clients} | {length} | {'one' if one_image else 'each its own'} | {vllm['req/s']:.2f}"
                f" | {other['req/s']:.2f} | {vllm['req/s'] / other['req/s']:.1f} | {vllm['first token']:.2f} s"
                f" | {other['first token']:.2f} s |",
                flush=True,
            )


# In one process -----------------------------------------------------------------------------------------------------


def make_engine(model: Path, **options):
    from vllm import LLM

    options |= {"max_model_len": 1024, "max_num_batched_tokens": 4096, "enforce_eager": True, "dtype": "float32"}
    return LLM(str(model), **options)


def make_conversations(number: int, seed: int, one_image: bool = False) -> list[list[dict]]:
    images = draw_images(1, seed) * number if one_image else draw_images(number, seed)
    return [
        [build_user_message(f"{QUESTIONS[index % len(QUESTIONS)]} {index}", image)]
        for index, image in enumerate(images)
    ]


def generate(llm, prompts: list[dict], max_tokens: int) -> list:
    from vllm import SamplingParams

    return llm.generate(prompts, SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True), use_tqdm=False)


def ask_engine(llm, processor: FusionProcessor, conversations: list, max_tokens: int) -> list:
    prompts = [
        {
            "prompt": processor.apply_chat_template(messages, add_generation_prompt=True),
            "multi_modal_data": {"image": messages[0]["content"][0]["image"]},
        }
        for messages in conversations
    ]
    return generate(llm, prompts, max_tokens)


@torch.no_grad()
def ask_transformers(model, processor: FusionProcessor, conversations: list, max_tokens: int, batch: int):
    for begin in range(0, len(conversations), batch):
        inputs = process(processor, conversations[begin : begin + batch], {})
        model.generate(**inputs, max_new_tokens=max_tokens, min_new_tokens=max_tokens, do_sample=False)


def measure(run) -> tuple[float, float]:
    """Return wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare_batches(folder: Path, lengths: list[int]):
    llm, (model, processor) = make_engine(folder), load(folder, dtype="float32")
    print("| answer | contender | req/s | CPU seconds a request | speed against batch 16 |\n|---|---|---|---|---|")
    for length in lengths:
        contenders = {
            "vLLM": lambda conversations, n=length: ask_engine(llm, processor, conversations, n),
            "transformers, batch 16": lambda conversations, n=length: ask_transformers(
                model, processor, conversations, n, BATCH
            ),
            "transformers, batch 1": lambda conversations, n=length: ask_transformers(
                model, processor, conversations[:8], n, 1
            ),
        }
        best = {}
        for turn in range(ROUNDS):
            for name, run in contenders.items():
                number = 8 if name.endswith("batch 1") else 32
                conversations = make_conversations(32, turn + 10 * length)
                seconds = [value / number for value in measure(lambda run=run, rows=conversations: run(rows))]
                best[name] = min(best.get(name, seconds), seconds)
        for name, (wall, cpu) in best.items():
            ratio = best["transformers, batch 16"][0] / wall
            print(f"| {length} | {name} | {1 / wall:.2f} | {cpu:.3f} | {ratio:.2f} |", flush=True)


def compare_maps(folder: Path):
    from fusion_vlm.serving.vllm import processor as plugin

    llm, processor = make_engine(folder), FusionProcessor.from_pretrained(folder)
    hash_tensor, best = plugin.hash_tensor, {}
    for turn in range(2 * ROUNDS):
        for name, hashing in (("shared", hash_tensor), ("each its own", lambda tensor: torch.randint(256, (32,)))):
            plugin.hash_tensor = hashing
            conversations = make_conversations(8, turn, one_image=True)
            wall, cpu = measure(lambda rows=conversations: ask_engine(llm, processor, rows, 2))
            best[name] = min(best.get(name, (wall, cpu)), (wall, cpu))
    plugin.hash_tensor = hash_tensor
    print("| context map of 8 questions about one image | seconds | CPU seconds |\n|---|---|---|")
    for name, (wall, cpu) in best.items():
        print(f"| {name} | {wall:.2f} | {cpu:.2f} |")


# LLaVA in vLLM ------------------------------------------------------------------------------------------------------


def ask_llava(llm, processor: FusionProcessor, conversations: list, max_tokens: int) -> list:
    contents = [messages[0]["content"] for messages in conversations]
    prompts = [
        {"prompt": f"{processor.image_token} {question['text']}", "multi_modal_data": {"image": image["image"]}}
        for image, question in contents
    ]
    return generate(llm, prompts, max_tokens)


def compare_llava(folder: Path, lengths: list[int]):
    register_llava()
    processor, engines = FusionProcessor.from_pretrained(folder), {"FUSION": (ask_engine, make_engine(folder))}
    for name, has_crops in (("LLaVA-NeXT, 4 crops", True), ("LLaVA, no crops", False)):
        with tempfile.TemporaryDirectory() as scratch:
            llava = write_llava_folder(Path(scratch), folder, has_crops)
            engines[name] = (ask_llava, make_engine(llava, load_format="dummy"))
    warm_up = {
        name: ask_model(llm, processor, make_conversations(1, 99), 1)[0] for name, (ask_model, llm) in engines.items()
    }
    print("| answer | images | contender | prompt tokens | req/s | CPU seconds a request | against FUSION |")
    print("|---|---|---|---|---|---|---|")
    for length, one_image in ((length, one_image) for length in lengths for one_image in (False, True)):
        best = {}
        for turn in range(ROUNDS):
            rows = make_conversations(NUM_LLAVA, turn + 10 * length + 5 * one_image, one_image)
            for name, (ask_model, llm) in engines.items():
                run = partial(ask_model, llm, processor, rows, length)
                seconds = [value / NUM_LLAVA for value in measure(run)]
                best[name] = min(best.get(name, seconds), seconds)
        for name, (wall, cpu) in best.items():
            print(
                f"| {length} | {'one' if one_image else 'each its own'} | {name}"
                f" | {len(warm_up[name].prompt_token_ids)} | {1 / wall:.2f} | {cpu:.2f}"
                f" | {wall / best['FUSION'][0]:.2f} of the time, {cpu / best['FUSION'][1]:.2f} of the CPU time |",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=["servers", "batches", "maps", "llava"], metavar="SECTION")
    parser.add_argument("--model", type=Path, help="folder (default: a random model of 80 M parameters)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4, 48], help="tokens of an answer (default: 4 48)")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.model or write_medium_model(Path(scratch, "medium"))
        if "servers" in args.sections:
            compare_servers(folder, args.lengths)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if "batches" in args.sections:
            compare_batches(folder, args.lengths)
        if "maps" in args.sections:
            compare_maps(folder)
        if "llava" in args.sections:
            compare_llava(folder, args.lengths)


if __name__ == "__main__":
    main()
