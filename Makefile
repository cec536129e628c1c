# `make demo` and `make test` need only Python >= 3.11, a C++ compiler and a package index; both set up .venv first.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
EXTRAS := verify,report,download,board

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help setup demo test test-all bench bench-area results lint docs clean

help:
	@echo "make demo      set-up, then the whole pipeline on real images: build/demo/report.html, build/demo/summary.json"
	@echo "make test      set-up, then all tests but the slow ones"
	@echo "make test-all  all tests, with the slow proofs"
	@echo "make bench     speed of simulation, models and training: build/bench.json, docs/performance.md"
	@echo "make bench-area  synthesis, place and route: build/bench-area.json, docs/area.md"
	@echo "make results   trains what docs/results.md compares, for hours; may be stopped and given again"
	@echo "make lint      ruff and pyright"
	@echo "make docs      build/docs/index.html; warnings are errors"
	@echo "make clean     delete build/ and $(VENV)/"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Found $$($(PYTHON) --version), expected Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@date +%s > $(VENV).started
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]" hatchling
	@echo $$(($$(date +%s) - $$(cat $(VENV).started))) > $@; rm $(VENV).started  # the seconds it took, for the demo

$(VENV)/.ready-lint: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt ruff pyright amaranth-stubs
	@touch $@

$(VENV)/.ready-synth: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[synth]"
	@touch $@

$(VENV)/.ready-docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/python -m bitwright.sw.demo build/demo

test: $(VENV)/.ready-synth
	$(BIN)/python -m pytest -n auto --hypothesis-profile=ci -m "not slow"

test-all: $(VENV)/.ready-synth
	$(BIN)/python -m pytest -n auto --hypothesis-profile=ci

bench: $(VENV)/.ready
	$(BIN)/python -m bitwright.sw.bench

bench-area: $(VENV)/.ready-synth
	$(BIN)/python -m bitwright.sw.bench_area

results: $(VENV)/.ready
	$(BIN)/python -m bitwright.sw.results

lint: $(VENV)/.ready-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.ready-docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -b html docs build/docs

clean:
	rm -rf build $(VENV)
