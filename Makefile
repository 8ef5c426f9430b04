# `make demo` and `make test` make their own virtual environment in .venv when there is none. `make test-lower` makes
# another in .venv-lower, with Python 3.11 and each requirement at its lower bound.

PYTHON ?= python3
BIN := .venv/bin
LOWER := .venv-lower/bin

.PHONY: demo test test-lower check docs format clean

demo: .venv/.installed
	$(BIN)/medvill demo

test: .venv/.installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --durations=15

ifeq ($(shell python3.11 -c 'print("found")' 2>/dev/null),found)
test-lower: .venv-lower/.installed
	HF_HUB_OFFLINE=1 $(LOWER)/python -m pytest -n 2 --dist loadgroup -m 'not slow'
else
test-lower:
	@echo 'test-lower: skipped, as there is no Python 3.11 here'
endif

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
	rm -rf .venv .venv-lower build dist demo runs

.venv/.installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

.venv/.docs-installed: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

.venv-lower/.installed: setup.cfg .ci/lower_bounds.py
	python3.11 -m venv --clear .venv-lower
	$(LOWER)/python -m pip install --quiet --upgrade pip
	$(LOWER)/python .ci/lower_bounds.py > .venv-lower/requirements.txt
	$(LOWER)/python -m pip install --quiet --requirement .venv-lower/requirements.txt --editable '.[test]'
	$(LOWER)/python -m pip check
	touch $@
