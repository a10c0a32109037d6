# `make demo` and `make test` each set up what they need: only Python 3.11, make and git are assumed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install demo tables docs notebooks test test-all test-browser encoders-real fuzz page page-check lint format bench clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found; name yours: make PYTHON=python3 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/wsi-ips run pipelines/demo.yaml

# The tables of the public data sets that lie below DATA, each into TABLES; goes on where it was. See docs/benchmarks.md.
TABLES ?= runs/tables
tables: $(READY)
	@test -d "$(DATA)" || { echo "name the folder of the data sets: make tables DATA=DIR"; exit 2; }
	@ran=0; failed=0; for name in camelyon16 camelyon17 camelyon_plus panda tcga_brca; do \
	if $(BIN)/wsi-ips data manifest "$(DATA)" --name $$name --out "$(TABLES)/$$name/listed.csv" >/dev/null 2>&1; then \
	ran=1; $(BIN)/wsi-ips table pipelines/tables/$$name.yaml --data "$(DATA)" --out "$(TABLES)/$$name" || failed=$$?; \
	else echo "$$name: not below $(DATA), or not laid out as released: wsi-ips data verify $(DATA) --manifest $$name"; fi; \
	done; test $$ran = 1 || { echo "no data set is below $(DATA)"; exit 2; }; exit $$failed

# Each process of the tests computes with one thread: two that share two cores with two threads each wait for
# each other.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m 'not browser'

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
	$(BIN)/python benchmarks/stream.py $(SLIDE)
	$(BIN)/python benchmarks/memory.py $(SLIDE)
	$(BIN)/python benchmarks/overlay.py $(SLIDE)
	$(BIN)/python benchmarks/ips_pass.py $(SLIDE)
	$(BIN)/python benchmarks/containers.py

$(SLIDE): | $(READY)
	$(BIN)/python benchmarks/make_gigapixel.py $@

clean:
	rm -rf $(VENV) demo_run
