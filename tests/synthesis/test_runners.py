"""What runners share, without Ray: how deaths count, what a part needs, and errors before any work."""

import sys

import pytest

from fusion_vlm.synthesis.connections import Connections
from fusion_vlm.synthesis.failures import RunError
from fusion_vlm.synthesis.generate import generate, run_part
from fusion_vlm.synthesis.options import Options
from fusion_vlm.synthesis.parts import Job
from fusion_vlm.synthesis.run_folder import RunFolder
from fusion_vlm.synthesis.workers import Deaths


def test_without_ray_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'fusion-vlm\[ray\]'"):
        generate(Options(3), RunFolder(tmp_path, 3), runner="ray")


def test_a_node_that_does_not_see_the_folder_says_so_and_writes_nothing(tmp_path):
    with pytest.raises(RunError, match="Mount the folder of the run at the same path"):
        run_part(Options(3), RunFolder(tmp_path / "run", 3), 0)
    assert not any(tmp_path.iterdir())


def test_the_third_death_over_a_part_stops_the_run_unless_it_got_farther(tmp_path):
    deaths = Deaths(RunFolder(tmp_path, 130))
    for num_samples in (0, 0, 1, 1, 5, 2):
        deaths.count(1, num_samples, "SIGKILL")
        deaths.count(0, num_samples, "SIGKILL")
    with pytest.raises(RunError, match=r"3 processes died over samples 64 to 127 \(SIGKILL\)"):
        deaths.count(1, 5, "SIGKILL")
    with pytest.raises(RunError, match="before they began"):
        for _ in range(3):
            deaths.count(None, 0, "SIGKILL")


@pytest.mark.parametrize(
    "options, connections, expected",
    [
        ({}, {}, False),
        ({"images": "flux"}, {}, True),
        ({"images": "flux"}, {"image_device": "cpu"}, False),
        ({"clip_model": "clip"}, {}, False),
        ({"clip_model": "clip"}, {"clip_device": "cuda:0"}, True),
    ],
)
def test_a_part_needs_a_gpu_if_a_model_of_this_process_runs_on_one(options, connections, expected, tmp_path):
    job = Job(Options(3, model="writer", **options), RunFolder(tmp_path, 3), Connections(**connections))
    assert job.needs_gpu == expected


def test_processes_share_the_calls_in_flight():
    assert [Connections(concurrency=16).shared(number).concurrency for number in (1, 3, 32)] == [16, 6, 1]
