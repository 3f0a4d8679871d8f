"""Landlock: what a process, and all that it will ever start, may do with files, and whom it may signal or trace.

A ruleset *handles* some rights on files; those are denied then, but below the paths that rules name. Whoever is
restricted can neither trace a process outside (nor reach its memory by /proc), nor, from ABI 6 on, signal one. It
holds for root as well, and cannot be undone. Metadata (modes, owners, times, attributes) is not covered.

Source: landlock(7), linux/landlock.h, Documentation/userspace-api/landlock.rst of Linux 6.12.
"""

import ctypes
import os
import struct
from collections.abc import Iterable
from enum import IntFlag

from stepping.errors import LandlockRefusedError

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1  # LANDLOCK_RULE_PATH_BENEATH
_ATTR = struct.Struct("=QQQ")  # struct landlock_ruleset_attr: fs, net, scoped
_BENEATH = struct.Struct("=Qi")  # struct landlock_path_beneath_attr, packed
#: How much of the struct each ABI knows: it refuses a longer one that is not zero there.
_ATTR_BYTES = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16}


class Right(IntFlag):
    """LANDLOCK_ACCESS_FS_*: what can be denied of files."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13  # ABI 2
    TRUNCATE = 1 << 14  # ABI 3


#: All that changes files or folders.
CHANGES = (
    Right.WRITE_FILE
    | Right.REMOVE_DIR
    | Right.REMOVE_FILE
    | Right.MAKE_CHAR
    | Right.MAKE_DIR
    | Right.MAKE_REG
    | Right.MAKE_SOCK
    | Right.MAKE_FIFO
    | Right.MAKE_BLOCK
    | Right.MAKE_SYM
    | Right.REFER
    | Right.TRUNCATE
)
#: What a rule for a file, not a folder, can allow.
_OF_FILES = Right.EXECUTE | Right.WRITE_FILE | Right.READ_FILE | Right.TRUNCATE

SCOPE_ABSTRACT_SOCKETS = 1 << 0
SCOPE_SIGNALS = 1 << 1

_libc = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """Return the kernel's Landlock ABI, 0 if it has none.

    1: files (Linux 5.13), 3: truncation (6.2), 6: signals and abstract sockets (6.12).
    """
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, 0, _VERSION)))


def restrict(handled: Right, allowed: Iterable[tuple[str, Right]], scoped: int) -> None:
    """Restrict this thread, which should be the only one, and all that it starts, for good.

    handled: the rights that are denied; allowed: paths below which some are not, a path that does not exist is
    left out; scoped: `SCOPE_SIGNALS` and `SCOPE_ABSTRACT_SOCKETS`: deny these to what is outside. What the
    kernel's ABI does not know is left out; ask `abi` before. Without CAP_SYS_ADMIN, no_new_privs must be set.

    Raises:
        LandlockRefusedError: the kernel refuses.
    """
    version = abi()
    if version < 2:
        handled &= ~Right.REFER
    if version < 3:
        handled &= ~Right.TRUNCATE
    if version < 6:
        scoped = 0
    if not handled and not scoped:
        return
    size = _ATTR_BYTES.get(version, _ATTR.size)
    ruleset = _checked(_libc.syscall(_CREATE_RULESET, _ATTR.pack(handled, 0, scoped), size, 0))
    try:
        for path, rights in allowed:
            _allow(ruleset, path, rights & handled)
        _checked(_libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: Right) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _OF_FILES
        if rights:
            rule = _BENEATH.pack(rights, fd)
            _checked(_libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))
    finally:
        os.close(fd)


def _checked(result: int) -> int:
    if result < 0:
        raise LandlockRefusedError(ctypes.get_errno())
    return int(result)
