# Works from a bare clone with python3, pip and make. Everything is idempotent.
PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= runs/digits

.PHONY: train test test-slow lint clean

.venv/train.stamp: pyproject.toml constraints.txt
	@test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/dev.stamp: .venv/train.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# A vision transformer with PRepBN and simplified linear attention on scanned digits.
train: .venv/train.stamp
	$(BIN)/python train.py --config=configs/digits.py --workdir=$(WORKDIR)
	$(BIN)/python eval.py --workdir=$(WORKDIR) --fold

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: .venv/dev.stamp
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

clean:
	rm -rf .venv runs build *.egg-info
