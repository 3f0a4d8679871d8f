"""Locks in memory that processes share, which do not outlive who holds them.

They are the C library's: taking one that is free is no system call, where a record lock is two of them, and who dies
with one leaves it to the next. One is taken for each access to a remote variable, for which a thread waits.

Who knows a lock by its address shares the memory since a fork, and so the C library's idea of what is in it.
Source: pthread_mutexattr_setrobust(3), pthread_mutexattr_setpshared(3).
"""

import ctypes
import errno
import os

#: What one takes in memory, and a multiple of what its address must be: more than any C library for Linux needs.
LOCK_BYTES = 64

_PROCESS_SHARED, _ROBUST = 1, 1  # PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_ROBUST
_ATTRIBUTE_BYTES = 64

_libc = ctypes.CDLL(None)
for _name in ("pthread_mutex_lock", "pthread_mutex_unlock", "pthread_mutex_consistent"):
    getattr(_libc, _name).argtypes = [ctypes.c_void_p]
_libc.pthread_mutex_init.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
_lock, _unlock = _libc.pthread_mutex_lock, _libc.pthread_mutex_unlock


def make_lock(address: int) -> None:
    """Make the lock at *address*, which nobody uses yet. Raises: OSError."""
    attributes = ctypes.create_string_buffer(_ATTRIBUTE_BYTES)
    _check(_libc.pthread_mutexattr_init(attributes))
    _check(_libc.pthread_mutexattr_setpshared(attributes, _PROCESS_SHARED))
    _check(_libc.pthread_mutexattr_setrobust(attributes, _ROBUST))
    _check(_libc.pthread_mutex_init(address, attributes))
    _check(_libc.pthread_mutexattr_destroy(attributes))


def acquire(address: int) -> None:
    """Take the lock at *address*, which this thread does not have; wait for it. Raises: OSError."""
    number = _lock(address)
    if number:
        if number != errno.EOWNERDEAD:
            _check(number)
        _check(_libc.pthread_mutex_consistent(address))  # who died in an access has made it, or has not


def release(address: int) -> None:
    """Let others take the lock at *address*, which this thread has. Raises: OSError."""
    _check(_unlock(address))


def _check(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))
