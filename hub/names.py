"""
Find the folder or the Hub repository that the name of a model or a data set stands for.

Every name on a command line and in a recipe passes `find_model`, `find_fusion` or `find_folder`. A name that cannot be
right is refused at once: nothing here imports torch, the Hub is never asked for a path, and a Hub that does not answer
costs `WAIT_SECONDS`, not the half minute that its client retries.
"""

import difflib
import json
import os
import re
import shlex
import threading
from pathlib import Path

from fusion_vlm.hub.released import RELEASED_ID, RELEASED_MODEL_TYPES


MODEL_TYPE = "fusion_vl"  # of configuration_fusion.py, whose import takes seconds; tests/hub/test_names.py compares
UNFINISHED = "unfinished"  # the subfolder of a run of `finetune` that has not ended, with settings and checkpoints
ADAPTER_CONFIG = "adapter_config.json"  # of PEFT
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Folders that training and conversion write to in the examples of this package; no owner on the Hub has these names.
OUTPUT_PATH = re.compile(r"(out|outputs?|checkpoints|runs|tmp)/.*|(.*/)?checkpoint-\d+")
# Limit for an answer of the Hub and the look-up of its address. HF_HUB_ETAG_TIMEOUT, as in its client, overrides it.
WAIT_SECONDS = 5.0


class ModelNameError(ValueError):
    """A name that stands for no model that can be loaded; the message says why and what to do."""


def expand(name: str | os.PathLike) -> str:
    """Return a name with `~` expanded."""
    return os.path.expanduser(os.fspath(name))


def is_path(name: str) -> bool:
    """Return whether a name can only be a path: the id of a repository has at most one slash, in its middle."""
    if name.startswith(("/", "./", "../", "~")) or name in ("", ".", "..") or not HUB_ID.fullmatch(name):
        return True
    if OUTPUT_PATH.fullmatch(name):
        return True
    parent = os.path.dirname(name)
    return bool(parent) and os.path.isdir(parent)


def resolve(name: str | os.PathLike) -> str:
    """
    Return a local path with `~` expanded, or the id of a Hub repository unchanged; the Hub is not asked.

    Raises:
        ModelNameError: if the name is a path that does not exist.
    """
    path = expand(name)
    if os.path.exists(path) or not is_path(path):
        return path
    raise ModelNameError(describe_missing(path))


def describe_missing(path: str) -> str:
    """Return a message that a folder does not exist, with the folder that may be meant."""
    if not path:
        return "The name of the model is empty."
    if "://" in path:
        name = "/".join(path.partition("://")[2].split("/")[1:3])
        hint = f": {name}" if HUB_ID.fullmatch(name) else ""
        return f"{path} is an address, expected a folder or the id of a Hub repository{hint}."
    parent, name = os.path.split(path.rstrip("/"))
    try:
        names = [entry.name for entry in os.scandir(parent or ".") if entry.is_dir()]
    except (OSError, ValueError):
        names = []
    if near := difflib.get_close_matches(name, names, n=1, cutoff=0.8):
        return f"There is no folder {path}. Did you mean {os.path.join(parent, near[0])}?"
    if parent and not os.path.isdir(parent) and is_path(path):
        return f"There is no folder {path}: {parent} is not there either."
    if not HUB_ID.fullmatch(path):
        return f"There is no folder {path}, and that is not the id of a Hub repository (owner/name)."
    return f"There is no folder {path}."


def find_folder(name: str | os.PathLike) -> str:
    """
    Return the path of a folder with a FUSION model.

    Raises:
        ModelNameError: if there is no such folder, or another model in it.
    """
    folder = expand(name)
    if not os.path.isdir(folder):
        if os.path.isfile(folder):
            raise ModelNameError(f"{folder} is a file, expected a folder.")
        hint = f" Download it first: hf download {folder} --local-dir FOLDER" if not is_path(folder) else ""
        raise ModelNameError(f"{describe_missing(folder)}{hint}")
    check_config(folder, read_config(folder))
    return folder


def find_model(name: str | os.PathLike, token: str | None = None, repo_type: str = "model") -> str:
    """
    Return what `from_pretrained` can load: the path of a folder, or the id of a Hub repository that answers.

    If the Hub cannot be reached and the repository is in the cache, the process works offline from here on.

    Raises:
        ModelNameError: if there is no such folder, or the repository cannot be had.
    """
    name = resolve(name)
    if not os.path.exists(name):
        reach(name, token, repo_type)
    return name


def find_fusion(name: str | os.PathLike) -> str:
    """
    Return what `FusionForConditionalGeneration.from_pretrained` can load; see `find_model`. Adapters pass.

    Raises:
        ModelNameError: if there is no such model, or if it is a released checkpoint or no FUSION.
    """
    path = expand(name)
    if not os.path.exists(path) and RELEASED_ID.fullmatch(path):
        raise ModelNameError(f"{path} is a released checkpoint. {describe_conversion(path)}")
    path = find_model(path)
    if os.path.isfile(path):
        raise ModelNameError(f"{path} is a file, expected a folder with a model, or the id of a Hub repository.")
    check_config(path, read_config(path) if os.path.isdir(path) else download_config(path))
    return path


def check_config(name: str, config: dict | None):
    """
    Check that a config is that of a converted FUSION.

    Args:
        name (`str`): the folder or Hub id, for messages.
        config (`dict`, *optional*): the content of config.json, or None for an adapter, which has no such file.

    Raises:
        ModelNameError: if it is the config of another model.
    """
    if config is None or config.get("model_type") == MODEL_TYPE:
        return
    if config.get("model_type") in RELEASED_MODEL_TYPES:
        raise ModelNameError(f"{name} is a released checkpoint. {describe_conversion(name)}")
    raise ModelNameError(
        f"{name} is no FUSION model: the model type of its config.json is {config.get('model_type')!r}, expected"
        f" {MODEL_TYPE!r}."
    )


def describe_conversion(source: str) -> str:
    """Return a message on how to convert a released checkpoint, with a command to paste."""
    stem = Path(source).resolve().name if os.path.isdir(source) else source.split("/")[-1]
    output = f"out/{stem.lower()}"
    if os.path.exists(output):
        output = f"{output}-converted"
    command = shlex.join(["fusion-vlm", "convert", source, output])
    return f"It has to be converted first: {command} (and then name {output})"


def read_config(folder: str) -> dict | None:
    """
    Read the config.json of a folder; return None for a folder that holds an adapter instead.

    Raises:
        ModelNameError: if the folder has neither, or if the file cannot be read.
    """
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        if os.path.isfile(os.path.join(folder, ADAPTER_CONFIG)):
            return None
        if os.path.isdir(os.path.join(folder, UNFINISHED)):
            raise ModelNameError(
                f"{folder} holds an unfinished run of `fusion-vlm finetune`. The same command with --resume continues"
                " the run."
            )
        raise ModelNameError(f"There is no model in {folder}: no config.json.")
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError) as error:
        raise ModelNameError(f"Cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise ModelNameError(f"Cannot read {path}: it is no JSON object.")
    return config


def download_config(repo_id: str) -> dict | None:
    """Return the config.json of a Hub repository that was reached; None if it has none, as adapters have."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        path = hf_hub_download(repo_id, "config.json")
    except EntryNotFoundError:
        return None
    return read_config(os.path.dirname(path))


def reach(repo_id: str, token: str | None = None, repo_type: str = "model"):
    """
    Check that a Hub repository is available: from the Hub, or from the cache if the Hub does not answer.

    Raises:
        ModelNameError: if it is not.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

    is_model = repo_type == "model"
    file = "config.json" if is_model else "README.md"
    try:
        is_cached = isinstance(try_to_load_from_cache(repo_id, file, repo_type=repo_type), str)
    except HFValidationError as error:
        raise ModelNameError(f"There is no folder {repo_id}, and that is not the id of a Hub repository.") from error
    refusal = None
    if not constants.HF_HUB_OFFLINE:
        refusal = ask_hub(repo_id, file, token, repo_type)
        if refusal is None or isinstance(refusal, EntryNotFoundError):
            return
    # `datasets` has a cache of its own, and looks there itself.
    if is_cached or not (is_model or isinstance(refusal, RepositoryNotFoundError)):
        # Otherwise transformers asks the Hub for each file of the model, and retries each that it does not have.
        constants.HF_HUB_OFFLINE = True
        return
    raise ModelNameError(f"{describe_missing(repo_id)} {describe_refusal(repo_id, repo_type, refusal)}") from refusal


def describe_refusal(repo_id: str, repo_type: str, error: Exception | None) -> str:
    """Return a message on why a repository is not available and what to do; no error means that the Hub is off."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    kind = "model" if repo_type == "model" else "data set"
    if isinstance(error, GatedRepoError):
        return f"On the Hub it is gated: ask for access at {constants.ENDPOINT}/{repo_id}, then `hf auth login`."
    if isinstance(error, RepositoryNotFoundError):
        return f"The Hub has no {kind} {repo_id} that you may see. Check the name; for a private one, `hf auth login`."
    download = f"Download it where there is a network: hf download {repo_id}"
    if repo_type != "model":
        download += f" --repo-type {repo_type}"
    if error is None:
        return (
            f"The Hub is switched off (HF_HUB_OFFLINE), and its cache ({constants.HF_HUB_CACHE}) has no {kind}"
            f" {repo_id}. {download}"
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    reason = f"it answered {status}" if status else " ".join(str(error).split()) or type(error).__name__
    return (
        f"The Hub ({constants.ENDPOINT}) cannot be reached ({reason}), and its cache has no {kind} {repo_id}."
        f" {download}"
    )


def ask_hub(repo_id: str, file: str, token: str | None, repo_type: str) -> Exception | None:
    """Ask the Hub once for a file, and return the error if that is one."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or WAIT_SECONDS)
    errors: list[Exception | None] = [TimeoutError(f"no answer within {seconds:g} seconds")]

    def ask():
        try:
            url = hf_hub_url(repo_id, file, repo_type=repo_type)
            get_hf_file_metadata(url, token=token, timeout=seconds)
            errors.append(None)
        except Exception as error:  # of whatever HTTP library the Hub client uses
            errors.append(error)

    # In a thread, because the time-out of a request is that of each address of the Hub in turn, and looking the
    # addresses up has none.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return errors[-1]


def read_base(folder: str | os.PathLike) -> str | None:
    """
    Return the name of the model that an adapter folder adapts, None for a folder or id of anything else.

    Raises:
        ModelNameError: if the adapter names no model.
    """
    path = Path(folder, ADAPTER_CONFIG)
    if not path.is_file() or Path(folder, "config.json").is_file():
        return None
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ModelNameError(
            f"{folder} is an adapter of an unknown model: no `base_model_name_or_path` in {path.name}."
        )
    return base


def refuse_adapter(model: str | os.PathLike):
    """Raise a ModelNameError for the folder of an adapter (PEFT), which has no weights of its own."""
    if base := read_base(model):
        raise ModelNameError(
            f"{model} is an adapter of {base}, not a whole model. Merge it first: PeftModel.from_pretrained(model,"
            f" {model!r}).merge_and_unload().save_pretrained(FOLDER), and processor.save_pretrained(FOLDER)."
        )
