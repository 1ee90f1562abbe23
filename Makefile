# The two commands of the README.  Each sets up what it needs in .venv and can be repeated.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo lint test clean

demo: .venv/.installed
	$(BIN)/python tools/demo.py

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

.venv/.installed: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/.installed-test: setup.py .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:
	rm -rf .venv *.egg-info
