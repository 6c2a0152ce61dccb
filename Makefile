# The two commands that matter: `make demo` and `make test`. Each makes the environment first.
PYTHON ?= python3.11
VENV := .venv
PINNED := .venv-pinned
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
REQUIREMENTS := $(wildcard requirements/*)
PACKAGING := setup.py pyproject.toml $(wildcard packaging/* packaging/*/* packaging/*/.include)

.PHONY: help env demo test test-fast test-pinned lint types lock results clean

help:
	@echo "make demo         train EquiformerV2 + NDeM on generated data (minutes, CPU)"
	@echo "make test         all tests"
	@echo "make test-fast    tests without the slow ones"
	@echo "make test-pinned  fast tests in a second environment with fairchem's own pins (torch 2.4)"
	@echo "make env          only the environment (.venv)"
	@echo "make lint types   ruff, mypy"
	@echo "make results      tables of the README from results/*.json"

env: $(STAMP)

# torch first and by itself: its build (CPU or CUDA) is the machine's; then everything else at its
# locked version; then fairchem-core without its pins, and this package without dependencies.
$(STAMP): $(REQUIREMENTS) $(PACKAGING)
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements/torch.txt -c requirements/default.lock
	$(BIN)/python -m pip install --quiet -r requirements/default.lock
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/host.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	$(BIN)/ndem demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not ddp and not slurm and not gpu"

$(PINNED)/.ready: setup.py
	$(PYTHON) -m venv $(PINNED)
	$(PINNED)/bin/python -m pip install --quiet ".[test]"
	@touch $@

test-pinned: $(PINNED)/.ready
	$(PINNED)/bin/python -m pip install --quiet --no-deps --force-reinstall .
	$(PINNED)/bin/ndem doctor
	$(PINNED)/bin/python -m pytest -m "not slow and not ddp and not slurm and not gpu"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# New exact versions from requirements/default.in; look at the difference before committing it.
lock: $(STAMP)
	$(BIN)/python -m pip install --quiet --upgrade -r requirements/default.in
	@echo "# Exact versions of the default environment; made by 'make lock' from default.in." \
		> requirements/default.lock
	$(BIN)/python -m pip list --format=freeze \
		| grep -v -E '^(pip|torch|fairchem-core|ndem-ocp)==' >> requirements/default.lock

results: $(STAMP)
	$(BIN)/python benchmarks/readme_tables.py

clean:
	rm -rf $(VENV) $(PINNED) build *.egg-info
