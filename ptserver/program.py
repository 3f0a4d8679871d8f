"""Finds and checks the file of a program before anything is started."""

import os

from goabi.elf_header import ElfHeader, read_elf_header
from goabi.errors import GoAbiError
from ptserver.errors import LaunchError, ProgramNotFoundError
from ptserver.machine import native_arch


def find_program(name: str, *, emulated: bool = False) -> tuple[str, ElfHeader]:
    """Return the path of program *name*, looked up as a shell does, and its header, fit to be executed here.

    emulated: it may be for any architecture that ptserver knows.

    Raises:
        ProgramNotFoundError: there is no such file.
        LaunchError: it is not an executable ELF program for this machine.
    """
    path = _look_up(name)
    if os.path.isdir(path):
        raise LaunchError(f"{path} is a folder, not a program")
    if not os.path.isfile(path) and os.access(path, os.X_OK):
        raise LaunchError(f"{path} is no regular file")
    if not os.access(path, os.X_OK):
        raise LaunchError(f"{path} is not executable; `chmod +x` makes it so")
    try:
        header = read_elf_header(path)
    except GoAbiError as error:
        raise LaunchError(str(error)) from error
    except OSError as error:
        raise LaunchError(f"cannot read {path}: {error.strerror}") from error
    if header.arch != native_arch() and not emulated:
        raise LaunchError(
            f"{path} is a program for {header.arch}, this machine is {native_arch()}; --engine=emulate runs it"
        )
    return path, header


def _look_up(name: str) -> str:
    if "/" in name:
        if not os.path.exists(name):
            raise ProgramNotFoundError(f"there is no file {name}")
        return name
    for folder in os.get_exec_path():
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    hint = f"; for the one in this folder say ./{name}" if os.path.exists(name) else ""
    raise ProgramNotFoundError(f"there is no program {name} in PATH{hint}")
