"""seccomp filters: which syscalls of a program are allowed, sent to a listener, traced or denied.

A filter is a classic BPF program that the kernel runs for each syscall. It is assembled from rules by number; a
call without a rule is allowed. Calls of another ABI (int 0x80, x32) would escape rules made for this one, so a
filter that has any rule denies them with ENOSYS.

Rules for one number are decided by its first rule. The kernel caches the numbers that are always allowed
(Linux 5.11), so an unruled call costs some ten nanoseconds.

Source: linux/filter.h, linux/seccomp.h, seccomp(2).
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from stepping.errors import SeccompRefusedError
from stepping.syscalls.model import Arch, OnlyIf, Sysno


class Verdict(Enum):
    """What the kernel does with a call: `SECCOMP_RET_*` without its data."""

    ALLOW = 0x7FFF0000
    NOTIFY = 0x7FC00000
    TRACE = 0x7FF00000
    DENY = 0x00050000


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to syscall *sysno*; with *only_if*, just to calls of which that holds (others are allowed).

    errno: what a denied call returns, 1 to 4095. given_pass: calls whose sixth argument is that are allowed, unless
    it is 0; then *only_if* may not be set.
    """

    sysno: Sysno
    verdict: Verdict
    only_if: OnlyIf | None = None
    errno: int = errno.ENOSYS
    given_pass: int = 0


_AUDIT_ARCH: dict[Arch, int] = {"amd64": 0xC000003E, "arm64": 0xC00000B7}
_X32_BIT = 0x4000_0000

_LD_ABS, _AND, _JA, _JEQ, _JGE, _RET = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
_NR_OFFSET, _ARCH_OFFSET, _ARGS_OFFSET = 0, 4, 16
_PASS_OFFSET = _ARGS_OFFSET + 8 * 5

_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_NR_SECCOMP: dict[str, int] = {"x86_64": 317, "aarch64": 277}
_PR_SET_NO_NEW_PRIVS = 38

Instruction = tuple[int, int, int, int]


def assemble(rules: Iterable[Rule], arch: Arch) -> bytes:
    """Return the BPF program for *rules*: an array of struct sock_filter (8 bytes each).

    The program finds a call's rule by binary search over the numbers.

    Raises:
        ValueError: the rules need more than the 4,096 instructions that the kernel takes.
    """
    by_sysno: dict[int, Rule] = {}
    for rule in rules:
        by_sysno.setdefault(rule.sysno, rule)
    if not by_sysno:
        return _pack([_ret(Verdict.ALLOW)])
    foreign = _ret(Verdict.DENY, errno.ENOSYS)
    program = [
        (_LD_ABS, 0, 0, _ARCH_OFFSET),
        (_JEQ, 1, 0, _AUDIT_ARCH[arch]),
        foreign,
        (_LD_ABS, 0, 0, _NR_OFFSET),
        (_JGE, 0, 1, _X32_BIT),
        foreign,
        *_search(_segments(by_sysno)),
    ]
    if len(program) > 4096:
        raise ValueError(f"a filter of {len(program)} instructions is too long for the kernel")
    return _pack(program)


def install(program: bytes, *, listener: bool) -> int:
    """Install *program* on the calling thread for good; return the listener's descriptor, or -1 without one.

    Without CAP_SYS_ADMIN the thread first gives up gaining privileges by exec (`no_new_privs`).

    Raises:
        SeccompRefusedError: the kernel refuses; the message says what it needs.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    number = _NR_SECCOMP[os.uname().machine]
    flags = _NEW_LISTENER if listener else 0
    result = libc.syscall(number, _SET_MODE_FILTER, flags, header)
    if result < 0 and ctypes.get_errno() == errno.EACCES:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        result = libc.syscall(number, _SET_MODE_FILTER, flags, header)
    if result < 0:
        raise SeccompRefusedError(ctypes.get_errno())
    return int(result) if listener else -1


def _segments(rules: dict[int, Rule]) -> list[tuple[int, list[Instruction]]]:
    """Cut the line of numbers where the outcome changes: (first number, code for it and what follows)."""
    allow = [_ret(Verdict.ALLOW)]
    segments: list[tuple[int, list[Instruction]]] = [(0, allow)]
    for sysno in sorted(rules):
        for first, code in ((sysno, _leaf(rules[sysno])), (sysno + 1, allow)):
            if segments[-1][0] == first:
                segments.pop()
            if not segments or segments[-1][1] != code:
                segments.append((first, code))
    return segments


def _search(segments: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    """Return code that jumps to the segment which holds the number in the accumulator."""
    if len(segments) == 1:
        return segments[0][1]
    middle = len(segments) // 2
    low, high = _search(segments[:middle]), _search(segments[middle:])
    first = segments[middle][0]
    if len(low) <= 255:
        return [(_JGE, len(low), 0, first), *low, *high]
    return [(_JGE, 0, 1, first), (_JA, 0, 0, len(low)), *low, *high]


def _leaf(rule: Rule) -> list[Instruction]:
    verdict = _ret(rule.verdict, rule.errno if rule.verdict is Verdict.DENY else 0)
    if rule.given_pass:
        return [
            (_LD_ABS, 0, 0, _PASS_OFFSET),
            (_JEQ, 0, 3, rule.given_pass & 0xFFFFFFFF),
            (_LD_ABS, 0, 0, _PASS_OFFSET + 4),
            (_JEQ, 0, 1, rule.given_pass >> 32),
            _ret(Verdict.ALLOW),
            verdict,
        ]
    if rule.only_if is None:
        return [verdict]
    only = rule.only_if
    return [
        (_LD_ABS, 0, 0, _ARGS_OFFSET + 8 * only.arg),
        (_AND, 0, 0, only.mask),
        (_JEQ, 0, 1, only.value),
        verdict,
        _ret(Verdict.ALLOW),
    ]


def _ret(verdict: Verdict, data: int = 0) -> Instruction:
    return (_RET, 0, 0, verdict.value | data)


def _pack(program: list[Instruction]) -> bytes:
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
