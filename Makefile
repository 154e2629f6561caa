# One command each: the first call sets the machine up, later calls start at once.

# The first of these that is Python 3.11 or 3.12; `make install PYTHON=…` names another.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# One thread a test process: two processes with two threads each only get in each other's way. Tests
# of one file stay together as long as both have some left, so that what they share is made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: install run test lint bench bench-gpu controls soak base clean

install: .venv/installed

run: .venv/installed
	$(BIN)/python train.py

test: .venv/installed-tests
	$(PYTEST) tests

lint: .venv/installed-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Our speed beside other tools', into BENCHMARKS.md, fifty minutes on a machine to itself; and the
# memory of DPO, some ten more.
# One of them, llama.cpp, has to be compiled; where that fails, the others race all the same.
bench: .venv/installed-tests
	$(MAKE) --no-print-directory .venv/installed-peers || echo 'llama.cpp was not built: the bench goes on without it' >&2
	$(BIN)/python -m bench
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.training_memory --out bench/training_memory.md

# Sampling and training at 7B's shape on a GPU, against what the card can do; and the loop's stages
# there, which write and remove 27 GB.
bench-gpu: .venv/installed-tests
	$(BIN)/python -m bench.gpu --out bench/gpu.md
	$(BIN)/python -m bench.gpu_training --out bench/gpu_training.md
	$(BIN)/python -m bench.gpu_stages --out bench/gpu_stages.md

# The loop against its controls over five seeds, and its ablations over three: well over an hour, and it
# goes on where it was stopped.
controls: .venv/installed
	$(BIN)/python -m controls

# Every fault at every place of the smallest run, and many damaged files: docs/faults.md. For hours.
soak: .venv/installed-tests
	cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m faults.soak

# The base model of the embedded world, from nothing: about half an hour on two cores.
base: .venv/installed
	$(BIN)/python -m seed.world base runs/base

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are touched last, so that a set-up that was cut short is done again.
.venv/made:
	@test -n "$(PYTHON)" || { echo 'No Python 3.11 or 3.12 here: install one, or name it: make PYTHON=/path/to/python3.12' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	touch $@

.venv/installed: setup.py constraints.txt | .venv/made
	$(PIP) --editable .
	touch $@

.venv/installed-tests: setup.py constraints.txt | .venv/made
	$(PIP) --editable '.[test,lint]'
	touch .venv/installed $@

# Compiles for this machine's processor, for minutes.
.venv/installed-peers: setup.py constraints.txt | .venv/made
	$(PIP) --editable '.[peers]'
	touch $@
