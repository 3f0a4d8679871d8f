"""Runs the `ptserver` command as a user does, for tests of what it says."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.conformance.modes import base_environment
from tests.leftovers import none_left


def ptserver(
    *words: str | Path,
    cwd: Path | str = "/",
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    prefix: tuple[str, ...] = (),
    timeout: float = 60,
) -> tuple[int, str, str]:
    """Return exit status (minus the signal), standard output and error of `ptserver WORDS`; no process is left."""
    with none_left():
        done = subprocess.run(
            [*prefix, "ptserver", *words],
            cwd=cwd,
            env=base_environment() | dict(env or {}),
            input=stdin,
            capture_output=True,
            check=False,
            timeout=timeout,
        )
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def refusal(*words: str | Path, **options: object) -> tuple[int, str]:
    """Return the exit status and the one line of a command that must fail before any program runs."""
    status, out, err = ptserver(*words, **options)  # type: ignore[arg-type]
    assert out == ""
    assert err.startswith("ptserver: "), err
    assert err.count("\n") == 1, err
    return status, err.removeprefix("ptserver: ").rstrip("\n")
