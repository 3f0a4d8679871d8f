"""Build C fixtures with the system's gcc, lazily, into the same cache as the Go ones."""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.gofixtures import CACHE, FIXTURES


def build_c(name: str, *, flags: Sequence[str] = ()) -> Path:
    """Return the executable of `fixtures/NAME/main.c`, compiled with *flags* (`-static`, `-pie`)."""
    source = FIXTURES / name / "main.c"
    key = hashlib.sha256(repr((tuple(flags), source.read_bytes())).encode()).hexdigest()[:16]
    target = CACHE / "fixtures" / f"{name}-{key}" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / name
            command = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", *flags, "-o", made, source]
            subprocess.run(command, check=True)
            os.rename(made, target)
    return target
