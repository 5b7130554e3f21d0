# Two commands: `make demo` and `make test`. Each makes .venv and installs the tested set if need be.
# PIP_ARGS is passed to pip, e.g. PIP_ARGS="--index-url URL_OF_A_CPU_INDEX"; PYTHON chooses the interpreter.

PYTHON ?= $(shell command -v python3.11 || command -v python3.10 || command -v python3)
PIP_ARGS ?=
PYTEST_ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-full lint bench wheel-check install clean

demo: $(INSTALLED)
	$(BIN)/lavis-itm demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not full" $(PYTEST_ARGS)

test-full: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

# A wheel in a clean environment of its own: what a person gets from `pip install`.
wheel-check: $(INSTALLED)
	$(BIN)/python tests/wheel_check.py $(PIP_ARGS)

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 10), (3, 11)) else f"Python 3.10 or 3.11 is needed, {sys.executable} is {v[0]}.{v[1]}; run: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	touch $(INSTALLED)

clean:
	rm -rf .venv build dist
