# One word each: make demo, test, lint, format, docs, clean. Everything is installed into .venv; nothing else is touched.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

# The first Python on the path that is 3.11 or newer; or name one: make test PYTHON=/opt/python3.12/bin/python3
PYTHON ?= $(firstword $(foreach p,python3 python3.11 python3.12 python3.13 python3.14,\
	$(shell $(p) -c '$(SUITABLE)' >/dev/null 2>&1 && echo $(p))))

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs clean

help: ## list these words
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(READY) ## see the whole thing work on built-in images, with no data and no GPU
	$(BIN)/lookalike demo

test: $(READY) ## run every test (PYTEST_ARGS="-k words" for some)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 $(PYTEST_ARGS)

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY) ## build the site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site
	@echo "Open site/index.html"

clean: ## remove the environment and whatever was built; runs/ stays
	rm -rf $(VENV) site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The environment is made again when what it must hold changes.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(SUITABLE)' 2>/dev/null || { \
		echo "Lookalike needs Python 3.11 or newer with venv, and found $$(python3 --version 2>&1 || echo none)." >&2; \
		echo "  Install one (Debian, Ubuntu: apt install python3-venv), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
		exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,docs]'
	@touch $@
