"""A program starts without what it does not need: an emulator takes a fifth of a second to load."""

import subprocess
import sys

import pytest

_HEAVY = ("unicorn", "capstone", "trio", "elftools")


@pytest.mark.parametrize("module", ["remotely", "elsewhere", "here"])
def test_running_loads_no_emulator(module: str) -> None:
    code = (
        f"import sys, ptserver.running.{module}; print(*[name for name in {_HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
