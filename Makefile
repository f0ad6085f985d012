# Two commands: `make demo` and `make test`. Both need nothing but Python >= 3.11 with pip.
# Overrides: PYTHON=python3.12   TORCH_SPEC="torch==2.11.*"   PIP_ARGS="--extra-index-url …"
# WORKERS=4: processes that share the tests, about one for each core.

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
TORCH_SPEC ?= torch>=2.11,<2.14
PIP_ARGS ?=
MODEL ?= smollm2-135m
WORKERS ?= 2

PY := $(VENV)/bin/python
# Most modules of what is installed are never imported: Python compiles those that are, once, whatever
# the environment says.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(PY) -m pip install --disable-pip-version-check --no-compile $(PIP_ARGS)

.DEFAULT_GOAL := help
.PHONY: help demo test check format docs clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## install, fetch the default model, run the examples' tour
	@$(PY) -m branchline models pull $(MODEL)
	@$(PY) -m branchline demo

test: $(VENV)/.installed-dev  ## install, run the tests
	@# What fails while others use the machine must pass alone: some tests watch clocks and processes.
	$(PY) -m pytest --cache-clear -n $(WORKERS) --dist loadfile $(TESTS) || \
		$(PY) -m pytest --last-failed --last-failed-no-failures none

check: $(VENV)/.installed-dev  ## lint, format, types, import contract, size budget, docs
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) tools/typecheck.py
	$(PY) tools/imports.py
	$(PY) tools/size_budget.py
	$(PY) tools/gen_docs.py --check
	$(if $(filter test,$(MAKECMDGOALS)),,$(PY) -m pytest tests/tooling/test_docs.py)

format: $(VENV)/.installed-dev  ## format and fix what can be fixed
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

docs: $(VENV)/.installed-dev  ## write the generated pages again
	$(PY) tools/gen_docs.py

clean:  ## remove the environment and all caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "branchline needs Python >= 3.11; name one: make demo PYTHON=…"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	raise SystemExit(0 if v >= (3, 11) else f"branchline needs Python >= 3.11, $(PYTHON) is {v[0]}.{v[1]}")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	@echo "Installing branchline and its runtime into $(VENV) (the first time takes a few minutes)"
	@$(PIP) "$(TORCH_SPEC)" -e ".[runtime]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml
	@echo "Installing branchline with its tools into $(VENV) (the first time takes a few minutes)"
	@$(PIP) "$(TORCH_SPEC)" -e ".[runtime,dev]"
	@touch $@ $(VENV)/.installed
