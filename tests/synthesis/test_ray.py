"""
The runner on Ray: two raylets on this machine stand for nodes; workers, a node and drivers are killed.

`make test-ray` runs these tests. They print how many finished calls were repeated.
"""

import os
import random
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusion_vlm.synthesis.run_folder import MIN_PART_SIZE

from .runs import complete, read_files, read_records
from .stub_endpoint import StubEndpoint


pytestmark = pytest.mark.ray

# Ray reads these at its import. A busy machine takes longer than 30 s to start the agents of a node.
os.environ |= {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_agent_register_timeout_ms": "300000",
}
ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402


# Another loopback address than 127.0.0.1, in whose place Ray takes the address of the machine.
HOST = "127.0.0.2"
NUM = 6 * MIN_PART_SIZE
MODELS = ["--model", "stub", "--image-size", 128, "--concurrency", 16]


@pytest.fixture(scope="module")
def cluster():
    """Start two nodes of two cores each on loopback addresses, and end them."""
    cluster = Cluster()
    cluster.add_node(num_cpus=2, node_ip_address=HOST, include_dashboard=False)
    cluster.add_node(num_cpus=2, node_ip_address=HOST)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Make an exact run without Ray."""
    folder = tmp_path_factory.mktemp("alone")
    complete(folder, "--num", NUM, "--num-workers", 0)
    return read_files(folder)


def start(cluster: Cluster, output: Path, *options) -> subprocess.Popen:
    line = ["-m", "fusion_vlm.synthesis.generate", "--seed", 7, "--output", output, "--runner", "ray"]
    line += ["--ray-address", cluster.address, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, line)], **pipes)


def wait(process: subprocess.Popen):
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors


def find_workers(node) -> list[int]:
    """Find the processes of a node that make a part now."""
    (raylet,) = node.all_processes["raylet"]
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == raylet.process.pid and b"_make_part" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:  # it has just ended
            continue
    return found


def wait_for_parts(output: Path, number: int, process: subprocess.Popen):
    while len(list((output / "parts").glob("*.json"))) < number and process.poll() is None:
        time.sleep(0.02)


def test_killed_workers_change_nothing(cluster, alone, tmp_path):
    process = start(cluster, tmp_path, "--num", NUM)
    killed = set()
    while process.poll() is None and len(killed) < 3:
        workers = {worker for node in cluster.list_all_nodes() for worker in find_workers(node)} - killed
        if workers and len(list((tmp_path / "parts").glob("*"))) >= len(killed):
            time.sleep(random.uniform(0, 0.3))
            killed.add(worker := random.choice(sorted(workers)))
            os.kill(worker, signal.SIGKILL)
        time.sleep(0.01)
    wait(process)
    print(f"{len(killed)} workers were killed")
    assert len(killed) >= 2 and read_files(tmp_path) == alone


def test_a_killed_driver_repeats_less_than_a_twentieth_of_the_calls(cluster, tmp_path):
    with StubEndpoint() as stub:
        complete(tmp_path / "alone", "--num", NUM, *MODELS, "--llm", stub.url)
        num_calls = stub.requested.total()
    with StubEndpoint(latency=0.02) as stub:
        for moment in sorted(random.sample(range(num_calls // 10, num_calls * 9 // 10), 2)):
            process = start(cluster, tmp_path / "killed", "--num", NUM, *MODELS, "--llm", stub.url)
            while len(stub.answered) < moment and process.poll() is None:
                time.sleep(0.005)
            process.kill()
            process.wait()
        # At once, while workers of the killed driver still hold parts.
        wait(start(cluster, tmp_path / "killed", "--num", NUM, *MODELS, "--llm", stub.url))
        print(f"{stub.num_repeats} of {num_calls} finished calls were repeated")
        assert len(stub.answered) == num_calls and stub.num_repeats < 0.05 * num_calls
    assert len(read_records(tmp_path / "killed")) == NUM
    assert read_files(tmp_path / "killed") == read_files(tmp_path / "alone")


def test_an_error_of_a_part_ends_the_run_in_words(cluster, tmp_path):
    with StubEndpoint({"401": 1.0}) as stub:
        process = start(cluster, tmp_path, "--num", 3, *MODELS, "--llm", stub.url)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "OPENAI_API_KEY" in errors and "Traceback" not in errors


def test_a_killed_node_changes_nothing(cluster, alone, tmp_path):
    """Last, because it leaves one node."""
    process = start(cluster, tmp_path, "--num", NUM)
    wait_for_parts(tmp_path, 2, process)
    (node,) = cluster.worker_nodes
    is_busy = bool(find_workers(node))
    cluster.remove_node(node, allow_graceful=False)
    wait(process)
    print(f"the node made parts: {is_busy}")
    assert read_files(tmp_path) == alone


def test_ray_on_this_machine_alone(alone, tmp_path):
    complete(tmp_path, "--num", NUM, "--runner", "ray", "--num-workers", 2)
    assert read_files(tmp_path) == alone
