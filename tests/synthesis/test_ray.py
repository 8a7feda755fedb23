"""
The runner on Ray: two raylets on this machine stand for nodes; workers, nodes and drivers are killed.

`make test-ray` runs these tests. They print how many finished calls were repeated, and the seed of random kills, which
FUSION_TEST_SEED sets.
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

from .runs import complete, read_files, read_records, start
from .stub_endpoint import StubEndpoint


pytestmark = pytest.mark.ray

# Ray reads these at its import. With the second, it takes 127.0.0.1 in place of the address of the machine. A busy
# machine takes longer than 30 s to start the agents of a node.
os.environ |= {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_agent_register_timeout_ms": "300000",
}
ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402


NUM = 6 * MIN_PART_SIZE
MODELS = ["--model", "stub", "--image-size", 128, "--concurrency", 16]
SEED = int(os.environ.get("FUSION_TEST_SEED", time.time_ns()))


@pytest.fixture(scope="module")
def cluster():
    """Start two nodes of two cores each, and end them."""
    cluster = Cluster()
    cluster.add_node(num_cpus=2, include_dashboard=False)
    cluster.add_node(num_cpus=2)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Make an exact run without Ray."""
    folder = tmp_path_factory.mktemp("alone")
    complete(folder, "--num", NUM, "--num-workers", 0)
    return read_files(folder)


@pytest.fixture(scope="module")
def alone_with_models(tmp_path_factory):
    """Make a run with a language model and without Ray; return its files and the number of its calls."""
    folder = tmp_path_factory.mktemp("alone_with_models")
    with StubEndpoint() as stub:
        complete(folder, "--num", NUM, *MODELS, "--llm", stub.url)
        return read_files(folder), stub.requested.total()


def start_on(cluster: Cluster | None, output: Path, *options, **settings) -> subprocess.Popen:
    """Start a driver in a session of its own, on a cluster or on a Ray of its own, which gets no variable of Ray."""
    address = ["--ray-address", cluster.address] if cluster else []
    if not cluster:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        settings |= {"env": variables | {"TMPDIR": str(output.parent)}}  # too long for sockets
    return start(output, "--runner", "ray", *address, *options, start_new_session=True, **settings)


def wait(process: subprocess.Popen, code: int = 0) -> str:
    """Wait for the end of a driver and of all that it started, and return what it printed as errors."""
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    check_that_nothing_runs(process)
    return errors


def kill(process: subprocess.Popen):
    process.kill()
    process.communicate()


def check_that_nothing_runs(process: subprocess.Popen):
    deadline = time.monotonic() + 90  # after a kill, two agents of Ray try for 60 s to report the death of their node
    while (left := [line for line in list_processes() if line[1] == process.pid]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def list_processes() -> list[tuple[int, int, int, str]]:
    """List the processes that run: number, number of the session and of the parent, and the command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, _, session, *_ = (path / "stat").read_text().rsplit(")", 1)[1].split()
            line = (path / "cmdline").read_text()
        except OSError:  # it has just ended
            continue
        if state != "Z":
            found.append((int(path.name), int(session), int(parent), line))
    return found


def find_workers(*nodes) -> list[int]:
    """Find the processes of nodes that make a part now."""
    raylets = {node.all_processes["raylet"][0].process.pid for node in nodes}
    return [process for process, _, parent, line in list_processes() if parent in raylets and "_make_part" in line]


def wait_for(condition, process: subprocess.Popen):
    while not condition() and process.poll() is None:
        time.sleep(0.01)


def count_parts(output: Path) -> int:
    return len([*(output / "parts").glob("*.json")])


# --- kills ----------------------------------------------------------------------------------------------------------


def test_killed_workers_change_nothing(cluster, alone, tmp_path):
    process, num_killed = start_on(cluster, tmp_path, "--num", NUM), 0
    while process.poll() is None and num_killed < 4:
        workers = find_workers(*cluster.list_all_nodes())
        if workers and count_parts(tmp_path) >= num_killed:
            time.sleep(random.uniform(0, 0.3))
            os.kill(random.choice(workers), signal.SIGKILL)
            num_killed += 1
        time.sleep(0.01)
    wait(process)
    print(f"{num_killed} workers were killed")
    assert num_killed >= 3 and read_files(tmp_path) == alone


@pytest.mark.parametrize("victims", [("driver",), ("worker", "driver")])
def test_random_kills_repeat_less_than_a_twentieth_of_the_calls(victims, cluster, alone_with_models, tmp_path):
    """A killed driver is started again at once, while workers of it still hold parts."""
    rng, (files, num_calls) = random.Random(SEED), alone_with_models
    moments = sorted(rng.sample(range(num_calls), 4))
    print(f"seed {SEED}: kills after {moments} of {num_calls} calls")
    with StubEndpoint(latency=0.02) as stub:
        options = ("--num", NUM, *MODELS, "--llm", stub.url)
        process = start_on(cluster, tmp_path, *options)
        for moment in moments:
            wait_for(lambda moment=moment: len(stub.answered) >= moment, process)
            time.sleep(rng.uniform(0, 0.2))
            victim, workers = rng.choice(victims), find_workers(*cluster.list_all_nodes())
            if victim == "worker" and workers:
                os.kill(rng.choice(workers), signal.SIGKILL)
            else:
                kill(process)
                process = start_on(cluster, tmp_path, *options)
        wait(process)
        print(f"{stub.num_repeats} of {num_calls} finished calls were repeated")
        assert len(stub.answered) == num_calls and stub.num_repeats < 0.05 * num_calls
    assert len(read_records(tmp_path)) == NUM and read_files(tmp_path) == files


def test_two_drivers_at_once_share_a_folder(cluster, alone_with_models, tmp_path):
    files, num_calls = alone_with_models
    with StubEndpoint(latency=0.02) as stub:
        options = ("--num", NUM, *MODELS, "--llm", stub.url)
        for process in [start_on(cluster, tmp_path, *options) for _ in range(2)]:
            wait(process)
        assert stub.requested.total() == num_calls
    assert read_files(tmp_path) == files


KILLER = """
import os, signal
from pathlib import Path

class Killer:
    def __init__(self, folder):
        self.folder = Path(folder)

    def __call__(self, sample, image):
        path = self.folder / str(sample.source["position"])
        if path.exists():
            if path.read_text() == "once":
                path.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_deaths_over_a_part_stop_the_run_unless_it_gets_farther(cluster, tmp_path):
    """A filter of the user, in a module beside the command, kills its process at some samples."""
    (tmp_path / "killer.py").write_text(KILLER)
    (tmp_path / "kills").mkdir()
    for position in (80, 90, 100, 110):
        (tmp_path / "kills" / str(position)).write_text("once")
    (tmp_path / "kills" / "120").write_text("always")
    options = ("--num", 130, "--filter", f"killer:Killer={tmp_path}/kills")
    errors = wait(start_on(cluster, tmp_path / "run", *options, cwd=tmp_path), code=1)
    assert "3 processes died over samples 64 to 127" in errors and "--num-workers" in errors, errors
    assert "Traceback" not in errors
    assert [path.name for path in (tmp_path / "kills").iterdir()] == ["120"]
    (tmp_path / "kills" / "120").unlink()
    wait(start_on(cluster, tmp_path / "run", *options, cwd=tmp_path))
    wait(start(tmp_path / "alone", *options, cwd=tmp_path))
    assert read_files(tmp_path / "run") == read_files(tmp_path / "alone")


def test_a_killed_node_changes_nothing(cluster, alone, tmp_path):
    node = cluster.add_node(num_cpus=2)
    process = start_on(cluster, tmp_path, "--num", NUM)
    wait_for(lambda: count_parts(tmp_path) >= 1 and find_workers(node), process)
    assert find_workers(node), "the node made no part"
    cluster.remove_node(node, allow_graceful=False)
    wait(process)
    assert read_files(tmp_path) == alone


def test_a_cluster_that_is_lost_stops_the_run_in_words(alone, tmp_path):
    """The node that makes the parts is killed, and in the next run that of the driver."""
    cluster = Cluster()
    cluster.add_node(num_cpus=0, include_dashboard=False)
    for is_head in (False, True):
        node = cluster.head_node if is_head else cluster.add_node(num_cpus=1)
        if is_head:
            cluster.add_node(num_cpus=1)
        process = start_on(cluster, tmp_path, "--num", NUM)
        num_parts = count_parts(tmp_path) + 1
        wait_for(lambda num_parts=num_parts: count_parts(tmp_path) >= num_parts, process)
        cluster.remove_node(node, allow_graceful=False)
        began = time.monotonic()
        errors = wait(process, code=1)
        print(f"the run stopped after {time.monotonic() - began:.0f} s: {errors.splitlines()[-1]}")
        assert "finished parts stay" in errors and "Traceback" not in errors, errors
    cluster.shutdown()
    complete(tmp_path, "--num", NUM, "--num-workers", 0)
    assert read_files(tmp_path) == alone


# --- errors and settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, variables, text",
    [
        (["--ray-address", "127.0.0.1:1"], {}, "No cluster answers at 127.0.0.1:1: "),
        (["--ray-address", "nowhere"], {}, "Give HOST:PORT"),
        ([], {"RAY_AUTH_TOKEN": "a" * 64}, "token is missing or incorrect"),
        ([], {"RAY_AUTH_TOKEN": "", "RAY_AUTH_MODE": "disabled"}, "token is missing or incorrect"),
        ([], {"RAY_AUTH_TOKEN": "", "HOME": "/nowhere"}, "no authentication token was found"),
        (["--images", "flux", *MODELS, "--llm", "http://127.0.0.1:1"], {}, "The cluster has no GPU"),
    ],
)
def test_a_run_that_cannot_begin_says_why(options, variables, text, cluster, tmp_path):
    began = time.monotonic()
    errors = wait(start_on(cluster, tmp_path, "--num", 3, *options, env=os.environ | variables), code=1)
    assert text in errors and "Traceback" not in errors, errors
    assert time.monotonic() - began < 30


def test_an_error_of_a_part_ends_the_run_in_words(cluster, tmp_path):
    with StubEndpoint({"401": 1.0}) as stub:
        errors = wait(start_on(cluster, tmp_path, "--num", 3, *MODELS, "--llm", stub.url), code=1)
    assert "OPENAI_API_KEY" in errors and "Traceback" not in errors


SPY = """
import os

class Spy:
    def __call__(self, sample, image):
        return None if os.environ.get("OPENAI_API_KEY") == "secret" else "key: it is not there"
"""


def test_paths_modules_and_keys_are_those_of_the_driver(cluster, tmp_path):
    (tmp_path / "spy.py").write_text(SPY)
    environment = os.environ | {"OPENAI_API_KEY": "secret"}
    output = Path("relative")
    wait(start_on(cluster, output, "--num", 3, "--filter", "spy:Spy", cwd=tmp_path, env=environment))
    assert [record["reason"] for record in read_records(tmp_path / output)] == [None] * 3


# --- Ray on this machine --------------------------------------------------------------------------------------------


def check_that_only_this_machine_reaches(process: subprocess.Popen):
    """Check that all processes of a driver listen on 127.0.0.1 alone, and that Ray refuses who has no token."""
    entries = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()]
    listening = {f"socket:[{entry[9]}]": entry[1] for entry in entries if entry[3] == "0A"}
    found = {}
    for number, session, _, line in list_processes():
        if session == process.pid:
            sockets = {os.readlink(path) for path in Path(f"/proc/{number}/fd").iterdir()}
            found |= {listening[name]: line for name in sockets & listening.keys()}
    assert len(found) >= 3 and all(address.partition(":")[0].endswith("0100007F") for address in found), found
    (port,) = (int(address.partition(":")[2], 16) for address, line in found.items() if "gcs_server" in line)
    line = [sys.executable, "-c", f"import ray; ray.init('127.0.0.1:{port}')"]
    variables = {"RAY_AUTH_MODE": "disabled", "RAY_NUM_REDIS_GET_RETRIES": "1"}
    refused = subprocess.run(line, env=os.environ | variables, capture_output=True, text=True)
    assert "InvalidAuthToken" in refused.stderr


def test_ray_on_this_machine_is_killed_and_interrupted(alone, tmp_path):
    def is_making_parts() -> bool:
        # Not its parts alone: workers of a driver that was just killed finish some.
        lines = [line for _, session, _, line in list_processes() if session == process.pid]
        return any("_make_part" in line for line in lines) and count_parts(tmp_path) > num_parts

    options = ("--num", NUM, "--num-workers", 2)
    killed, num_parts = start_on(None, tmp_path, *options), 0
    process = killed
    wait_for(is_making_parts, process)
    kill(killed)
    process, num_parts = start_on(None, tmp_path, *options), count_parts(tmp_path)
    wait_for(is_making_parts, process)
    check_that_only_this_machine_reaches(process)
    os.killpg(process.pid, signal.SIGINT)
    errors = wait(process, code=130)
    assert "continues from here" in errors and "Traceback" not in errors, errors
    folders = {*Path("/tmp").glob("ray-*")}
    wait(start_on(None, tmp_path, *options))
    assert read_files(tmp_path) == alone and {*Path("/tmp").glob("ray-*")} <= folders
    check_that_nothing_runs(killed)
