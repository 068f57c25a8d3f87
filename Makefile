# Works from a bare clone with python3, pip and make. Everything is idempotent.
# Another interpreter (make test PYTHON=python3.13) gets a virtual environment of its own.
PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
WORKDIR ?= runs/digits
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: train test test-slow test-long test-short lint docs clean

$(VENV)/train.stamp: pyproject.toml constraints.txt
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/train.stamp
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/docs.stamp: $(VENV)/train.stamp
	$(PIP) -e '.[docs]'
	@touch $@

# A vision transformer with PRepBN and simplified linear attention on scanned digits.
train: $(VENV)/train.stamp
	$(BIN)/python train.py --config=configs/digits.py --workdir=$(WORKDIR)
	$(BIN)/python eval.py --workdir=$(WORKDIR) --fold

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error

test: lint
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/dev.stamp
	$(PYTEST) -m "slow and not long" --durations=40 --durations-min=10

# Every size of every published network, twenty kills instead of six.
test-long: $(VENV)/dev.stamp
	$(PYTEST) -m long

# Where another version of Python, JAX or Flax would show first, in a few minutes.
test-short: $(VENV)/dev.stamp
	$(PYTEST) -m "not slow" tests/core tests/norms tests/golden_test.py \
	  tests/optim tests/readme_test.py tests/train/loop_test.py

# The examples of the pages, then the site of them: docs/docs.md.
docs: export JAX_PLATFORMS ?= cpu
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/docs.stamp
	$(BIN)/python -m tests.site.examples
	$(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf .venv .venv-* runs build site *.egg-info
