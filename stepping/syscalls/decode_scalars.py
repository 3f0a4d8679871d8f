"""Decodes numbers: a register, or a field of a struct, to flags, names of enumerations, modes and devices."""

from collections.abc import Callable
from functools import cache

from stepping.syscalls.decode_values import Flags, Hex, Node, Octal, Shown, Symbol
from stepping.syscalls.flags import NameSet, find_names
from stepping.syscalls.model import Arch

#: Makes a node of an unsigned number.
Scalar = Callable[[int], Node]

_PERMISSIONS = 0o7777
_FIRST_REALTIME_SIGNAL, _LAST_SIGNAL = 32, 64


@cache
def find_scalar(name: str, bits: int, arch: Arch = "amd64") -> Scalar | None:
    """Return the decoder called *name* for numbers of so many *bits*; None if there is none."""
    special = _SPECIAL.get(name)
    if special is not None:
        return special
    names = find_names(name, arch)
    if names is None:
        return None
    return _enumeration(names, bits) if names.is_enumeration else lambda value: Flags(names.flags_of(value))


def signed(value: int, bits: int) -> int:
    """Return the two's complement number that the lowest *bits* of *value* hold."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def signal_name(signo: int) -> str:
    """Return the name of signal *signo*, or the number in decimal if there is no such signal."""
    names = find_names("signal")
    name = names.name_of(signo) if names else None
    if name is not None:
        return name
    if _FIRST_REALTIME_SIGNAL <= signo <= _LAST_SIGNAL:
        return f"SIGRT_{signo - _FIRST_REALTIME_SIGNAL}"
    return str(signo)


def _enumeration(names: NameSet, bits: int) -> Scalar:
    def decode(value: int) -> Node:
        number = signed(value, bits)
        name = names.name_of(number) or names.name_of(value)
        if name is not None:
            return Symbol(name)
        return number if -4096 < number < 4096 else Hex(value)

    return decode


def _signal(value: int) -> Node:
    name = signal_name(value)
    return signed(value, 32) if name.isdigit() else Symbol(name)


def _file_mode(value: int) -> Node:
    types = find_names("file_type")
    name = types.name_of(value & ~_PERMISSIONS) if types else None
    if name is None:
        return Octal(value)
    special = find_names("mode_bits")
    flags = special.flags_of(value & _PERMISSIONS & ~0o777) if special else ()
    return Symbol("|".join((name, *flags, f"0{value & 0o777:03o}")))


def _device(value: int) -> Node:
    major = (value >> 8) & 0xFFF | (value >> 32) & ~0xFFF & 0xFFFFFFFF
    minor = value & 0xFF | (value >> 12) & 0xFFFFFF00
    return Shown(f"makedev({major:#x}, {minor:#x})", [major, minor])


def _with_octal_rest(name: str) -> Scalar:
    def decode(value: int) -> Node:
        names = find_names(name)
        flags = names.flags_of(value & ~0o777) if names else ()
        mode = value & 0o777
        return Flags((*flags, f"0{mode:o}" if mode else "0") if mode or not flags else flags)

    return decode


def _clone_flags(value: int) -> Node:
    names = find_names("clone_flags")
    flags = names.flags_of(value & ~0xFF) if names else ()
    return Flags((*flags, signal_name(value & 0xFF)) if value & 0xFF else flags)


_SPECIAL: dict[str, Scalar] = {
    "hex": Hex,
    "int": lambda value: signed(value, 32),
    "mode": Octal,
    "open_mode": Octal,
    "file_mode": _file_mode,
    "dev": _device,
    "signal": _signal,
    "clone_flags": _clone_flags,
    "ipc_flags": _with_octal_rest("ipc_flags"),
}
