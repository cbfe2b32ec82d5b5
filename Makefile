# Two commands. `make demo` needs Python >= 3.10 and nothing else; `make test` installs the rest and runs every check.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all check install-light install-all clean

demo: install-light
	$(BIN)/cmunext demo --out demo

# Files side by side, in a process a core; one thread each, or they would wait for each other. What is slow has the machine to itself.
test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

test-all: test
	$(BIN)/pytest -m slow

check: install-all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install-light: $(VENV)/light.stamp

install-all: $(VENV)/all.stamp

$(VENV)/light.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-compile --editable .
	touch $@

$(VENV)/all.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable '.[train,openvino,dev]'
	touch $@

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache .mypy_cache
