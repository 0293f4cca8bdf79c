# Two commands do everything: `make demo` and `make test`. `make test-full` adds the slow tier.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check -q
# Wheels only: a source distribution runs its own code while it is installed. These three of lm_eval's
# requirements come as nothing else.
WHEELS := --only-binary=:all: --no-binary=rouge_score,sqlitedict,word2number
WORKERS ?= 2
PYTEST = EASYEDITOR_OFFLINE=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
	-n $(WORKERS) --dist worksteal --durations=10

.PHONY: demo ui docs wheel notebooks test test-full lint matrix catalog setup model encoder clean

demo: .venv/demo model
	$(BIN)/easyedit demo

# The page, in this machine's browser.
ui: .venv/ui model
	$(BIN)/easyedit ui --open

# The notebooks, run and written with their outputs.
notebooks: .venv/dev
	$(PIP) install $(WHEELS) -c constraints.txt -e ".[notebooks]"
	$(BIN)/python scripts/notebooks.py

# The site, in build/docs: every warning is an error. The reference imports the modules it describes, so
# what they import has to be there.
docs: .venv/dev
	rm -rf build/docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d build/doctrees docs build/docs
	@echo "The site: build/docs/index.html"

# The package as it is released.
wheel: .venv/bin/python
	$(BIN)/pip --disable-pip-version-check -q wheel --no-deps --wheel-dir dist .

# The fast tier: a few minutes on two cores.
test: .venv/dev model encoder
	$(PYTEST) -m "not slow"

# Both tiers: the whole matrix and the long runs, too; half an hour on two cores.
test-full: .venv/dev model encoder
	$(PYTEST)

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# docs/matrix.md: every method on every family of the test suite's small models.
matrix: .venv/dev encoder
	rm -rf build/matrix
	EASYEDITOR_MATRIX=build/matrix EASYEDITOR_OFFLINE=1 HF_HUB_OFFLINE=1 \
		$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/test_matrix.py -k test_cell
	$(BIN)/python tests/matrix/page.py build/matrix

# What `easyedit methods`, `hparams` and `models` list without importing torch.
catalog: .venv/dev
	$(BIN)/python -m easyeditor.cli.catalog

setup: .venv/dev model encoder

# The embedded model, converted once into the user's cache.
model: .venv/demo
	@$(BIN)/easyedit models fetch

# The sentence encoder that retrieval is tested with.
encoder: .venv/demo
	@$(BIN)/easyedit models fetch all-minilm-l6-v2

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "The pinned set-up needs Python 3.11 or newer: make PYTHON=python3.11 … (the library itself runs on 3.10)")'
	$(PYTHON) -m venv .venv

# torch first and alone: the pinned build, never whatever another package would drag in.
.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install $(WHEELS) -c constraints.txt torch
	$(PIP) install $(WHEELS) -c constraints.txt -e ".[gguf]"
	@touch $@

.venv/ui: .venv/demo
	$(PIP) install $(WHEELS) -c constraints.txt -e ".[gguf,ui]"
	@touch $@

.venv/dev: .venv/demo
	$(PIP) install $(WHEELS) -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache
