# `make demo` and `make test` make their own virtual environment in .venv when there is none.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check docs format clean

demo: .venv/.installed
	$(BIN)/medvill demo

test: .venv/.installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.docs-installed
	$(BIN)/python -m sphinx --builder html --fail-on-warning --quiet docs build/docs
	@echo build/docs/index.html

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist demo runs

.venv/.installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

.venv/.docs-installed: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@
