# The two commands that matter: `make demo` and `make test`. Each makes the environment first.
PYTHON ?= python3.11
VENV := .venv
PINNED := .venv-pinned
DOCS := .venv-docs
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
REQUIREMENTS := $(filter-out requirements/docs.txt requirements/twine.txt requirements/fairchem2.lock,$(wildcard requirements/*))
VENV2 := .venv2
BIN2 := $(VENV2)/bin
PACKAGING := setup.py pyproject.toml $(wildcard packaging/* packaging/*/* packaging/*/*/* packaging/*/.include)

.PHONY: help env env2 demo demo2 test2 bench bench-results gpu-check md17 qm9 test test-fast test-pinned installs lint types lock results docs docs-pages clean

help:
	@echo "make demo         train EquiformerV2 + NDeM on generated data (minutes, CPU)"
	@echo "make bench        what an NDeM step costs here, against upstream's plain step (minutes)"
	@echo "make md17 FILE=.. one MD17 molecule, plain and NDeM, small (minutes, CPU); FILE is its npz"
	@echo "make qm9          one QM9 target, plain and NDeM, small; downloads qm9pack (100 MB)"
	@echo "make test         all tests"
	@echo "make test-fast    tests without the slow ones"
	@echo "make test-pinned  fast tests in a second environment with fairchem's own pins (torch 2.4)"
	@echo "make installs     sdist and wheel, built and tried in a fresh environment"
	@echo "make demo2 test2  the same beside fairchem-core 2 (UMA, eSEN), in .venv2 (make env2)"
	@echo "make env          only the environment (.venv)"
	@echo "make lint types   ruff, mypy"
	@echo "make bench-results  docs/cost.md's measurements, tables and pictures (an hour on a CPU)"
	@echo "make gpu-check    what this machine's GPU says, in ten minutes: one file to send"
	@echo "make results      tables of the README and docs from results/*.json"
	@echo "make docs         the documentation as a site, links checked: site/index.html"
	@echo "make docs-pages   docs/settings_reference.md and docs/commands.md from the source"

env: $(STAMP)

# torch first and by itself: its build (CPU or CUDA) is the machine's; then everything else at its
# locked version; then fairchem-core without its pins, and this package without dependencies.
$(STAMP): $(REQUIREMENTS) $(PACKAGING)
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements/torch.txt -c requirements/default.lock
	$(BIN)/python -m pip install --quiet -r requirements/default.lock
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/python -m pip install --quiet -r requirements/triton.txt || echo "No Triton for this platform: the tests of the kernels are skipped."
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/host.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	$(BIN)/ndem demo

env2: $(VENV2)/.ready

# fairchem-core 2 has the name of 1.10, so it has an environment of its own; nothing is compiled.
$(VENV2)/.ready: requirements/fairchem2.lock requirements/torch.txt $(PACKAGING)
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV2)
	$(BIN2)/python -m pip install --quiet -r requirements/torch.txt -c requirements/fairchem2.lock
	$(BIN2)/python -m pip install --quiet -r requirements/fairchem2.lock
	$(BIN2)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo2: $(VENV2)/.ready
	$(BIN2)/python -m ndem_ocp.fairchem2.demo

test2: $(VENV2)/.ready
	$(BIN2)/python -m pytest -n $(JOBS) --dist loadfile tests_fairchem2

bench: $(STAMP)
	$(BIN)/ndem bench step

# All of docs/cost.md anew: step, inference, data and scaling, then tables and pictures.
bench-results: $(STAMP)
	$(BIN)/python -m ndem_ocp.bench.experiments.cost

# Ten minutes on a GPU; CHECK="--seconds 200" and other options (python -m ndem_ocp.bench.gpu.check --help).
CHECK ?=
gpu-check: $(STAMP)
	$(BIN)/python -m ndem_ocp.bench.gpu.check $(CHECK)

# Ethanol's or another molecule's npz from sgdml.org or the rMD17 archive.
FILE ?= md17_ethanol.npz
md17: $(STAMP)
	@test -f "$(FILE)" || { echo "make md17 FILE=PATH: an npz of MD17 or rMD17 (docs/data.md)"; exit 1; }
	test -d data/md17/small || $(BIN)/ndem data md17 "$(FILE)" --test 1000 --out data/md17/small
	$(BIN)/ndem sweep configs/md17/sweeps/small.yml --seeds 0 --arms plain ndem --out runs/md17 --jobs 2 --test data/md17/small/test -- \
		dataset.train.src=data/md17/small/train dataset.val.src=data/md17/small/val optim.max_epochs=10

qm9: $(STAMP)
	$(BIN)/python -m pip install --quiet qm9pack
	test -d data/qm9_small || $(BIN)/ndem data qm9 qm9pack --train 4000 --val 500 --test 500 --out data/qm9_small
	$(BIN)/ndem sweep configs/qm9/sweeps/small.yml --out runs/qm9 --jobs 2

# Beside fairchem 1.10: JOBS files at a time, each in one worker, those with slow tests first (tests/conftest.py). For what
# a machine has once, tests wait for each other (tests/alone.py).
JOBS ?= 2
test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not ddp and not slurm and not gpu"

$(PINNED)/.ready: setup.py
	$(PYTHON) -m venv $(PINNED)
	$(PINNED)/bin/python -m pip install --quiet ".[fairchem1,test]"
	@touch $@

test-pinned: $(PINNED)/.ready
	$(PINNED)/bin/python -m pip install --quiet --no-deps --force-reinstall .
	$(PINNED)/bin/ndem doctor
	$(PINNED)/bin/python -m pytest -m "not slow and not ddp and not slurm and not gpu"

# The sdist and the wheel in a fresh environment without developers' tools: a minute or two.
installs: $(STAMP)
	$(BIN)/python .ci/installs.py

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
		| grep -v -E '^(pip|torch|triton|fairchem-core|ndem-ocp)==' >> requirements/default.lock

results: $(STAMP)
	$(BIN)/python -m ndem_ocp.bench.pages.write

# The site needs neither torch nor fairchem: it reads docstrings and imports nothing.
$(DOCS)/.ready: requirements/docs.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11 docs"; exit 1; }
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet -r requirements/docs.txt
	@touch $@

# Not --quiet: with it warnings are not counted, and --strict lets broken links pass.
docs: $(DOCS)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict
	@echo "site/index.html"

docs-pages: $(STAMP)
	$(BIN)/python docs/_site/generate.py

clean:
	rm -rf $(VENV) $(VENV2) $(PINNED) $(DOCS) build site *.egg-info
