# make demo: ask the small trained model about a picture.   make test: the test suite.
# Both set up .venv themselves and need nothing but Python.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Threads that spin while they wait slow small forwards down 30 times on a busy machine.
export OMP_WAIT_POLICY = PASSIVE
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: demo demo-convert demo-page test lint test-demo test-slow test-transformers

demo: .venv/.ready
	.venv/bin/python examples/quickstart.py

# Convert a checkpoint of the fixtures, load it in a fresh process, answer a question.
demo-convert: .venv/.ready
	.venv/bin/python examples/convert_and_ask.py

# A chat page on http://127.0.0.1:7860, also for another model: make demo-page MODEL=out/fusion-phi3.5-3b
demo-page: .venv-demo/.ready
	.venv-demo/bin/python examples/demo.py $(MODEL)

# Two processes of one thread each are faster than one of two: much of the suite is not matrix products.
test: .venv/.ready
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests --numprocesses 2 --dist loadfile

lint: .venv/.ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# The page in a browser: needs Debian's chromium and chromium-driver.
test-demo: .venv-demo/.ready
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-demo/bin/python -m pytest tests/test_demo_page.py

test-slow: .venv/.ready
	HF_HUB_OFFLINE=1 .venv/bin/python -m pytest tests -m slow -s

# The sdist of transformers is fetched from PyPI, once.
test-transformers: .venv/.ready
	HF_HUB_OFFLINE=1 .venv/bin/python tests/run_transformers_common.py

.venv/.ready: constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	# First and alone, so that no other package pulls a build with CUDA where a CPU build is at hand.
	.venv/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[convert,test]"
	touch $@

# Its own environment, because Gradio needs an older Pillow than the suite has.
.venv-demo/.ready: constraints-demo.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet "$$(grep '^torch==' constraints-demo.txt)"
	.venv-demo/bin/python -m pip install --quiet --constraint constraints-demo.txt --editable ".[demo]" pytest selenium
	touch $@
