"""What a host tells its user while a program runs: lines on standard error."""

import contextlib
import os


def say(line: str) -> None:
    """Tell the user a line, if somebody reads it."""
    with contextlib.suppress(OSError):
        os.write(2, f"ptserver: {line}\n".encode())
