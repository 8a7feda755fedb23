"""
Convert a released checkpoint, load the result in a fresh process from its folder alone, and ask about an image.

    python examples/convert_and_ask.py CHECKPOINT

CHECKPOINT is a folder or a Hub id. `make demo-convert` takes the small one with random weights that the tests use.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
IMAGE = ROOT / "hub" / "chelsea.jpg"
QUESTION = "What animal is this?"

# A user's program: it has the converted folder, but not this repository.
ASK = """
import sys, time
sys.modules["fusion_vlm"] = None  # an installed package must not be used either

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    checkpoint = parser.parse_args().checkpoint
    with tempfile.TemporaryDirectory() as folder:
        output_dir = Path(folder, "fusion-converted")
        print(f"Converting {checkpoint}", flush=True)
        subprocess.run([sys.executable, ROOT / "convert_checkpoints.py", checkpoint, output_dir], check=True)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(folder, "modules"))}
        print(f"Loading {output_dir} in a fresh process, offline", flush=True)
        command = [sys.executable, "-c", ASK, output_dir, IMAGE, QUESTION]
        subprocess.run(command, check=True, cwd=folder, env=environment)


if __name__ == "__main__":
    main()
