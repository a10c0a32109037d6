# `make demo` and `make test` each set up what they need: only Python 3.11, make and git are assumed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install demo tables docs notebooks test test-slow test-all test-installed test-python test-newest test-lowest test-browser \
	encoders-real fuzz page page-check lint format bench clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found; name yours: make PYTHON=python3 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/wsi-ips run pipelines/demo.yaml

# The tables of the public data sets that lie below DATA, each into TABLES; goes on where it was. See docs/benchmarks.md.
# What each takes, beforehand: wsi-ips plan pipelines/tables/NAME.yaml --data DIR.
TABLES ?= runs/tables
tables: $(READY)
	@test -d "$(DATA)" || { echo "name the folder of the data sets: make tables DATA=DIR"; exit 2; }
	@ran=0; failed=0; for name in camelyon16 camelyon17 camelyon_plus panda tcga_brca; do \
	if $(BIN)/wsi-ips data manifest "$(DATA)" --name $$name --out "$(TABLES)/$$name/listed.csv" >/dev/null 2>&1; then \
	ran=1; $(BIN)/wsi-ips table pipelines/tables/$$name.yaml --data "$(DATA)" --out "$(TABLES)/$$name" || failed=$$?; \
	else echo "$$name: not below $(DATA), or not laid out as released: wsi-ips data verify $(DATA) --manifest $$name"; fi; \
	done; test $$ran = 1 || { echo "no data set is below $(DATA)"; exit 2; }; exit $$failed

# Each process of the tests computes with one thread: two that share two cores with two threads each wait for
# each other. The tests are compiled once and kept, also where the environment says that Python keeps nothing: that
# is half of the time before the first test.
test: $(READY)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# Those that take long, which CI runs too; the notebooks are among them.
test-slow: $(READY)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m 'slow and not browser'

test-all: test test-slow

# The built wheel and what it requires, no more, in a clean environment outside this folder: does it work there?
# The packages are hard links to those of .venv, so this takes no network and no room.
test-installed: $(READY)
	rm -rf dist && $(BIN)/python -m build --installer uv --outdir dist . >/dev/null
	clean=$$(mktemp -d) && trap 'rm -rf '$$clean EXIT && \
	$(BIN)/python -m tests.installed.environment dist/*.whl $$clean/venv && \
	here=$$PWD && cd $$clean && PYTHONPATH= venv/bin/python $$here/tests/installed/smoke.py

# Tests that between them use every library that wsi_ips requires.
ACROSS := tests/installed tests/storage tests/tiling/test_tissue.py tests/tiling/test_coords.py \
	tests/models/test_ips_net.py tests/models/test_checkpoint.py tests/heatmaps/test_exports.py \
	tests/evaluation/test_froc.py tests/training/test_metrics.py tests/training/test_module.py \
	tests/slides/test_ome_zarr.py tests/slides/test_dicom.py tests/slides/test_equals_openslide.py \
	tests/viewer/test_guard.py tests/viewer/test_app.py tests/inference/test_predict.py

# The fast tests on another Python, ON=3.12 for example, in an environment of its own that uv makes in a minute;
# TESTS="tests/slides tests/tiling" runs these alone.
ON ?= 3.13
TESTS ?= tests
OTHER := .venv-$(ON)
test-python: $(READY)
	python=$$($(BIN)/uv python find --quiet --no-python-downloads $(ON) 2>/dev/null \
	|| ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$(ON).*/bin/python | tail -1) && \
	{ test -x $(OTHER)/bin/python || $(BIN)/uv venv --quiet --python $$python $(OTHER); }
	$(BIN)/uv pip install --quiet --python $(OTHER) --constraint constraints.txt --editable '.[test]'
	OMP_NUM_THREADS=1 $(OTHER)/bin/python -m pytest --numprocesses 2 --dist worksteal $(TESTS)

# A part of the tests with the lowest versions that pyproject.toml allows. Old libraries beside new ones warn, so
# that a warning is no error here. The one test left out writes shards with dask, which learned that later.
LOWEST := .venv-lowest
test-lowest: TESTS := $(ACROSS)
test-lowest: $(READY)
	test -x $(LOWEST)/bin/python || $(BIN)/uv venv --quiet --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --only-binary :all: --resolution lowest-direct \
	--python $(LOWEST)/bin/python --extra test --output-file $(LOWEST)/versions.txt pyproject.toml
	$(BIN)/uv pip sync --quiet --python $(LOWEST) $(LOWEST)/versions.txt
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest --numprocesses 2 --dist worksteal -o filterwarnings=default \
	--disable-warnings $(TESTS) \
	--deselect tests/slides/test_ome_zarr.py::test_a_codec_within_a_shard_is_looked_at_too

# The Python that CI tries beside its own; the part of the tests that uses every library.
test-newest: TESTS := $(ACROSS)
test-newest: test-python

# Damaged inputs of every kind, made by chance, for MINUTES; ends with 1 where something was found. SEED makes the same
# inputs again, TARGET="tiff recipe" tries these kinds alone.
MINUTES ?= 5
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(TARGET:%=--target %)

# The viewer's page in Chromium. Where there is none, Debian's is installed, which takes root.
test-browser: $(READY) page-check
	@command -v chromium >/dev/null || { apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; }
	$(BIN)/python -m pytest -m browser

# Builds the viewer's page from viewer_page/ into the package; needs node 20.19 or later.
page:
	cd viewer_page && npm ci --silent --no-audit --no-fund && npm run --silent build

# Is the page in the package what the sources give? Asked where a node is that can build it.
CAN_BUILD = const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a == 20 && b >= 19) ? 0 : 1)
page-check:
	@if ! command -v npm >/dev/null || ! node -e '$(CAN_BUILD)'; then \
	echo "no node 20.19 here: the page is taken as it is"; exit 0; fi; \
	cd viewer_page && npm ci --silent --no-audit --no-fund && npm run --silent build -- --outDir build --logLevel warn \
	|| { echo "npm could not build the page"; exit 1; }; \
	diff -r build ../wsi_ips/viewer/page || { echo "the page differs from its sources: make page"; exit 1; }; \
	rm -r build

# Encoders with the real weights that this machine's Hugging Face cache holds; says which ones it has not.
encoders-real: $(READY)
	$(BIN)/python -m pytest tests/models/encoders/test_real_weights.py -m slow -rs

# The notebooks of docs/, from the first cell to the last.
notebooks: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_notebooks.py -m 'slow or not slow'

# The documentation as a site, in site/. A broken link or a setting without its page is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

SLIDE ?= gigapixel.tif

bench: $(READY) $(SLIDE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/stream.py $(SLIDE)
	$(BIN)/python benchmarks/memory.py $(SLIDE)
	$(BIN)/python benchmarks/overlay.py $(SLIDE)
	$(BIN)/python benchmarks/ips_pass.py $(SLIDE)
	$(BIN)/python benchmarks/containers.py

$(SLIDE): | $(READY)
	$(BIN)/python benchmarks/make_gigapixel.py $@

clean:
	rm -rf $(VENV) .venv-* dist demo_run
