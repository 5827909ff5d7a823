# Every target works alone on a fresh clone and does nothing twice: the stamps below depend on the pinned versions.
#
#   make demo DEMO_ARGS="--minutes 1"                                 real text on this machine → a small trained model
#   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu        torch from another index (here: without CUDA)
PYTHON ?= python3
TORCH_INDEX ?=
DEMO_ARGS ?=
TEST_ARGS ?=
BUNDLE_ARGS ?=
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.ncpu); echo $$((n < 2 ? 1 : n < 8 ? n : 8)))
BIN := .venv/bin
ORACLE := .venv-oracle/bin
EXTRAS := data,datasets,eval,gguf,html,langid,ray,track
PINS := pyproject.toml constraints.txt
PIP := -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test test-kill test-oracle test-all test-gpu bundle lint bench docs clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

# Torch first, alone, under the same constraints: or a dependency drags in another build.
# No build isolation: setuptools is pinned too.
%/.torch: $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: PYTHON=python3.12 make …")'
	$(PYTHON) -m venv $*
	@echo "Installing torch into $* (some minutes the first time)"
	$*/bin/python $(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$*/bin/python $(PIP) setuptools
	@touch $@

.venv/.core: .venv/.torch
	$(BIN)/python $(PIP) --no-build-isolation -e .
	@touch $@

.venv/.everything: .venv/.core
	$(BIN)/python $(PIP) --no-build-isolation -e ".[$(EXTRAS),test]"
	@touch $@

.venv-oracle/.everything: .venv-oracle/.torch
	$(ORACLE)/python $(PIP) --no-build-isolation -e ".[$(EXTRAS),test,oracle]"
	@touch $@

# llama.cpp is compiled from its source distribution: some minutes, and a C++ compiler.
.venv-oracle/.llama: .venv-oracle/.everything
	$(ORACLE)/python $(PIP) llama-cpp-python
	@touch $@

.PRECIOUS: .venv/.torch .venv-oracle/.torch

install: .venv/.everything  ## Everything a developer needs, in .venv

demo: .venv/.core  ## Train, evaluate, save and try a small model on this machine's own text
	$(BIN)/stablelm demo --out runs/demo $(DEMO_ARGS)

test: .venv/.everything  ## All tests but the two kinds below
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TEST_ARGS)

test-kill: .venv/.everything  ## Runs and preparations that are killed again and again, one after another
	$(BIN)/python -m pytest tests/end_to_end $(TEST_ARGS)

test-oracle: .venv-oracle/.everything  ## The tests that compare with transformers
	$(ORACLE)/python -m pytest tests/oracle $(TEST_ARGS)

test-all: .venv-oracle/.llama  ## Everything, also what takes minutes, and beside llama.cpp (compiles it once)
	$(ORACLE)/python -m pytest tests tests/end_to_end tests/long tests/oracle $(TEST_ARGS)

test-gpu: .venv/.everything  ## The tests that need a GPU (skipped where there is none)
	$(BIN)/python -m pytest tests/gpu $(TEST_ARGS)

bundle: .venv/.everything  ## What must travel to a machine with a GPU and no network, in .bundle
	$(BIN)/python tools/bundle.py $(BUNDLE_ARGS)

lint: .venv/.everything  ## ruff, mypy --strict, the order of the rooms, the size of the files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/check_sizes.py

bench: .venv-oracle/.everything  ## One benchmark: make bench NAME=order ARGS="…"; without NAME, which there are
ifdef NAME
	$(ORACLE)/python benchmarks/$(NAME).py $(ARGS)
else
	@cd benchmarks && for script in $(filter-out measure.py,$(notdir $(wildcard benchmarks/*.py))); do \
	  printf '%-20s %s\n' "$${script%.py}" "$$(head -n 1 $$script | sed 's/^"""//; s/"""$$//')"; done
	@echo 'The command of each stands at its beginning; what it needs, too.'
endif

docs: .venv/.everything  ## Regenerate what is generated: configs/reference.yml
	$(BIN)/python tools/write_reference.py

clean:  ## Remove environments, caches and build leftovers; runs/ stays
	rm -rf .venv .venv-oracle build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
