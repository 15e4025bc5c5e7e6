# Every target works from a fresh clone with no environment active: it makes .venv and installs what it needs.
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
PYTEST_ARGS ?=
# One worker for each core; 0 runs the tests in this process, as a debugger needs it.
PYTEST_WORKERS ?= auto
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.installed-base
DEV := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint types bench methods clean
.NOTPARALLEL:  # two pips must not write into one environment

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

quickstart: $(BASE)  ## distil a toy student on this machine; installs no development tools
	$(BIN)/python recipes/quickstart.py

test: export HF_HUB_OFFLINE = 1
test: export TOKENIZERS_PARALLELISM = false
test: export OMP_NUM_THREADS = 1
test: $(DEV)  ## run the tests, e.g. make test PYTEST_ARGS="-m 'not slow' tests/test_package.py"
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

lint: $(DEV)  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)  ## mypy, strict
	$(BIN)/mypy

methods: $(DEV)  ## write docs/methods.md anew from the catalogue
	$(BIN)/hfdistill methods --markdown > docs/methods.md

bench: $(DEV)  ## a short look at speed and memory, e.g. make bench BENCH_ARGS=--help
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:  ## remove the environment, caches and build products
	rm -rf $(VENV) build dist htmlcov .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An interpreter's date says nothing about the environment: order-only, only its absence counts.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e .
	touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $(BASE) $@
