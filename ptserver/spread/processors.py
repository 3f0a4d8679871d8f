"""What hosts' processors can do: a program looks once, at host 0, and then uses it everywhere. Pure.

Source: the options of internal/cpu/cpu_x86.go (Go 1.27), which GODEBUG=cpu.NAME=off turns off; the flags of
/proc/cpuinfo.
"""

from collections.abc import Iterable, Sequence

from ptserver.errors import PtServerError

#: What Go's programs look for, by the kernel's name, with the name that GODEBUG has for it.
_OPTIONS = {
    "adx": "adx",
    "aes": "aes",
    "erms": "erms",
    "fsrm": "fsrm",
    "pclmulqdq": "pclmulqdq",
    "rdtscp": "rdtscp",
    "sha_ni": "sha",
    "vpclmulqdq": "vpclmulqdq",
    "popcnt": "popcnt",
    "pni": "sse3",
    "sse4_1": "sse41",
    "sse4_2": "sse42",
    "ssse3": "ssse3",
    "avx": "avx",
    "avx2": "avx2",
    "bmi1": "bmi1",
    "bmi2": "bmi2",
    "fma": "fma",
    "avx512f": "avx512f",
    "avx512cd": "avx512cd",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
}
_GODEBUG = b"GODEBUG="


class ProcessorError(PtServerError):
    """A host's processor cannot do what the program may use."""

    exit_status = 126


def lacking(ours: Iterable[str], theirs: Iterable[str]) -> frozenset[str]:
    """Return what Go looks for that *ours* has and *theirs* has not; flags as in /proc/cpuinfo."""
    return frozenset(_OPTIONS.keys() & set(ours) - set(theirs))


def check(address: str, lacks: Iterable[str]) -> None:
    """Refuse a host that lacks something.

    Raises:
        ProcessorError: says what.
    """
    names = ", ".join(sorted(lacks))
    if names:
        raise ProcessorError(
            f"the processor of {address} lacks {names}, which the program may use here: --cpu=common runs it without"
        )


def without(environment: Sequence[bytes], lacks: Iterable[str]) -> list[bytes]:
    """Return *environment* (``NAME=VALUE``) such that a Go program does not use what is lacking."""
    words = ",".join(f"cpu.{_OPTIONS[flag]}=off" for flag in sorted(lacks)).encode()
    if not words:
        return list(environment)
    before = [entry[len(_GODEBUG) :] for entry in environment if entry.startswith(_GODEBUG)]
    others = [entry for entry in environment if not entry.startswith(_GODEBUG)]
    return [*others, _GODEBUG + b",".join([*filter(None, before), words])]
