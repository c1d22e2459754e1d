# `make help` lists the targets. Each of them does all of its own set-up: a fresh clone needs only
# python3 (3.11 or later) with venv, g++ and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo-output
# The documentation's tools need nothing of ours, and nothing of theirs goes into .venv.
DOCS := .build/docs-env
# Arguments handed on, e.g. `make demo ARGS="--seconds 20"`, `make test ARGS="-k wkv7"`.
ARGS ?=
# Releases of kernels that the loader is tested with, beside the one in run.txt: a folder each.
KERNELS := $(patsubst requirements/kernels/%.txt,.build/kernels/%/.installed,$(wildcard requirements/kernels/*.txt))
# Workers of the tests; they and Torch's threads share the cores.
JOBS ?= auto

CXX_FILES = $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help venv cross build demo test docs fuzz soak bench e2e-bench check format lock clean
.PHONY: gpu-wheels gpu-build gpu-test gpu-sanitize gpu-prepare gpu-bench gpu-e2e-bench

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.run build ## Build, publish to a Hub on this machine, load, train RWKV-7 and RWKV-6 (about two minutes)
	$(BIN)/python -m examples.demo --out $(OUT) $(ARGS)

test: $(VENV)/.dev $(KERNELS) cross build docs ## Run the tests
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

docs: $(DOCS)/.installed ## Build the documentation into .build/site; links that lead nowhere are errors
	PATH="$(CURDIR)/$(DOCS)/bin:$$PATH" NO_MKDOCS_2_WARNING=1 mkdocs build --quiet

fuzz: $(VENV)/.dev build ## Feed mutated files to the readers of locks, metadata and build.toml; ARGS="--seconds 600"
	$(BIN)/python -m tests.fuzz $(ARGS)

soak: $(VENV)/.dev build ## Call, load and drop kernels for minutes and watch the memory; ARGS="--minutes 30"
	PYTHONPATH=loader/src $(BIN)/python -m tests.soak $(ARGS)

bench: $(VENV)/.run build ## Time the CPU operators against a plain C++ loop; results go into docs/performance.md
	$(BIN)/python -m benchmarks.cpu $(ARGS); status=$$?; $(BIN)/python -m benchmarks.report && exit $$status

e2e-bench: $(VENV)/.dev build ## Time whole models on the CPU beside others (five minutes); results go into docs/performance.md
	$(BIN)/python -m benchmarks.models $(ARGS); status=$$?; $(BIN)/python -m benchmarks.report && exit $$status

check: $(VENV)/.dev build ## Lint, formatting, the ABI and the layout of what was built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(CXX_FILES),$(BIN)/clang-format --dry-run --Werror $(CXX_FILES))
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/python -m builder check
	@if command -v nix-instantiate >/dev/null; then nix-instantiate --parse flake.nix >/dev/null \
		&& echo "flake.nix parses"; else echo "nix-instantiate is not here: flake.nix not parsed"; fi

build: $(VENV)/.run ## Build the cpu variant of this machine and the one in plain PyTorch into build/ (incremental)
	$(BIN)/python -m builder build

venv: $(VENV)/.dev ## Make .venv with everything pinned in requirements/

format: $(VENV)/.dev ## Format Python and C++
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .
	$(if $(CXX_FILES),$(BIN)/clang-format -i $(CXX_FILES))

# Debian's packages, in a minute, for who may install them. Who may not is told, and these tests are skipped.
CROSS := g++-aarch64-linux-gnu qemu-user-static clang-19
cross: ## Install what compiles for aarch64, emulates it, and compiles CUDA 12's host code, if it is not here
	@if command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64-static >/dev/null \
		&& command -v clang++-19 >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "apt-get install $(CROSS)" && apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq -y --no-install-recommends $(CROSS) >/dev/null; \
	else echo "The tests for aarch64 and CUDA 12 are skipped; as root: apt-get install $(CROSS)" >&2; fi

lock: $(VENV)/.run ## Compile requirements/*.in into pinned and hashed *.txt again
	$(BIN)/pip install --quiet uv==0.13.9
	cd requirements && for name in run dev docs; do ../$(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		--override override.txt \
		$$name.in -o $$name.txt; done
	cd requirements/kernels && for file in *.in; do ../../$(BIN)/uv pip compile --quiet --no-deps \
		--generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		$$file -o $${file%.in}.txt; done

clean: ## Remove everything that make made
	rm -rf $(VENV) .whl .build build $(OUT) benchmarks/.compiled .pytest_cache .ruff_cache .hypothesis

# --- On a machine with a GPU: its own Python and Torch, no network, no .venv. ---

# Of Python 3.10 or later, with a CUDA build of Torch 2.11 or later.
GPU_PYTHON ?= python3
# Folder of wheels for what that Python lacks; `make gpu-wheels` fills it on a machine with a network.
WHEELS ?= .whl
# What to compile for: `native`, or a capability such as 9.0.
GPU_CAPABILITY ?= native
# Processes that share the GPU in the tests.
GPU_JOBS ?= 8
GPU_VARIANT := torch-stable-abi211-cu130-x86_64-linux
GPU_SITE := .build/gpu-site
GPU_PEERS := .build/gpu-peers
ON_GPU = PYTHONPATH="$(CURDIR)/$(GPU_SITE)$${PYTHONPATH:+:$$PYTHONPATH}" $(GPU_PYTHON)

gpu-build: $(GPU_SITE)/.installed ## Build the CUDA variant for the GPU of this machine
	@$(ON_GPU) -c 'import click, kernels, ninja, rich, torch' || { echo "$(GPU_PYTHON) lacks that module: run" \
		"'make gpu-wheels' on a machine with a network and copy $(WHEELS)/ here, or install it." >&2; exit 1; }
	$(ON_GPU) -m builder build --variant $(GPU_VARIANT) --capability $(GPU_CAPABILITY)

gpu-test: gpu-build ## Run the operators' tests on the GPU of this machine, without a network
	$(ON_GPU) -m tests.gpu --jobs $(GPU_JOBS) -- $(ARGS)

gpu-sanitize: gpu-build ## Look for bad memory accesses, races and unwritten memory with compute-sanitizer
	$(ON_GPU) -m tests.gpu.sanitize $(ARGS)

gpu-prepare: gpu-build $(GPU_PEERS)/.installed ## Compile for the two that follow, while the tests run for example
	$(ON_GPU) -m benchmarks.gpu --prepare --peers $(GPU_PEERS)
	$(ON_GPU) -m benchmarks.models --device cuda --prepare --peers $(GPU_PEERS) $(ARGS)

gpu-bench: gpu-build $(GPU_PEERS)/.installed ## Time the operators on the GPU of this machine, beside other people's
	$(ON_GPU) -m benchmarks.gpu --peers $(GPU_PEERS) $(ARGS)

gpu-e2e-bench: gpu-build $(GPU_PEERS)/.installed ## Time whole models on the GPU of this machine, beside fla's
	$(ON_GPU) -m benchmarks.models --device cuda --peers $(GPU_PEERS) $(ARGS)

# Without their dependencies: what a GPU machine has is left as it is, above all its Torch.
$(GPU_SITE)/.installed: $(wildcard $(WHEELS)/*.whl)
$(GPU_PEERS)/.installed: $(wildcard $(WHEELS)/peers/*.whl)
$(GPU_SITE)/.installed $(GPU_PEERS)/.installed:
	rm -rf $(@D) && mkdir -p $(@D)
	$(if $^,$(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --target $(@D) $^)
	@touch $@

PLATFORMS := 2_28 2_27 2_24 2_17
DOWNLOAD := download --quiet --no-deps --only-binary=:all: --implementation cp --python-version 3.12 \
	$(PLATFORMS:%=--platform manylinux_%_x86_64) --platform manylinux2014_x86_64

gpu-wheels: $(BIN)/python ## Download what a GPU machine may lack into .whl (Python 3.12), to be carried there
	rm -f $(WHEELS)/*.whl $(WHEELS)/peers/*.whl
	$(BIN)/pip $(DOWNLOAD) -d $(WHEELS) -r requirements/gpu.txt
	$(BIN)/pip $(DOWNLOAD) -d $(WHEELS)/peers -r requirements/gpu-peers.txt
	$(if $(MODELS),$(BIN)/pip $(DOWNLOAD) -d $(WHEELS)/peers -r requirements/gpu-models.txt)
	$(if $(TILELANG),$(BIN)/pip $(DOWNLOAD) -d $(WHEELS)/peers tilelang==0.1.15 apache-tvm-ffi==0.1.12 \
		torch-c-dlpack-ext==0.1.5 z3-solver==4.15.4.0)
	du -sh $(WHEELS)

# --- The environment. A stamp for each set of requirements, so that a second run costs nothing. ---

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed; name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(DOCS)/.installed: requirements/docs.txt | $(BIN)/python
	$(BIN)/python -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/docs.txt
	@touch $@

# Hashes are checked for all but Torch, whose builds differ from index to index.
$(VENV)/.run: requirements/run.txt requirements/torch.txt | $(BIN)/python
	$(BIN)/pip install --disable-pip-version-check --require-hashes --no-deps -r requirements/run.txt
	$(BIN)/pip install --disable-pip-version-check -r requirements/torch.txt
	@touch $@

.build/kernels/%/.installed: requirements/kernels/%.txt | $(BIN)/python
	rm -rf $(@D) && mkdir -p $(@D)
	$(BIN)/pip install --disable-pip-version-check --quiet --require-hashes --no-deps --no-compile \
		--target $(@D) -r $<
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	$(BIN)/pip install --disable-pip-version-check --require-hashes --no-deps -r requirements/dev.txt
	@touch $@
