"""
Check the full size.

A random checkpoint with the names, shapes and dtype of FUSION-Phi3.5-3B (10.2 GB) is converted, loaded and asked a
question about a photograph, as it is and in 4 bits. Memory and times are printed. The check needs 25 GB of disk, 16 GB
of memory and about ten minutes on 2 CPU cores.

    make test-slow
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from .helpers import FIXTURES, GOLDEN_DIR, PEAK_MEMORY, PHI


SHAPES = json.loads((FIXTURES / "released_tensors.json").read_text())["FUSION-Phi3.5-3B"]
SHARD_SIZE = 5 * 10**9
QUESTION = "What animal is this, and what is it looking at?"

MEASURE = f"""
import json, sys, time
{PEAK_MEMORY}
def report(**values):
    print(json.dumps({{"peak_memory": peak_memory(), **values}}))

"""

CONVERT = (
    MEASURE
    + """
from fusion_vlm.convert_checkpoints import convert

start = time.perf_counter()
convert(sys.argv[1], sys.argv[2], max_shard_size=int(sys.argv[3]), quantize=sys.argv[4] or None)
report(seconds=time.perf_counter() - start)
"""
)

ASK = (
    MEASURE
    + """
sys.modules["fusion_vlm"] = None
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, image, question = sys.argv[1:]
start = time.perf_counter()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype="auto")
loaded = time.perf_counter()
messages = [{"role": "user", "content": [{"type": "image", "path": image}, {"type": "text", "text": question}]}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
times = [time.perf_counter()]

class Timer:
    def put(self, ids):
        times.append(time.perf_counter())
    def end(self):
        pass

output = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, streamer=Timer())
report(
    dtype=str(model.dtype),
    parameters=model.num_parameters(),
    prompt_tokens=inputs["input_ids"].shape[1],
    new_tokens=output[0, inputs["input_ids"].shape[1] :].tolist(),
    load_seconds=loaded - start,
    first_token_seconds=times[2] - times[0],
    next_token_seconds=(times[-1] - times[2]) / (len(times) - 3),
)
"""
)


def write_random_checkpoint(folder: Path):
    """Shards of about 5 GB, as released; the tokenizer is the goldens', whose ids are valid ids here."""
    released = json.loads((GOLDEN_DIR / PHI / "checkpoint" / "config.json").read_text())
    released.update(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32013,
        start_of_vision_sampler_layers=0,
        stride_of_vision_sampler_layers=3,
        num_of_vision_sampler_layers=10,
        rope_scaling={"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [4.0] * 48},
        torch_dtype="bfloat16",
    )
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(released))
    for file in ("tokenizer.model", "tokenizer_config.json", "added_tokens.json", "generation_config.json"):
        shutil.copy(GOLDEN_DIR / PHI / "checkpoint" / file, folder)
    weight_map, shard, size = {}, {}, 0

    def flush():
        file = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
        shard.clear()

    torch.manual_seed(0)
    for name, shape in SHAPES.items():
        shard[name] = torch.randn(shape).mul_(0.02).to(torch.bfloat16)
        if "norm" in name and name.endswith("weight"):
            shard[name].fill_(1)
        size += shard[name].nbytes
        if size > 4.5 * 10**9:
            flush()
            size = 0
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def run(code: str, *arguments) -> dict:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert result.returncode == 0
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["", "nf4"])
def test_full_size_checkpoint_converts_loads_and_answers(quantize, tmp_path):
    source, output_dir = tmp_path / "source", tmp_path / "converted"
    write_random_checkpoint(source)
    conversion = run(CONVERT, source, output_dir, SHARD_SIZE, quantize)
    shutil.rmtree(source)
    conversion["gigabytes"] = sum(file.stat().st_size for file in output_dir.glob("*.safetensors")) / 10**9
    answer = run(ASK, output_dir, FIXTURES / "chelsea.jpg", QUESTION)
    shutil.rmtree(output_dir)
    for step, values in ((f"convert {quantize}", conversion), ("ask", answer)):
        print(f"\n{step}: peak memory {values.pop('peak_memory') / 10**9:.2f} GB")
        print("\n".join(f"  {name}: {value}" for name, value in values.items()))
    assert len(answer["new_tokens"]) == 4
    if quantize:
        assert conversion["gigabytes"] < 3.7
        return
    assert answer["dtype"] == "torch.bfloat16"
    # All but the tower's final norm, whose output nothing uses.
    assert answer["parameters"] == sum(torch.Size(shape).numel() for shape in SHAPES.values()) - 2 * 1152


@pytest.mark.slow
def test_full_size_conversion_memory(tmp_path):
    """At most the largest shard, the largest tensor and a constant, with shards of 1 GB."""
    source, output_dir, shard_size = tmp_path / "source", tmp_path / "converted", 10**9
    write_random_checkpoint(source)
    conversion = run(CONVERT, source, output_dir, shard_size, "")
    largest = max(torch.Size(shape).numel() * 2 for shape in SHAPES.values())
    shutil.rmtree(source)
    shutil.rmtree(output_dir)
    print(f"\npeak memory with shards of 1 GB: {conversion['peak_memory'] / 10**9:.2f} GB")
    assert conversion["peak_memory"] < shard_size + largest + 10**9
