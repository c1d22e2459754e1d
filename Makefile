# `make help` lists the targets. Each of them does all of its own set-up: a fresh clone needs only
# python3 (3.11 or later) with venv, g++ and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo-output
# Arguments handed on, e.g. `make demo ARGS="--seconds 20"`, `make test ARGS="-k wkv7"`.
ARGS ?=
# Workers of the tests; they and Torch's threads share the cores.
JOBS ?= auto

CXX_FILES = $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help venv build demo test bench check format lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.run build ## Build, publish to a Hub on this machine, load, train RWKV-7 and RWKV-6 (about two minutes)
	$(BIN)/python -m examples.demo --out $(OUT) $(ARGS)

test: $(VENV)/.dev build ## Run the tests
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

bench: $(VENV)/.run build ## Time the CPU operators against a plain C++ loop; results go into the README
	$(BIN)/python -m benchmarks.cpu $(ARGS); status=$$?; $(BIN)/python -m benchmarks.report && exit $$status

check: $(VENV)/.dev build ## Lint, formatting, the ABI and the layout of what was built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(CXX_FILES),$(BIN)/clang-format --dry-run --Werror $(CXX_FILES))
	$(BIN)/python -m builder check
	@if command -v nix-instantiate >/dev/null; then nix-instantiate --parse flake.nix >/dev/null \
		&& echo "flake.nix parses"; else echo "nix-instantiate is not here: flake.nix not parsed"; fi

build: $(VENV)/.run ## Build the cpu variant of this machine into build/ (incremental)
	$(BIN)/python -m builder build

venv: $(VENV)/.dev ## Make .venv with everything pinned in requirements/

format: $(VENV)/.dev ## Format Python and C++
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .
	$(if $(CXX_FILES),$(BIN)/clang-format -i $(CXX_FILES))

lock: $(VENV)/.run ## Compile requirements/*.in into pinned and hashed *.txt again
	$(BIN)/pip install --quiet uv==0.13.9
	cd requirements && for name in run dev; do ../$(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		$$name.in -o $$name.txt; done

clean: ## Remove everything that make made
	rm -rf $(VENV) .build build $(OUT) benchmarks/.compiled .pytest_cache .ruff_cache .hypothesis

# --- The environment. A stamp for each set of requirements, so that a second run costs nothing. ---

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed; name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Hashes are checked for all but Torch, whose builds differ from index to index.
$(VENV)/.run: requirements/run.txt requirements/torch.txt | $(BIN)/python
	$(BIN)/pip install --disable-pip-version-check --require-hashes --no-deps -r requirements/run.txt
	$(BIN)/pip install --disable-pip-version-check -r requirements/torch.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	$(BIN)/pip install --disable-pip-version-check --require-hashes --no-deps -r requirements/dev.txt
	@touch $@
