# Two commands: `make demo` and `make test`. Each makes .venv and installs all it needs.

VENV    := .venv
BIN     := $(VENV)/bin
PYTHON  ?= python3
STAMP   := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
export GOTOOLCHAIN := local

# What tests and the demo use of the system, as Debian calls it; installed when missing, where that is possible.
PACKAGES  := binutils gcc gdb gdb-multiarch iproute2 libc6-dev procps python3-venv qemu-user strace
PYTEST    := $(BIN)/python -m pytest
PIP       := $(BIN)/pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat --editable

.PHONY: demo test lint bench test-go-matrix test-slow venv clean

demo: $(STAMP)
	@tools/demo

# Tests of real processes meet whatever else the machine does: one that fails must fail again to count. Such are named.
test: lint
	$(PYTEST) -n 2 --reruns 2 -r fER -m 'not slow and not goversions'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every supported Go version, and long matrices: minutes to an hour.
test-go-matrix: $(STAMP)
	$(PYTEST) -m goversions

test-slow: $(STAMP)
	@sh tools/system-packages bash caddy etcd-server fzf hugo nats-server rclone restic
	$(PYTEST) -m slow --hypothesis-profile=search
	$(PYTEST) tests/property --hypothesis-profile=search

# Medians and ratios against native and other tools, side by side in each module of bench/.
bench: $(STAMP)
	@sh tools/system-packages caddy delve gdb nats-server openssh-server qemu-user rsync runsc sshfs strace
	$(PIP) '.[test,bench]'
	$(BIN)/python -m bench.run

venv: $(STAMP)

$(STAMP): setup.cfg pyproject.toml Makefile
	@sh tools/system-packages $(PACKAGES)
	$(PYTHON) -m venv $(VENV)
	$(PIP) '.[test]'
	@sh tools/go-toolchain $(BIN)
	@touch $@

clean:
	rm -rf $(VENV) .cache
