"""The kernel's error numbers, those of interrupted calls included, which only a tracer sees."""

import errno
import os

#: Numbers with which the kernel says to itself how to restart an interrupted call (include/linux/errno.h).
_RESTARTS = {
    512: ("ERESTARTSYS", "To be restarted if SA_RESTART is set"),
    513: ("ERESTARTNOINTR", "To be restarted"),
    514: ("ERESTARTNOHAND", "To be restarted if no handler"),
    516: ("ERESTART_RESTARTBLOCK", "Interrupted by signal"),
}

#: Where Python's name is an alias, or missing.
_NAMES = {11: "EAGAIN", 35: "EDEADLK", 95: "EOPNOTSUPP", 133: "EHWPOISON", 524: "ENOTSUPP"}


def errno_name(number: int) -> str:
    """Return the name of error *number*, or the number itself in decimal if it has none."""
    if number in _RESTARTS:
        return _RESTARTS[number][0]
    return _NAMES.get(number) or errno.errorcode.get(number) or str(number)


def errno_text(number: int) -> str:
    """Return what error *number* means, in a few words."""
    if number in _RESTARTS:
        return _RESTARTS[number][1]
    try:
        return os.strerror(number)
    except (ValueError, OverflowError):
        return f"Unknown error {number}"


def is_restart(number: int) -> bool:
    """Whether the kernel is going to restart the call, or make it fail with EINTR: its result is not known."""
    return number in _RESTARTS
