"""What is to be executed for a program of another architecture, where an emulated program executes one."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from goabi.elf_header import read_elf_header
from goabi.errors import GoAbiError
from ptserver.machine import native_arch

_EXEC = (
    "import sys; sys.path.insert(0, {root!r}); from ptserver.emulated.host import main; "
    "main(sys.argv[1:], argv0={argv0!r})"
)


def emulator_command(path: bytes, argv: Sequence[bytes]) -> tuple[bytes, list[bytes]] | None:
    """Return an emulator's program and its arguments, for the program at *path* with *argv*.

    None: the kernel executes it, or knows best why not.
    """
    try:
        if not os.access(path, os.X_OK, effective_ids=True):
            return None
        if read_elf_header(os.fsdecode(path)).arch == native_arch():
            return None
    except (GoAbiError, OSError, ValueError):  # a script; not there; a NUL in its name
        return None
    root = str(Path(__file__).resolve().parent.parent.parent)
    code = _EXEC.format(root=root, argv0=os.fsdecode(argv[0]) if argv else "")
    program = os.fsencode(sys.executable)
    return program, [program, b"-c", code.encode(errors="surrogateescape"), path, *argv[1:]]
