"""Runs programs under qiling, another emulator that uses Unicorn, in a Python environment of its own.

The environment is made in `.cache/bench` when it is first needed, which takes minutes: qiling brings many packages.
"""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.gofixtures import CACHE

_RUN = """
import sys
from qiling import Qiling
from qiling.const import QL_VERBOSE
Qiling(sys.argv[1:], "/", verbose=QL_VERBOSE.OFF, multithread=True).run()
"""
_FAILURE = re.compile(r"^(?:fatal error|panic|[\w.]*(?:Error|Exception)\w*): .*", re.MULTILINE)
_INSTALL_SECONDS = 900
_RUN_SECONDS = 300


class CannotRunError(Exception):
    """Qiling cannot be had, or does not run the program; the text is its own, in one line."""


@cache
def _python() -> str:
    folder = CACHE / "bench" / "qiling"
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        print("installing qiling, which takes some minutes", file=sys.stderr)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "qiling"]
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
            subprocess.run(install, check=True, timeout=_INSTALL_SECONDS, capture_output=True, text=True)
        except (subprocess.SubprocessError, OSError) as error:
            raise CannotRunError(f"it cannot be installed: {str(error).splitlines()[0]}") from error
        done.touch()
    return str(python)


def parts_under_qiling(program: str, size: int) -> dict[str, float]:
    """Return what each part of emu_cpu took under qiling, in seconds, by the program's own clock.

    Raises:
        CannotRunError: it does not run it.
    """
    try:
        done = subprocess.run(
            [_python(), "-c", _RUN, program, str(size)],
            capture_output=True,
            text=True,
            check=False,
            timeout=_RUN_SECONDS,
            cwd=Path(program).parent,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotRunError(f"it does not end within {_RUN_SECONDS} s") from error
    found = re.findall(r"^(\w+) (\d+)$", done.stderr, re.MULTILINE)
    if not found:
        failures = _FAILURE.findall(done.stdout + done.stderr)
        raise CannotRunError(
            failures[-1] if failures else f"it ends with status {done.returncode} and no result"
        )
    return {name: int(took) / 1e9 for name, took in found}
