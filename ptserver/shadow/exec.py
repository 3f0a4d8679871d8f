"""A shadow becomes another program: the exec of the program's process, made on the server's machine.

The new program gets what the kernel would hand on natively: the program's descriptors without close-on-exec, its
limits, folder, umask and credentials, which are this process's, and what it ignores and blocks of signals.

Not trusted: the stub host; paths and arguments are bytes of bounded size.
Thread rules: the shadow's first thread, whose credentials are the program's; an exec ends the others.
"""

import ctypes
import errno
import os

from ptserver.shadow.limits import Limits
from ptserver.shadow.signals import ShadowSignals
from ptserver.shadow.waiting import Args

_libc = ctypes.CDLL(None, use_errno=True)
_libc.execveat.argtypes = [ctypes.c_int, *[ctypes.c_char_p], *[ctypes.c_void_p] * 2, ctypes.c_int]
_libc.execve.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p]


def execute_program(
    name: str, args: Args, ins: dict[int, bytes], limits: Limits, signals: ShadowSignals, *, emulates: bool
) -> int:
    """Make the call ``execve`` or ``execveat`` (*name*) as `execute` would; return why it failed.

    emulates: by execve, a program of another architecture is executed by an emulator.
    """
    first = 1 if name == "execveat" else 0
    path = ins.get(first)
    if path is None:
        return errno.EFAULT
    argv, env = (_vector(ins.get(first + index)) for index in (1, 2))
    if emulates and name == "execve":
        from ptserver.emulated.exec_command import emulator_command

        words = ins.get(1, b"")
        command = emulator_command(path, words.split(b"\0") if words else [])
        if command is not None:
            path, argv = command[0], _vector(b"\0".join(command[1]))
    limits.apply()
    signals.apply()
    try:
        if name == "execveat":
            _libc.execveat(ctypes.c_int(args[0] & 0xFFFFFFFF).value, path, argv, env, args[4] & 0xFFFFFFFF)
        else:
            _libc.execve(path, argv, env)
        return ctypes.get_errno()
    finally:
        signals.withdraw()
        limits.withdraw()


def reason_not_to_execute(name: str, ins: dict[int, bytes]) -> int:
    """Return the errno of an execve that fails because there is no such program, or it may not be executed; else 0.

    It only saves work: 0 says nothing.
    """
    path = ins.get(0)
    if name != "execve" or path is None:
        return 0
    try:
        os.stat(path)
    except OSError as error:
        return error.errno or errno.ENOENT
    except ValueError:  # a NUL in it
        return errno.ENOENT
    return 0 if os.access(path, os.X_OK, effective_ids=True) else errno.EACCES


def _vector(joined: bytes | None) -> "ctypes.Array[ctypes.c_char_p] | None":
    """Return a null-terminated array of the strings in *joined*, or the null pointer."""
    if joined is None:
        return None
    strings = joined.split(b"\0") if joined else []
    return (ctypes.c_char_p * (len(strings) + 1))(*strings, None)
