"""Decides where a call belongs whose arguments name descriptors and paths. Pure.

A path is seen from the working directory or from the folder that a descriptor stands for, as text; the rules decide
on what comes out. Where the folder's own path is unknown, a path belongs where its folder does.
"""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from ptserver.rules.rules import Rules, Side, normalise
from ptserver.rules.table import LocalTable
from stepping.syscalls import ArgKind, Syscall

AT_FDCWD = -100
_AT_FDCWD_REGISTER = AT_FDCWD % 2**64


@dataclass
class Placed:
    """Where a call belongs. sides: of its descriptors and paths; args, ins: as that side must get them.

    path: the absolute path of the last path argument, if it is known; changed: whether args or ins are others.
    """

    sides: set[Side]
    args: list[int]
    ins: dict[int, bytes]
    path: str | None = None
    changed: bool = False


def needs_folder(row: Syscall, args: Sequence[int], ins: dict[int, bytes]) -> bool:
    """Whether the call has a path that is seen from the working directory."""
    for index, arg in enumerate(row.args):
        if arg.kind is ArgKind.PATH and not ins.get(index, b"/").startswith(b"/"):
            folder = _folder_index(row, index)
            if folder is None or signed(args[folder]) == AT_FDCWD:
                return True
    return False


def place(
    row: Syscall, args: Sequence[int], ins: dict[int, bytes], table: LocalTable, rules: Rules
) -> Placed:
    """Return where a call belongs."""
    placed = Placed(set(), list(args), dict(ins))
    folders = {
        folder
        for index, arg in enumerate(row.args)
        if arg.kind is ArgKind.PATH and (folder := _folder_index(row, index)) is not None
    }
    for index, arg in enumerate(row.args):
        if arg.kind is ArgKind.PATH:
            _place_path(row, index, placed, table, rules)
        elif arg.kind in (ArgKind.FD, ArgKind.DIRFD) and index not in folders:
            _place_descriptor(index, placed, table)
    return placed


def signed(register: int) -> int:
    """Return a register as the signed 32-bit number that a descriptor is."""
    number = register & 0xFFFFFFFF
    return number - (number >> 31 << 32)


def _folder_index(row: Syscall, index: int) -> int | None:
    return index - 1 if index and row.args[index - 1].kind is ArgKind.DIRFD else None


def _place_descriptor(index: int, placed: Placed, table: LocalTable) -> None:
    fd = table.files.get(signed(placed.args[index]))
    placed.sides.add("remote" if fd is None else "local")
    if fd is not None:
        placed.args[index] = fd


def _place_path(row: Syscall, index: int, placed: Placed, table: LocalTable, rules: Rules) -> None:
    data = placed.ins.get(index)
    if data is None:
        placed.sides.add("remote")  # a bad pointer, which fails there
        return
    path = data.decode("utf-8", "surrogateescape")
    folder_index = _folder_index(row, index)
    number = AT_FDCWD if folder_index is None else signed(placed.args[folder_index])
    if path.startswith("/"):
        placed.path = normalise(path)
        placed.sides.add(rules.path(path).side)
        return
    folder, side = _folder(number, table)
    if not path or folder is None:
        placed.sides.add(side)
        if side == "local" and folder_index is not None and number in table.files:
            placed.args[folder_index] = table.files[number]
        return
    placed.path = normalise(path, folder)
    wanted = rules.path(placed.path).side
    placed.sides.add(wanted)
    if wanted == "local" or side == "local":  # the kernel of that side is in no such folder
        # Of one side, its kernel resolves ".." as it does; across, there is no such folder to come from.
        whole = posixpath.join(folder, path) if wanted == side else placed.path + "/" * path.endswith("/")
        placed.ins[index] = whole.encode("utf-8", "surrogateescape")
        placed.changed = True
        if folder_index is not None:
            placed.args[folder_index] = _AT_FDCWD_REGISTER


def _folder(number: int, table: LocalTable) -> tuple[str | None, Side]:
    """Return the path of the folder that a relative path is seen from, if it is known, and whose it is."""
    if number == AT_FDCWD:
        return table.folder, "local" if table.folder_is_local else "remote"
    return table.paths.get(number), "local" if number in table.files else "remote"
