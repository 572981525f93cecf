# `make demo` or `make test` in a fresh clone: nothing else is needed but Python 3.11 and up.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test slow lint types docs check clean

demo: .venv/installed
	$(BIN)/onnxpress run recipes/digits.toml

# A process a core: most of a test's time is a process that starts or a small network, where a second thread helps little.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

slow: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: .venv/installed
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/python docs/make_cli_reference.py
	$(BIN)/python docs/make_settings_reference.py

check: lint types docs test

.venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@echo 'Installing into .venv (a few minutes the first time: PyTorch with its CUDA libraries is about 5 GB)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
