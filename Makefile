# The targets that the README names; CI, people and hooks all use these.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: install demo test test-full fuzz compatibility consumers mutants faults lint format types bench infra-check deploy clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/adapterline demo

test: install
	$(BIN)/pytest -n 2 --dist loadfile

test-full: install
	$(BIN)/pytest -n 2 --dist loadfile -m ""

fuzz: install
	HYPOTHESIS_PROFILE=fuzz $(BIN)/pytest -n 2 --dist loadfile -m "" --timeout 3600 $(shell grep -rl "from hypothesis" tests --include=test_*.py)

compatibility: install
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.compatibility

consumers: install
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.consumers

faults: install
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.faults

mutants: install
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.mutants

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m benchmarks

infra-check: install
	$(BIN)/python -m infra.check

deploy: install
	$(BIN)/python -m deployments.deploy $(ARGS)

clean:
	rm -rf $(VENV) demo build dist
