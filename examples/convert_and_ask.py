"""
Converts the small released-layout checkpoint of the test fixtures, loads the result in a fresh process from its folder
alone, and asks a question about an image.

    python examples/convert_and_ask.py
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "tests" / "fixtures" / "golden" / "fusion-llama-siglip2" / "checkpoint"
IMAGE = ROOT / "tests" / "fixtures" / "chelsea.jpg"
QUESTION = "What animal is this?"

# What a user's own program does; it sees the converted folder and not this repository.
ASK = """
import sys, time
sys.modules["fusion_vlm"] = None  # an installed package would not be used either

from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
folder, image, question = sys.argv[1:]
start = time.perf_counter()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype="auto")
loaded = time.perf_counter()
messages = [{"role": "user", "content": [{"type": "image", "path": image}, {"type": "text", "text": question}]}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
print(f"Image:    {image}")
print(f"Question: {question}")
print(f"Answer:   {answer!r}")
print(f"Time:     {loaded - start:.1f} s to load, {time.perf_counter() - loaded:.1f} s to answer")
"""


def main():
    with tempfile.TemporaryDirectory() as folder:
        output_dir = Path(folder, "fusion-tiny")
        print(f"Converting {CHECKPOINT.relative_to(ROOT)}", flush=True)
        subprocess.run([sys.executable, ROOT / "convert_checkpoints.py", CHECKPOINT, output_dir], check=True)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(folder, "modules"))}
        print(f"Loading {output_dir} in a fresh process, offline", flush=True)
        command = [sys.executable, "-c", ASK, output_dir, IMAGE, QUESTION]
        subprocess.run(command, check=True, cwd=folder, env=environment)
    print("(The weights of this checkpoint are random: the answer shows that the way works, not what FUSION knows.)")


if __name__ == "__main__":
    main()
