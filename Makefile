# `make demo` and `make test` each set up what they need: only Python 3.11, make and git are assumed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install demo test test-all lint format bench clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found; name yours: make PYTHON=python3 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/wsi-ips run pipelines/demo.yaml

# Each process of the tests computes with one thread: two that share two cores with two threads each wait for
# each other.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m ''

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

SLIDE ?= gigapixel.tif

bench: $(READY) $(SLIDE)
	$(BIN)/python benchmarks/stream.py $(SLIDE)
	$(BIN)/python benchmarks/memory.py $(SLIDE)
	$(BIN)/python benchmarks/overlay.py $(SLIDE)
	$(BIN)/python benchmarks/ips_pass.py $(SLIDE)

$(SLIDE): | $(READY)
	$(BIN)/python benchmarks/make_gigapixel.py $@

clean:
	rm -rf $(VENV) demo_run
