"""
The runner on Ray: parts as tasks of a cluster, which deals them out and moves those of dead workers and nodes.

All nodes see the folder of the run at the same path and have this package installed. docs/engine.md has the set-up.
"""

import logging
from collections import deque

from tqdm import tqdm

from fusion_vlm.synthesis.failures import RunError
from fusion_vlm.synthesis.parts import Job
from fusion_vlm.synthesis.workers import MAX_DEATHS, describe_deaths


def run_on_ray(job: Job, address: str | None, num_workers: int, progress: tqdm):
    """
    Make all parts of a run as tasks on Ray.

    A part that an earlier driver's worker still holds is tried again until that worker has ended.

    Args:
        job (`Job`): its connections are those of one part.
        address (`str`, *optional*): of a cluster, `host:port`; without one, Ray runs on this machine meanwhile.
        num_workers (`int`): most parts in progress at once; 0 is one for each core of the cluster,
            or for each GPU if FLUX draws.
        progress (`tqdm`): a bar of samples.

    Raises:
        ImportError: if Ray is not installed.
        RunError: if workers die over one part again and again, or the cluster is lost.
        Exception: any error of a stage.
    """
    ray = _import_ray()
    # "local", because without an address Ray would join a cluster that some file names, even if it is dead.
    settings = {} if address else {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    ray.init(address or "local", log_to_driver=False, logging_level=logging.WARNING, **settings)
    try:
        name = "GPU" if job.options.images == "flux" else "CPU"
        num_slots = int(ray.cluster_resources().get(name, 0))
        if num_slots == 0:
            raise RunError(f"The cluster has no {name}, so no part can be made. Start a node that has one.")
        _run_parts(ray, job, min(num_workers or num_slots, num_slots), progress)
    finally:
        ray.shutdown()


def _import_ray():
    try:
        import ray  # late: an extra
    except ImportError as error:
        raise ImportError("--runner ray needs Ray: pip install 'fusion-vlm[ray]'.") from error
    return ray


def _run_parts(ray, job: Job, num_workers: int, progress: tqdm):
    # Without `max_calls=0`, a worker with a GPU would end after each part, and load its models again.
    settings = {"num_gpus": 1, "max_calls": 0} if job.options.images == "flux" else {"num_cpus": 1}
    make = ray.remote(max_retries=MAX_DEATHS - 1, **settings)(_make_part)
    job_id = ray.put(job)
    missing, running = deque(job.folder.missing_parts()), {}
    while missing or running:
        while missing and len(running) < num_workers:
            part = missing.popleft()
            running[make.remote(job_id, part)] = part
        (done,), _ = ray.wait(list(running), num_returns=1)
        part = running.pop(done)
        if _get(ray, done, job, part):
            progress.update(len(job.folder.part_indices(part)))
        else:
            missing.append(part)


def _make_part(job: Job, part: int) -> bool:
    # Late: generate.py imports this module.
    from fusion_vlm.synthesis.generate import run_part

    return run_part(job.options, job.folder, part, job.connections)


def _get(ray, task, job: Job, part: int) -> bool:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise RunError(describe_deaths(job.folder, part, type(error).__name__)) from error
    except ray.exceptions.RayError as error:
        raise RunError(
            f"Ray gave up part {part}: {' '.join(str(error).split())[:300]} Start the cluster, and give the same"
            " command again; finished parts stay."
        ) from error
