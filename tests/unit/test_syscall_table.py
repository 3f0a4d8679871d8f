"""The table against the grammar, against itself, and against two independent lists of numbers."""

import platform
import re
from pathlib import Path

import pytest

from stepping.syscalls import SYSCALLS, Arch, ArgKind, ResultKind, Syscall, SyscallClass, Sysno, by_number
from stepping.syscalls.model import RESULT, Length
from tests.gofixtures import goroot

ROWS = list(SYSCALLS.values())
GO_TABLES = goroot() / "src/cmd/vendor/golang.org/x/sys/unix"
HEADER = Path(f"/usr/include/{platform.machine()}-linux-gnu/asm/unistd_64.h")

COUNTS = {ArgKind.INT, ArgKind.UINT, ArgKind.LONG, ArgKind.SIZE}
BUFFERS = {ArgKind.IN, ArgKind.OUT, ArgKind.INOUT}
VECTORS = {ArgKind.IOV_IN, ArgKind.IOV_OUT, ArgKind.MMSG_IN, ArgKind.MMSG_OUT}
FILLED = {ArgKind.OUT, ArgKind.INOUT, ArgKind.IOV_OUT}
STRINGS = {ArgKind.PATH, ArgKind.STR, ArgKind.STRV}

#: Attributes that every call has at a server: an argument of that name would be hidden by them.
RESERVED = set(
    "session id tid pid syscall name args ins outs self value errno result proceed fail answer".split()
)

#: Every call that may sleep until somebody else does something.
WAITING = set(
    """
    read write pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 sendfile splice tee vmsplice
    open openat openat2 creat open_by_handle_at fcntl ioctl flock
    poll ppoll select pselect6 epoll_wait epoll_pwait epoll_pwait2
    io_getevents io_pgetevents io_uring_enter mq_timedsend mq_timedreceive
    accept accept4 connect sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg
    vfork wait4 waitid
    syslog request_key keyctl semop semtimedop msgsnd msgrcv
    futex futex_waitv futex_wait rt_sigsuspend rt_sigtimedwait pause restart_syscall nanosleep clock_nanosleep
    """.split()
)


def test_there_is_a_row_for_every_number_that_go_knows() -> None:
    for arch in ("amd64", "arm64"):
        assert numbers_in_table(arch) == go_numbers(arch)


@pytest.mark.skipif(not HEADER.exists(), reason="needs the kernel's headers")
def test_numbers_are_those_of_the_kernel_headers() -> None:
    arch: Arch = "arm64" if platform.machine() == "aarch64" else "amd64"
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text()))
    assert len(numbers) > 300
    ours = numbers_in_table(arch)
    assert {name: ours.get(name) for name in numbers} == {name: int(n) for name, n in numbers.items()}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_is_coherent(row: Syscall) -> None:
    names = [arg.name for arg in row.args]
    assert len(row.args) <= 6
    assert len(set(names)) == len(names)
    assert not RESERVED & set(names)
    assert all(name.isidentifier() for name in names)
    for index, arg in enumerate(row.args):
        if arg.kind in BUFFERS:
            assert_length_is_known_before_the_call(row, arg.length)
        elif arg.kind in VECTORS:
            assert arg.length is not None
            assert arg.length.arg is not None
            assert row.args[arg.length.arg].kind in COUNTS
        elif arg.kind is ArgKind.REQUEST_ARG:
            assert arg.length is not None
            assert arg.length.arg is not None
            assert arg.length.arg < index
            assert row.args[arg.length.arg].kind in COUNTS
        else:
            assert arg.length is None
        if arg.valid is not None:
            assert arg.kind in FILLED
            assert_length_is_known_after_the_call(row, arg.valid)


def assert_length_is_known_before_the_call(row: Syscall, length: Length | None) -> None:
    assert length is not None
    if length.arg is None:
        assert length.scale > 0
        return
    assert length.arg != RESULT
    target = row.args[length.arg].kind
    if length.indirect:
        assert target in {ArgKind.IN, ArgKind.INOUT}  # what nobody reads before the call has no number in it
    else:
        assert target in COUNTS


def assert_length_is_known_after_the_call(row: Syscall, length: Length) -> None:
    assert length.arg is not None
    if length.arg == RESULT:
        assert row.result in {ResultKind.BYTES, ResultKind.INT}
        assert not length.indirect
    else:
        assert length.indirect
        assert row.args[length.arg].kind in {ArgKind.OUT, ArgKind.INOUT}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_that_others_may_carry_out_has_no_unknown_pointers(row: Syscall) -> None:
    if row.klass.is_resource and not row.bound:
        assert ArgKind.PTR not in {arg.kind for arg in row.args}


def test_calls_that_wait_are_those_reviewed() -> None:
    assert {row.name for row in ROWS if row.may_wait} == WAITING


def test_rows_are_found_by_name_and_number() -> None:
    openat = SYSCALLS["openat"]
    assert by_number("amd64")[Sysno(257)] is openat
    assert by_number("arm64")[Sysno(56)] is openat
    assert [arg.name for arg in openat.args] == ["dirfd", "path", "flags", "mode"]
    assert openat.klass is SyscallClass.FILE
    assert openat.result is ResultKind.FD
    assert "nosuch" not in SYSCALLS
    assert 9999 not in by_number("amd64")
    with pytest.raises(KeyError):
        SYSCALLS["nosuch"]
    with pytest.raises(KeyError):
        by_number("amd64")[Sysno(9999)]


def test_calls_missing_on_arm64_are_not_in_its_numbers() -> None:
    names = {row.name for row in by_number("arm64").values()}
    assert not names & {"open", "stat", "fork", "epoll_wait", "arch_prctl"}
    assert len(by_number("arm64")) == len(names) == len(list(by_number("arm64")))


def test_only_mapping_files_and_making_processes_concern_resources() -> None:
    conditional = {row.name: row.only_if for row in ROWS if row.only_if}
    assert set(conditional) == {"mmap", "clone"}
    assert (conditional["mmap"].mask, conditional["mmap"].value) == (0x20, 0)
    assert SYSCALLS["mmap"].args[conditional["mmap"].arg].name == "flags"


@pytest.mark.parametrize(
    ("name", "argument", "amd64", "arm64"),
    [
        ("fstat", "statbuf", 144, 128),
        ("fstatfs", "buf", 120, 120),
        ("statx", "statxbuf", 256, 256),
        ("uname", "buf", 390, 390),
        ("getrusage", "usage", 144, 144),
        ("epoll_ctl", "event", 12, 16),
        ("pipe2", "fds", 8, 8),
    ],
)
def test_sizes_of_structs(name: str, argument: str, amd64: int, arm64: int) -> None:
    (length,) = [arg.length for arg in SYSCALLS[name].args if arg.name == argument]
    assert length is not None
    assert (length.of(arch="amd64"), length.of(arch="arm64")) == (amd64, arm64)


def test_size_of_a_counted_struct_differs_by_architecture() -> None:
    events = SYSCALLS["epoll_pwait"].args[1]
    assert events.length is not None
    assert (events.length.of(3), events.length.of(3, "arm64")) == (36, 48)


def numbers_in_table(arch: Arch) -> dict[str, int]:
    return {name: int(number) for number, name in SYSCALLS.numbers(arch).items()}


def go_numbers(arch: Arch) -> dict[str, int]:
    text = (GO_TABLES / f"zsysnum_linux_{arch}.go").read_text()
    numbers = {name.lower(): int(number) for name, number in re.findall(r"\bSYS_(\w+)\s+= (\d+)", text)}
    numbers.pop("arch_specific_syscall", None)  # where a range begins
    if "fstatat" in numbers:  # Go's name for arm64's
        numbers["newfstatat"] = numbers.pop("fstatat")
    return numbers
