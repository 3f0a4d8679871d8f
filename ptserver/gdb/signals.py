"""Signals as gdb numbers them, which is not as Linux does. Source: include/gdb/signals.def in GDB's source."""

_GDB = {7: 10, 10: 30, 12: 31, 17: 20, 18: 19, 19: 17, 20: 18, 23: 16, 29: 23, 30: 32, 31: 12, 32: 77, 64: 78}
_LINUX = {gdb: linux for linux, gdb in _GDB.items()}
#: gdb's number of an unknown signal.
_UNKNOWN = 143


def to_gdb(signo: int) -> int:
    """Return gdb's number of a signal of Linux's."""
    if 33 <= signo <= 63:
        return signo + 12
    return _GDB.get(signo, signo if signo < 32 and signo != 16 else _UNKNOWN)


def to_linux(number: int) -> int:
    """Return Linux's number of a signal of gdb's."""
    if 45 <= number <= 75:
        return number - 12
    return _LINUX.get(number, number)
