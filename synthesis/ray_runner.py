"""
The runner on Ray: parts as tasks of a cluster, which deals them out and moves those of dead workers and nodes.

All nodes see the folder of the run at the same path and have this package installed. docs/engine.md has the set-up.
"""

import dataclasses
import logging
import os
import secrets
import socket
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from math import inf
from pathlib import Path

from tqdm import tqdm

from fusion_vlm.synthesis.failures import RunError
from fusion_vlm.synthesis.parts import Job, Report
from fusion_vlm.synthesis.run_folder import RunFolder
from fusion_vlm.synthesis.workers import Deaths, make_picklable


CONNECT_SECONDS = 10
# Seconds between looks at the cluster, and without any node that can make parts until the run stops. Ray itself ends
# this process, without advice, 60 s after the head node was lost.
POLL_SECONDS, NODE_SECONDS = 1.0, 30
# Variables that worker processes here inherit, and those of a cluster do not.
PASSED_VARIABLES = ("OPENAI_API_KEY", "HF_TOKEN")
# Ray reads its variables at its import. By default it tries 20 times to connect with a wrong token.
CLUSTER_VARIABLES = {"RAY_NUM_REDIS_GET_RETRIES": "5"}
# Ray on this machine asks for a token, listens on 127.0.0.1 alone, and may take minutes to start if others are busy.
LOCAL_VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_agent_register_timeout_ms": "300000",
}
LOCAL_SETTINGS = {"include_dashboard": False, "object_store_memory": 100_000_000}


def run_on_ray(job: Job, address: str | None, num_workers: int, progress: tqdm):
    """
    Make all parts of a run as tasks on Ray.

    A part that an earlier driver's worker still holds is tried again until that worker has ended.

    Args:
        job (`Job`)
        address (`str`, *optional*): of a cluster, `host:port`; without one, Ray runs on this machine meanwhile.
        num_workers (`int`): most parts in progress at once, which share the calls in flight; 0 is one for each core of
            the cluster, or for each GPU if models draw or score on GPUs.
        progress (`tqdm`): a bar of samples.

    Raises:
        ImportError: if Ray is not installed.
        RunError: if the cluster cannot be reached or is lost, or workers die over one part again and again.
        Exception: any error of a stage.
    """
    # Tasks begin in another directory than this process.
    folder = dataclasses.replace(job.folder, path=job.folder.path.absolute())
    with _connected(address, num_workers) as ray:
        try:
            _run_parts(ray, dataclasses.replace(job, folder=folder), num_workers, progress)
        except ray.exceptions.RayError as error:
            raise _explain("Ray gave up the run", error) from error


@contextmanager
def _connected(address: str | None, num_workers: int) -> Iterator:
    """Connect to a cluster, or run one here meanwhile, and yield Ray's module."""
    settings = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Not in TMPDIR, which is often long: paths of sockets have at most 107 bytes.
    place = {"prefix": "ray-", "dir": os.environ.get("RAY_TMPDIR", "/tmp"), "ignore_cleanup_errors": True}
    with nullcontext() if address else tempfile.TemporaryDirectory(**place) as logs:
        if address is None:
            os.environ |= LOCAL_VARIABLES | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
            settings |= LOCAL_SETTINGS | {"num_cpus": num_workers or None, "_temp_dir": logs}
        else:
            os.environ |= CLUSTER_VARIABLES
        ray = _import_ray()
        if address not in (None, "auto") and (problem := _find_problem(address)):
            raise RunError(
                f"No cluster answers at {address}: {problem}. Give HOST:PORT of its head node, as `ray start --head`"
                " prints it; without --ray-address, Ray runs on this machine."
            )
        try:
            # "local", because without an address Ray would join a cluster that some file names, even if it is dead.
            ray.init(address or "local", **settings)
        except (ray.exceptions.RayError, RuntimeError, OSError, ValueError) as error:
            raise _explain(f"Ray cannot connect to {address}" if address else "Ray does not start", error) from error
        try:
            yield ray
        finally:
            ray.shutdown(wait_for_processes=True)


def _import_ray():
    try:
        import ray  # late: an extra
    except ImportError as error:
        raise ImportError("--runner ray needs Ray: pip install 'fusion-vlm[ray]'.") from error
    return ray


def _find_problem(address: str) -> Exception | None:
    """Return why nothing answers at an address: Ray would try again for a minute."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        return error
    return None


def _explain(what: str, error: Exception) -> RunError:
    reason = str(error.__cause__ or error).rpartition("\nray.exceptions.")[2]  # without the traceback that Ray quotes
    return RunError(f"{what}: {' '.join(reason.split())[:400]} Give the same command again; finished parts stay.")


def _count_slots(ray, resource: str) -> int:
    """Return how many parts the cluster can make at once; 0 while its head node does not answer."""
    if _find_problem(ray.get_runtime_context().gcs_address):
        return 0
    return int(ray.cluster_resources().get(resource, 0))


def _run_parts(ray, job: Job, num_workers: int, progress: tqdm):
    resource = "GPU" if job.needs_gpu else "CPU"
    # Without `max_calls=0`, a worker with a GPU would end after each part, and load its models again.
    settings = {"num_gpus": 1, "num_cpus": 0, "max_calls": 0} if job.needs_gpu else {"num_cpus": 1}
    # Deaths are counted here: Ray counts neither whether a part got farther, nor any for lack of memory.
    make = ray.remote(max_retries=0, **settings)(_make_part)
    variables = {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
    missing, running = deque(job.folder.missing_parts()), {}
    deaths, num_done, last_seen = Deaths(job.folder), 0, -inf
    while missing or running:
        num_slots = _count_slots(ray, resource)
        last_seen = time.monotonic() if num_slots else last_seen
        if time.monotonic() - last_seen > NODE_SECONDS:
            raise RunError(
                f"The cluster has no {resource} that answers, so no part can be made. Start a node that has one, and"
                " give the same command again; finished parts stay."
            )
        most = min(num_workers or num_slots, num_slots)
        while missing and len(running) < most:
            shared = dataclasses.replace(job, connections=job.connections.shared(num_workers or num_slots))
            part = missing.popleft()
            running[make.remote(shared, part, os.getcwd(), variables)] = part
        if not running:
            time.sleep(POLL_SECONDS)
            continue
        finished, _ = ray.wait([*running], timeout=POLL_SECONDS)
        for task in finished:
            part = running.pop(task)
            if _get(ray, task, part, deaths, job.folder):
                num_done += len(job.folder.part_indices(part))
            else:
                missing.append(part)
        num_begun = sum(_count_samples(job.folder, part) for part in running.values())
        progress.update(num_done + num_begun - progress.n)


def _get(ray, task, part: int, deaths: Deaths, folder: RunFolder) -> bool:
    """Return whether a part is finished; count the death of its worker."""
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from error
    except (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.NodeDiedError,
    ) as error:
        deaths.count(part, _count_samples(folder, part), type(error).__name__)
        return False


def _make_part(job: Job, part: int, directory: str, variables: dict[str, str]) -> bool:
    """Make a part in a worker of Ray, from the directory and with the keys of the driver."""
    # Late: generate.py imports this module.
    from fusion_vlm.synthesis.generate import run_part

    os.environ |= variables
    with suppress(OSError):  # a node may lack it, if no path is relative
        os.chdir(directory)
    path = _samples_path(job.folder, part)

    def begin(_):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")

    def end_sample(_):
        with open(path, "ab") as file:
            file.write(b".")

    try:
        return run_part(job.options, job.folder, part, job.connections, Report(begin, end_sample))
    except Exception as error:
        raise make_picklable(error) from None


def _samples_path(folder: RunFolder, part: int) -> Path:
    """Return the file that a worker makes one byte longer for each finished sample."""
    return folder.part_dir(part) / "samples"


def _count_samples(folder: RunFolder, part: int) -> int:
    try:
        return _samples_path(folder, part).stat().st_size
    except OSError:
        return 0
