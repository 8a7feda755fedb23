#!/bin/sh
# Make a virtual environment with pinned versions, and say what is happening meanwhile. The Makefile calls it:
#
#     sh make_environment.sh ENVIRONMENT CONSTRAINTS MINOR PYTHON PACKAGE...
#
# MINOR is that of the oldest Python that the versions in CONSTRAINTS install on. ENVIRONMENT/.ready is written last, so
# an environment without it is not complete; the next call goes on with it.
set -u
environment=$1 constraints=$2 minor=$3 python=$4
shift 4

say() { echo "[$(date +%H:%M:%S)] $1"; }

fail() {
    echo "error: $1" >&2
    exit 1
}

install() {
    # On a terminal pip shows its progress. In a log that would be hundreds of lines.
    if [ -t 1 ]; then quiet=; else quiet=--quiet; fi
    "$environment/bin/python" -m pip install $quiet "$@" || fail "pip failed, for the reason above; $environment is not\
 ready. If it was the network, run the same command again: what was downloaded is kept. If the versions do not exist for\
 this Python, name another one: make PYTHON=python3.11. To begin anew: rm -rf $environment"
}

[ -n "$python" ] || fail "No python3 was found. Install Python 3.$minor or newer, or name one: make PYTHON=/path/to/python3"
version=$("$python" --version 2>&1) || fail "$python does not run. Name another one: make PYTHON=/path/to/python3"
"$python" -c "import sys; sys.exit(sys.version_info < (3, $minor))" || fail "$python is $version, but $constraints needs\
 Python 3.$minor or newer. Install one and name it: make PYTHON=python3.11"

begin=$(date +%s)
torch=$(grep '^torch==' "$constraints")
# Another call that was interrupted, or an environment whose Python is gone.
if "$environment/bin/python" -m pip --version >/dev/null 2>&1; then clear=; else clear=--clear; fi
rm -f "$environment/.ready"
say "Setting up $environment, which is done once: $version, versions of $constraints"
"$python" -m venv $clear "$environment" || fail "$environment cannot be made, for the reason above. Debian and Ubuntu:\
 apt install python3-venv"
# First and alone, so that no other package pulls a build with CUDA where a CPU build is at hand.
say "Installing PyTorch ($torch): 200 MB for CPUs, several GB with CUDA; 1 to 5 minutes"
install "$torch"
say "Installing transformers and the other packages ($constraints): 1 to 5 minutes"
install --constraint "$constraints" --editable "$@"
touch "$environment/.ready"
say "$environment is ready, after $(($(date +%s) - begin)) s"
