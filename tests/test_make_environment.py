"""`make_environment.sh`, which `make demo` and `make test` begin with, run with a stub in place of Python and pip."""

import os
import subprocess
from pathlib import Path

import pytest

from .helpers import ROOT


SCRIPT = ROOT / "make_environment.sh"
# Answers what the script asks of a Python: its version, a comparison of it, an environment, pip.
STUB = """#!/bin/sh
echo "$*" >>"$STUB_LOG"
case "$*" in
    --version) echo "Python $STUB_VERSION" ;;
    *version_info*) [ "$STUB_NEW" = yes ] ;;
    "-m venv"*) for folder; do :; done; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python" ;;
    *"pip install"*"${STUB_FAILS:-nothing}"*) echo "ERROR: no network" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def call(tmp_path):
    """Run the script in an empty folder; return its result and what the stub was asked."""
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(STUB)
    python.chmod(0o755)
    (tmp_path / "constraints.txt").write_text("numpy==2.4\ntorch==2.13.0\n")

    def call(python: str | Path = python, version: str = "3.11.7", new: str = "yes", fails: str = ""):
        log.write_text("")
        stub = {"STUB_LOG": str(log), "STUB_VERSION": version, "STUB_NEW": new, "STUB_FAILS": fails}
        command = ["sh", str(SCRIPT), "env", "constraints.txt", "11", str(python), ".[convert,test]"]
        result = subprocess.run(command, cwd=tmp_path, env={**os.environ, **stub}, capture_output=True, text=True)
        return result, log.read_text().splitlines()

    call.ready = tmp_path / "env" / ".ready"
    return call


def test_each_step_is_announced_before_it_begins_and_the_end_too(call):
    result, asked = call()
    assert result.returncode == 0 and call.ready.exists() and not result.stderr
    steps = ("Setting up env, which is done once: Python 3.11.7", "Installing PyTorch (torch==2.13.0): 200 MB")
    steps += ("Installing transformers and the other packages", "env is ready, after")
    lines = result.stdout.splitlines()
    assert len(lines) == len(steps) and all(step in line for step, line in zip(steps, lines, strict=True))
    # PyTorch alone and first; pip is quiet where there is no terminal.
    installs = [line for line in asked if "pip install" in line]
    assert installs == [
        "-m pip install --quiet torch==2.13.0",
        "-m pip install --quiet --constraint constraints.txt --editable .[convert,test]",
    ]


@pytest.mark.parametrize("fails", ["torch==", "--editable"])
def test_failed_installation_is_not_ready_and_says_what_to_do(fails, call):
    """Also where an earlier environment was ready: with new versions it is not."""
    call()
    result, _ = call(fails=fails)
    assert result.returncode == 1 and not call.ready.exists() and "is ready" not in result.stdout
    assert "ERROR: no network" in result.stderr
    assert "env is not ready. If it was the network, run the same command again" in result.stderr
    assert "rm -rf env" in result.stderr
    result, asked = call()
    assert result.returncode == 0 and call.ready.exists() and "-m venv env" in asked  # goes on, without --clear


def test_environment_whose_python_is_gone_is_made_anew(call):
    call()
    call.ready.with_name("bin").joinpath("python").unlink()
    assert "-m venv --clear env" in call()[1]


def test_python_that_is_too_old_is_named(call):
    result, asked = call(version="3.10.13", new="no")
    assert result.returncode == 1 and not any("venv" in line for line in asked)
    assert "is Python 3.10.13, but constraints.txt needs Python 3.11 or newer" in result.stderr
    assert "make PYTHON=python3.11" in result.stderr


@pytest.mark.parametrize(("python", "message"), [("", "No python3 was found"), ("/nowhere/python", "does not run")])
def test_missing_python_is_said(python, message, call):
    result, _ = call(python=python)
    assert result.returncode == 1 and message in result.stderr and "make PYTHON=/path/to/python3" in result.stderr
