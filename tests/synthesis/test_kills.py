"""Runs of the data engine that are killed, as a whole or a worker of them."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from fusion_vlm.synthesis.run_folder import MIN_PART_SIZE, RunFolder

from .runs import FAULTS, check_that_nothing_is_torn, complete, read_files, read_records, run, start
from .stub_endpoint import StubEndpoint


# --- kills ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_kills", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_nothing(num_kills, tmp_path):
    # Whenever the kills happen, at most 5 % of the calls can be in flight: three to the model and three to the judge.
    num, concurrency = 40 * num_kills, 3
    options = ["--num", num, "--model", "stub", "--judge-model", "j", "--image-size", 128]
    options += ["--concurrency", concurrency]
    with StubEndpoint() as stub:
        complete(tmp_path / "alone", *options, "--llm", stub.url)
        num_calls = len(stub.answered)
    assert num_calls == 3 * num  # description, questions, judge

    rng = random.Random(time.time_ns())
    output = tmp_path / "killed"
    with StubEndpoint(FAULTS, max_faults=2, latency=0.02) as stub:
        # Moments are numbers of answered calls: after seconds, a slow machine would be killed while it starts.
        for moment in sorted(rng.sample(range(num_calls), num_kills)):
            process = start(output, *options, "--llm", stub.url, "--num-workers", rng.randint(0, 1))
            while process.poll() is None and len(stub.answered) < moment:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.returncode == -signal.SIGKILL, f"it ended before it was killed, at call {moment}"
            check_that_nothing_is_torn(output, num)
        complete(output, *options, "--llm", stub.url)
    print(f"{stub.num_repeats} of {num_calls} finished calls were repeated")
    assert stub.num_repeats <= 0.05 * num_calls
    # Including calls in flight at a kill, and calls that met a fault.
    num_requests = num_calls + num_kills * 2 * concurrency + stub.met_faults.total()
    assert stub.requested.total() <= num_requests + stub.num_repeats
    assert Counter(record["source"]["position"] for record in read_records(output)) == Counter(range(num))
    assert read_files(output) == read_files(tmp_path / "alone")


KILL_AT_RENAME = """
import os, signal, sys
from fusion_vlm.synthesis import generate

countdown, replace = int(sys.argv[1]), os.replace

def replace_or_die(*arguments, **settings):
    global countdown
    countdown -= 1
    if countdown == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*arguments, **settings)

os.replace = replace_or_die
from fusion_vlm.commands.main import main
from fusion_vlm.commands.synthesize import parse_bound

sys.exit(main(["synthesize", *sys.argv[2:]]))
"""


def test_a_kill_at_any_file_changes_nothing(tmp_path):
    # The configuration, a shard, three images, counts, the files of the output, `done.json`.
    def make(output: Path, number: int) -> subprocess.CompletedProcess:
        options = ["--num", "3", "--num-workers", "0", "--seed", "7", "--output", str(output)]
        return subprocess.run(
            [sys.executable, "-c", KILL_AT_RENAME, str(number), *options], capture_output=True, text=True
        )

    make(tmp_path / "alone", 0).check_returncode()
    output, num_kills = tmp_path / "killed", 0
    while True:
        # Kill one rename later each time, so that the run proceeds.
        process = make(output, num_kills + 1)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, process.stderr
        check_that_nothing_is_torn(output, 3)
        num_kills += 1
    assert num_kills >= 3
    assert read_files(output) == read_files(tmp_path / "alone")


def test_a_file_is_there_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    def die(*_):
        raise SystemExit

    folder = RunFolder(tmp_path / "run", 1)
    folder.prepare({})
    folder.write("file", "old")
    monkeypatch.setattr("os.replace", die)
    for name in ("file", "other"):
        with pytest.raises(SystemExit):
            folder.write(name, "new")
    assert (folder.path / "file").read_text() == "old" and not (folder.path / "other").exists()
    # No temporary file is left.
    assert [path.name for path in folder.work_dir.iterdir()] == ["run.lock"]


def test_an_image_that_a_model_drew_before_a_kill_is_not_drawn_again(tmp_path, monkeypatch):
    def die(*_):
        raise SystemExit

    images = {"images": "endpoint", "image_model": "painter", "image_size": 64}
    with StubEndpoint() as stub:
        run(tmp_path / "alone", 3, url=stub.url, **images)
        num_images, num_calls = len(stub.prompts), stub.requested.total()
        monkeypatch.setattr("fusion_vlm.synthesis.parts.write_part", die)
        with pytest.raises(SystemExit):
            run(tmp_path / "killed", 3, url=stub.url, **images)
        monkeypatch.undo()
        run(tmp_path / "killed", 3, url=stub.url, **images)
        assert (len(stub.prompts), stub.requested.total()) == (2 * num_images, 2 * num_calls)
    assert read_files(tmp_path / "killed") == read_files(tmp_path / "alone")


# --- workers that die -----------------------------------------------------------------------------------------------


def list_workers(process: subprocess.Popen) -> list[int]:
    """List the processes of a run that make parts, without that which tracks shared memory."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_a_worker_that_is_killed_is_replaced_and_nothing_changes(tmp_path):
    num, output = 5 * MIN_PART_SIZE, tmp_path / "killed"
    options = ("--num", num, "--image-size", 128)
    complete(tmp_path / "alone", *options, "--num-workers", 0)
    process = start(output, *options, "--num-workers", 2)
    num_killed = 0
    # One that begins, and one after each part of the first three, in the middle of another.
    while process.poll() is None and num_killed < 4:
        workers = list_workers(process)
        if workers and len(list((output / "parts").glob("*"))) >= num_killed:
            time.sleep(random.uniform(0, 0.3))
            os.kill(random.choice(workers), signal.SIGKILL)
            num_killed += 1
        time.sleep(0.01)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert num_killed >= 2
    assert read_files(output) == read_files(tmp_path / "alone")


DIE_AT_A_SAMPLE = """
import os, signal, sys
from fusion_vlm.commands.main import main
from fusion_vlm.synthesis.kinds.exact import ExactQuestions

ask = ExactQuestions.__call__

def ask_or_die(self, sample):
    if sample.source["position"] == 70:
        os.kill(os.getpid(), signal.SIGKILL)
    return ask(self, sample)

ExactQuestions.__call__ = ask_or_die
if __name__ == "__main__":
    sys.exit(main(["synthesize", *sys.argv[1:]]))
"""


def test_a_sample_that_kills_every_worker_stops_the_run_with_advice(tmp_path):
    """As a sample does that needs more memory than there is. The script runs in the workers, too."""
    script, output = tmp_path / "script.py", tmp_path / "run"
    script.write_text(DIE_AT_A_SAMPLE)
    options = ["--num", "130", "--seed", "7", "--num-workers", "1", "--image-size", "128", "--output", str(output)]
    process = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, timeout=300)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    for text in ("3 processes died over samples 64 to 127", "SIGKILL", "--num-workers", "continues"):
        assert text in process.stderr, text
    assert len(read_records(output)) == 64
    complete(output, "--num", 130, "--num-workers", 1, "--image-size", 128)
    assert len(read_records(output)) == 130


def test_workers_end_when_their_parent_is_killed(tmp_path):
    process = start(tmp_path, "--num", 2000, "--num-workers", 2)
    wait_for_a_part(tmp_path, process)
    workers, deadline = list_workers(process), time.monotonic() + 60
    process.kill()
    process.wait()
    assert len(workers) == 2
    while any(is_running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(is_running(worker) for worker in workers)


@pytest.mark.parametrize("is_ignored", [False, True], ids=["foreground", "background"])
def test_ctrl_c_ends_a_run_that_goes_on_later(is_ignored, tmp_path):
    """A shell ignores SIGINT in the background, and its child processes inherit that."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN if is_ignored else signal.default_int_handler)
    try:
        process = start(tmp_path, "--num", 150, "--num-workers", 1, "--image-size", 128, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, handler)
    wait_for_a_part(tmp_path, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "continues from here" in errors and "Traceback" not in errors
    complete(tmp_path, "--num", 150, "--num-workers", 1, "--image-size", 128)
    assert len(read_records(tmp_path)) == 150


def wait_for_a_part(output: Path, process: subprocess.Popen):
    while not any((output / "parts").glob("*.json")) and process.poll() is None:
        time.sleep(0.02)


def is_running(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
