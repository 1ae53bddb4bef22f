# The two commands of a newcomer are `make demo` and `make test`; both install what they need first.

PYTHON ?= python3
OUT    ?= runs/demo
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
UV     := uv==0.13.9

.PHONY: help setup demo test test-slow lint format lock clean

help:
	@echo "make setup      install into $(VENV) (pinned, checked by hash)"
	@echo "make demo       the whole pipeline in the built-in world; OUT=dir moves it (now: $(OUT))"
	@echo "make test       the fast tests, with coverage"
	@echo "make test-slow  the tests that take minutes"
	@echo "make lint       ruff, mypy --strict, import-linter"
	@echo "make format     let ruff rewrite what it can"
	@echo "make lock       resolve requirements.lock anew from pyproject.toml"

setup: $(STAMP)

# uv is asked first because it is several times faster; pip reads the same lock where uv cannot reach an index.
# Compiled now, as pip does by itself: importing torch from source text takes every process ten seconds.
$(STAMP): requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found: install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $$($(PYTHON) -V) is too old: OVBridge needs Python 3.11 or newer (make PYTHON=python3.12 ...)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make a virtual environment: install it with 'apt install python3-venv'" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet $(UV)
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock \
	  || $(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e . \
	  || $(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

demo: setup
	$(BIN)/ovbridge demo --out $(OUT)

test: setup
	$(BIN)/python -m pytest --cov=ovbridge --cov-report=
	@echo "coverage: $$($(BIN)/coverage report --format=total) % of lines and branches"

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra hf --extra serve --extra ray --extra export --extra docs --universal --python-version 3.11 --generate-hashes \
	  -o requirements.lock

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage htmlcov
