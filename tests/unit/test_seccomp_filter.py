"""The filter assembler on cases whose outcome can be read off, and against this machine's kernel."""

import ctypes
import errno
import os
import struct
from collections.abc import Callable

import pytest

from stepping.errors import SeccompRefusedError
from stepping.seccomp import Rule, Verdict, assemble, install
from stepping.syscalls import SYSCALLS, OnlyIf, Sysno
from tests import bpf

AMD64, ARM64, I386 = 0xC000003E, 0xC00000B7, 0x40000003
X32 = 0x40000000


def verdict(program: bytes, nr: int, *args: int, arch: int = AMD64) -> int:
    return bpf.run(program, bpf.seccomp_data(nr, arch, 0x401000, (*args, *[0] * (6 - len(args)))))


def denied(number: int) -> int:
    return Verdict.DENY.value | number


def test_no_rules_allow_everything() -> None:
    program = assemble([], "amd64")
    assert len(program) == 8
    assert {verdict(program, nr, arch=arch) for nr in (0, 1, 500, X32 | 1) for arch in (AMD64, I386)} == {
        Verdict.ALLOW.value
    }


def test_a_rule_takes_its_number_and_no_neighbour() -> None:
    program = assemble([Rule(Sysno(257), Verdict.NOTIFY)], "amd64")
    assert verdict(program, 257) == Verdict.NOTIFY.value
    assert {verdict(program, nr) for nr in (0, 256, 258, 0xFFF0)} == {Verdict.ALLOW.value}


def test_calls_with_the_pass_are_allowed() -> None:
    given = 0x8123456789ABCDEF
    program = assemble(
        [Rule(Sysno(0), Verdict.NOTIFY, given_pass=given), Rule(Sysno(3), Verdict.NOTIFY)], "amd64"
    )
    assert verdict(program, 0, 1, 2, 3, 4, 5, given) == Verdict.ALLOW.value
    almost = (0, given ^ 1, given ^ 1 << 32, given & 0xFFFFFFFF, given >> 32)
    for nr, passed in [*((0, passed) for passed in almost), (3, given)]:
        assert verdict(program, nr, 1, 2, 3, 4, 5, passed) == Verdict.NOTIFY.value
    assert verdict(program, 0, given, given, given, given, given) == Verdict.NOTIFY.value


def test_the_calls_of_other_abis_do_not_escape_the_rules() -> None:
    program = assemble([Rule(Sysno(257), Verdict.NOTIFY)], "amd64")
    assert verdict(program, 257, arch=I386) == denied(errno.ENOSYS)
    assert verdict(program, 1, arch=I386) == denied(errno.ENOSYS)
    assert verdict(program, X32 | 257) == denied(errno.ENOSYS)
    assert verdict(program, 0xFFFFFFFF) == denied(errno.ENOSYS)
    assert (
        verdict(assemble([Rule(Sysno(56), Verdict.NOTIFY)], "arm64"), 56, arch=ARM64) == Verdict.NOTIFY.value
    )


def test_the_first_of_two_rules_for_a_number_counts() -> None:
    rules = [Rule(Sysno(1), Verdict.DENY, errno=errno.ENOSPC), Rule(Sysno(1), Verdict.NOTIFY)]
    assert verdict(assemble(rules, "amd64"), 1) == denied(errno.ENOSPC)


def test_a_condition_looks_at_the_low_half_of_its_argument() -> None:
    rule = Rule(Sysno(9), Verdict.NOTIFY, OnlyIf(arg=3, mask=0x20, value=0))
    program = assemble([rule], "amd64")
    assert verdict(program, 9, 0, 0, 0, 0x02) == Verdict.NOTIFY.value
    assert verdict(program, 9, 0, 0, 0, 0x22) == Verdict.ALLOW.value
    assert verdict(program, 9, 0, 0, 0, 0x20_0000_0002) == Verdict.NOTIFY.value


def test_every_call_of_the_table_at_once_fits_a_filter() -> None:
    rules = [
        Rule(row.numbers["amd64"], Verdict.NOTIFY, row.only_if)
        for row in SYSCALLS.values()
        if "amd64" in row.numbers
    ]
    program = assemble(rules, "amd64")
    assert {verdict(program, rule.sysno) for rule in rules if rule.only_if is None} == {Verdict.NOTIFY.value}


def test_scattered_rules_with_long_jumps() -> None:
    """More than 255 instructions between a jump and its target."""
    rules = [Rule(Sysno(nr), Verdict.DENY, OnlyIf(0, 1, 1), errno=1 + nr % 4000) for nr in range(0, 900, 2)]
    program = assemble(rules, "amd64")
    for nr in range(900):
        assert verdict(program, nr, 1) == (Verdict.ALLOW.value if nr % 2 else denied(1 + nr % 4000))


def test_too_many_rules_are_refused() -> None:
    rules = [Rule(Sysno(nr), Verdict.NOTIFY) for nr in range(0, 6000, 2)]
    with pytest.raises(ValueError, match="too long for the kernel"):
        assemble(rules, "amd64")


# This machine's kernel, in a child each time, since a filter stays for good.


def in_child(action: Callable[[], bytes]) -> bytes:
    """Return what *action* returns in a forked child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.write(writer, action())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        result = file.read()
    assert os.waitpid(pid, 0)[1] == 0
    return result


libc = ctypes.CDLL(None, use_errno=True)


def raw(nr: int, *args: int) -> int:
    """Return the call's result, or its negative errno."""
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(nr), *map(ctypes.c_long, args))
    return -ctypes.get_errno() if result == -1 else int(result)


def test_the_kernel_does_what_the_interpreter_does() -> None:
    """Unused numbers are ENOSYS without a filter, so every verdict can be told apart."""
    base = 0xF000
    rules = [
        Rule(Sysno(base + 2), Verdict.DENY, errno=errno.ENOSPC),
        Rule(Sysno(base + 3), Verdict.DENY, OnlyIf(2, 0xF0, 0x10), errno=errno.EROFS),
        *[Rule(Sysno(base + 10 + 2 * i), Verdict.DENY, OnlyIf(5, 3, 1), errno=100 + i) for i in range(100)],
    ]
    program = assemble(rules, "amd64")
    cases = [(base + offset, arg) for offset in range(220) for arg in (0, 1, 0x11, 0x1_0000_0011)]

    def expected(nr: int, arg: int) -> int:
        result = bpf.run(program, bpf.seccomp_data(nr, AMD64, 0, [arg] * 6))
        return -errno.ENOSYS if result == Verdict.ALLOW.value else -(result & 0xFFFF)

    def observe() -> bytes:
        assert install(program, listener=False) == -1
        return struct.pack(f"={len(cases)}i", *(raw(nr, *[arg] * 6) for nr, arg in cases))

    observed = struct.unpack(f"={len(cases)}i", in_child(observe))
    assert list(observed) == [expected(nr, arg) for nr, arg in cases]
    assert len(set(observed)) > 100


def test_a_second_listener_is_refused_with_what_to_do() -> None:
    program = assemble([Rule(Sysno(0xF000), Verdict.NOTIFY)], "amd64")

    def twice() -> bytes:
        assert install(program, listener=True) >= 0
        try:
            install(program, listener=True)
        except SeccompRefusedError as error:
            return str(error).encode()
        return b"accepted"

    assert b"already runs under a filter with a listener" in in_child(twice)


def test_a_filter_without_privileges_gives_up_gaining_them() -> None:
    program = assemble([Rule(Sysno(0xF000), Verdict.DENY, errno=errno.EXDEV)], "amd64")

    def unprivileged() -> bytes:
        if os.getuid() == 0:
            os.setresuid(65534, 65534, 65534)
        install(program, listener=False)
        return repr((raw(0xF000), libc.prctl(39, 0, 0, 0, 0))).encode()  # PR_GET_NO_NEW_PRIVS

    assert in_child(unprivileged) == repr((-errno.EXDEV, 1)).encode()


def test_a_program_the_kernel_rejects_is_an_error_with_its_errno() -> None:
    def reject() -> bytes:
        try:
            install(struct.pack("<HBBI", 0xFFFF, 0, 0, 0), listener=False)
        except SeccompRefusedError as error:
            return str(error.errno).encode()
        return b"accepted"

    assert in_child(reject) == str(errno.EINVAL).encode()
