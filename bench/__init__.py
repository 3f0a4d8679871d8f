"""Benchmarks: `make bench` runs them all (`bench.run`), `python -m bench.NAME` runs one."""

import os

# An installed package has its modules compiled, so that is what is measured.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
