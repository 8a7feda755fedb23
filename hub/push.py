"""Upload a folder to the Hub, a model or a data set: checked before long work, resumable, private by default."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import httpx, validate_repo_id

from fusion_vlm.hub.bug_report import one_line


# Seconds before the second, third, ... attempt of an upload. The Hub client itself retries each request before.
ATTEMPT_WAITS = (10, 60)
# Weights of an earlier upload, which are deleted: `from_pretrained` could read a mixture of old and new shards.
STALE_FILES = ["model*.safetensors", "model.safetensors.index.json"]


class PushError(ValueError):
    """The Hub refuses, or cannot be reached; the message is one line that says what to do."""


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Raise a `PushError` in place of the errors of the Hub client."""
    try:
        yield
    except (HFValidationError, LocalTokenNotFoundError, OSError, httpx.HTTPError) as error:
        raise PushError(explain(error, repo_id)) from error


def explain(error: Exception, repo_id: str) -> str:
    """Return an error of the Hub client in one line, with what to do."""
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} cannot be the name of a repository, expected owner/name: {one_line(error)}"
    if isinstance(error, LocalTokenNotFoundError):
        return "There is no token for the Hub. Log in with `hf auth login`, or pass --token."
    if isinstance(error, OfflineModeIsEnabled):
        return "The Hub is switched off by HF_HUB_OFFLINE. Unset it to upload."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"The Hub finds no {repo_id} that this token may see. Check the name of the owner, and the token."
    if status == 401:
        return "The Hub does not accept the token. Log in again with `hf auth login`, or pass another --token."
    if status == 403:
        return f"The token may not write to {repo_id}. It needs the right to write, and to create repositories there."
    if status is not None:
        return f"The Hub answered {status} for {repo_id}: {one_line(error.server_message or error)}"
    if isinstance(error, ValueError):
        return f"The Hub does not take the folder: {one_line(error)}"
    return f"The Hub cannot be reached: {one_line(error)}"


def may_pass(error: Exception) -> bool:
    """Return whether another attempt can help: without an answer, or after an answer that blames the Hub itself."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return not isinstance(error, (OfflineModeIsEnabled, ValueError))


def prepare_repository(api: HfApi, repo_id: str, *, public: bool = False, repo_type: str = "model") -> str:
    """
    Check that a folder can be uploaded, and create the repository if it does not exist.

    Args:
        api (`HfApi`):
            The client of the Hub, with the token to use.
        repo_id (`str`):
            `owner/name`, or `name` for a repository of the token's owner.
        public (`bool`):
            Whether the repository is meant to be public. The visibility of an existing repository is never changed: a
            repository of the other visibility is refused.
        repo_type (`str`):
            `model` or `dataset`.

    Returns:
        `str`: `owner/name`.

    Raises:
        PushError: for a name or a token that the Hub does not accept, or if the Hub cannot be reached.
    """
    with hub_errors(repo_id):
        validate_repo_id(repo_id)
        user = api.whoami()["name"]
        repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        try:
            private = api.repo_info(repo_id, repo_type=repo_type).private
        except RepositoryNotFoundError:
            return api.create_repo(repo_id, private=not public, repo_type=repo_type).repo_id
        if private and public:
            raise PushError(
                f"{repo_id} exists and is private. Leave --public out, or make it public in its settings on the Hub."
            )
        if not private and not public:
            raise PushError(f"{repo_id} exists and is public. Pass --public to upload there, or name another one.")
        api.auth_check(repo_id, write=True, repo_type=repo_type)
    return repo_id


def upload(
    api: HfApi,
    repo_id: str,
    folder: Path,
    *,
    repo_type: str = "model",
    message: str = "Upload a FUSION model",
    ignored: Sequence[str] = (),
    replaced: Sequence[str] = STALE_FILES,
    resume: str = "",
):
    """
    Upload a folder to a repository that `prepare_repository` has accepted.

    Files that the repository has already are skipped, so an upload that broke off is resumed: after a pause, or when
    the function is called again. The Hub client commits a large folder in several steps.

    Args:
        api (`HfApi`), repo_id (`str`), folder (`Path`)
        repo_type (`str`): `model` or `dataset`.
        message (`str`): of the commit.
        ignored (`Sequence[str]`): patterns of files that are not uploaded.
        replaced (`Sequence[str]`): patterns of files in the repository that are deleted, unless the folder has them.
        resume (`str`): how a user resumes the upload, for the error; by default a command of the Hub client.

    Raises:
        PushError: with the command that resumes the upload.
    """
    for wait in (*ATTEMPT_WAITS, None):
        try:
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                repo_type=repo_type,
                commit_message=message,
                ignore_patterns=[*ignored],
                delete_patterns=[*replaced],
            )
            return
        # RuntimeError is hf_xet's, ValueError the client's for a card with metadata that the Hub refuses.
        except (OSError, RuntimeError, ValueError, httpx.HTTPError) as error:
            if wait is None or not may_pass(error):
                raise PushError(
                    f"{explain(error, repo_id)} {folder} is complete, and what was uploaded is kept: resume with"
                    f" {resume or f'`hf upload {repo_id} {folder} .`'}"
                ) from error
            print(f"{explain(error, repo_id)} Trying again in {wait} s.", flush=True)
            time.sleep(wait)
