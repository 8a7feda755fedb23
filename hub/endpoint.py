"""
Write the files that a folder needs beside its weights and its processor.

These are the model's code, and `handler.py` with `requirements.txt` for Inference Endpoints. The converter writes
them, and so does `fusion-vlm card FOLDER --handler`.
"""

import re
import shutil
from pathlib import Path


PACKAGE_DIR = Path(__file__).resolve().parents[1]
HANDLER = "handler.py"
SHIPPED_FILES = ("configuration_fusion.py", "modeling_fusion.py", "processing_fusion.py", HANDLER)
# The image of Inference Endpoints has an older transformers (4.51.3 in huggingface-inference-toolkit), which cannot
# import the code. torch is not listed, because another build than the image's may not fit the driver. The bounds are
# those of setup.cfg.
REQUIREMENTS = ("transformers>=5.20", "accelerate>=1.7", "pillow>=10.4")
QUANTIZED_REQUIREMENTS = ("bitsandbytes>=0.48.1",)


def add_endpoint_files(folder: Path, *, quantized: bool = False):
    """
    Write the handler, the code and `requirements.txt` into a folder, as Inference Endpoints need them.

    Code that is there already is kept, because the weights may need that version. Lines of an existing
    `requirements.txt` are kept too.
    """
    for name in SHIPPED_FILES:
        source, target = PACKAGE_DIR / name, folder / name
        # `small_model/model` has links to the files of this package.
        is_same = target.exists() and target.samefile(source)
        if not is_same and (name == HANDLER or not target.exists()):
            shutil.copy(source, target)
    path = folder / "requirements.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = {package_name(line) for line in lines}
    wanted = REQUIREMENTS + (QUANTIZED_REQUIREMENTS if quantized else ())
    lines += [line for line in wanted if package_name(line) not in named]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def package_name(requirement: str) -> str:
    """Return the name of the package in a line of `requirements.txt`, or "" for an option or a comment."""
    match = re.match(r"\s*([A-Za-z0-9][\w.-]*)", requirement)
    return match[1].lower() if match else ""
