"""The routine by which a program makes calls itself: what it does to the registers, on an emulated processor."""

import struct

import pytest
from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_MODE_64, Uc
from unicorn.x86_const import (
    UC_X86_INS_SYSCALL,
    UC_X86_REG_R8,
    UC_X86_REG_R9,
    UC_X86_REG_R10,
    UC_X86_REG_RAX,
    UC_X86_REG_RBX,
    UC_X86_REG_RCX,
    UC_X86_REG_RDI,
    UC_X86_REG_RDX,
    UC_X86_REG_RSI,
    UC_X86_REG_RSP,
)

from stepping.direct_calls import TABLE_DESCRIPTORS, DirectTable, Sites, jumps, make_pass, remove, routine
from stepping.syscall6 import AFTER_OFFSET, EPOLLCTL, SIGNATURE

ENTRY, EPOLLCTL_AT, PAGE, DATA, PAGE_BYTES = 0x401000, 0x401800, 0x5000000, 0x5001000, 0x1000
SITES = Sites(ENTRY, EPOLLCTL_AT)
PASS = 0x8123456789ABCDEF
READ, WRITE, CLOSE, LSEEK, SENDFILE, EPOLL_CTL = 0, 1, 3, 8, 40, 233
ADD, MODIFY, EPERM = 1, 3, 1
OTHER = 7777
STACK = 0xA000000


class Memory:
    """The program's, as the host writes it."""

    def __init__(self, machine: Uc) -> None:
        self._machine = machine

    def read(self, address: int, size: int) -> bytes:
        return bytes(self._machine.mem_read(address, size))

    def write(self, address: int, data: bytes) -> None:
        self._machine.mem_write(address, data)


class Program:
    """Syscall6 with the routine, and a table. `made`: what the kernel was called with; `counted`: the count then."""

    def __init__(self) -> None:
        self.machine = machine = Uc(UC_ARCH_X86, UC_MODE_64)
        for address, size in ((ENTRY, PAGE_BYTES), (PAGE, PAGE_BYTES), (DATA, 13 * PAGE_BYTES)):
            machine.mem_map(address, size)
        machine.mem_write(ENTRY, SIGNATURE)
        machine.mem_write(EPOLLCTL_AT, EPOLLCTL)
        machine.mem_write(PAGE, routine(SITES, PASS))
        for place, jump in jumps(PAGE, SITES):
            machine.mem_write(place, jump)
        machine.hook_add(UC_HOOK_INSN, self._called, None, 1, 0, UC_X86_INS_SYSCALL)
        self.table = DirectTable(Memory(machine), DATA)  # type: ignore[arg-type]
        self.made: list[tuple[int, ...]] = []
        self.counted: list[bytes] = []

    def _called(self, machine: Uc, _data: object) -> None:
        names = (
            UC_X86_REG_RAX, UC_X86_REG_RDI, UC_X86_REG_RSI, UC_X86_REG_RDX,
            UC_X86_REG_R10, UC_X86_REG_R8, UC_X86_REG_R9,
        )  # fmt: skip
        self.made.append(tuple(machine.reg_read(name) for name in names))
        self.counted.append(bytes(machine.mem_read(DATA, 4)))

    def call(self, number: int, fd: int, *more: int) -> tuple[int, ...]:
        """Call Syscall6 as Go does; return what the kernel was called with, or the value if it was not."""
        arguments = (fd, *more, *(11, 22, 33, 44, OTHER)[len(more) :])
        names = (UC_X86_REG_RBX, UC_X86_REG_RCX, UC_X86_REG_RDI, UC_X86_REG_RSI, UC_X86_REG_R8, UC_X86_REG_R9)
        self.machine.reg_write(UC_X86_REG_RAX, number)
        for name, value in zip(names, arguments, strict=True):
            self.machine.reg_write(name, value)
        self.machine.emu_start(ENTRY, ENTRY + AFTER_OFFSET)
        assert bytes(self.machine.mem_read(DATA, 4)) == bytes(4)
        return self.made.pop() if self.made else (self.machine.reg_read(UC_X86_REG_RAX),)


@pytest.fixture
def program() -> Program:
    return Program()


@pytest.mark.parametrize("fd", [0, 3, 7, 8, 63, 64, 1000, TABLE_DESCRIPTORS - 1])
def test_what_is_in_the_table_is_read_and_written_with_the_pass(program: Program, fd: int) -> None:
    program.table.set(fd)
    for number in (READ, WRITE):
        assert program.call(number, fd) == (number, fd, 11, 22, 33, 44, PASS)
    assert program.counted == [b"\1\0\0\0"] * 2


def test_everything_else_is_as_it_was(program: Program) -> None:
    program.table.set(5)
    calls = [(READ, 4), (WRITE, 6), (READ, 13), (CLOSE, 5), (LSEEK, 5), (READ, TABLE_DESCRIPTORS + 5)]
    calls += [(READ, 1 << 32 | 5), (WRITE, (1 << 64) - 1), ((1 << 64) - 1, 5)]
    for number, fd in calls:
        assert program.call(number, fd) == (number, fd, 11, 22, 33, 44, OTHER)


@pytest.mark.parametrize("fd", [0, 3, 4, 1000, TABLE_DESCRIPTORS - 1])
def test_offsets_of_files_in_the_table_are_moved_with_the_pass(program: Program, fd: int) -> None:
    program.table.set(fd, is_file=True)
    for number in (READ, LSEEK):
        assert program.call(number, fd) == (number, fd, 11, 22, 33, 44, PASS)
    for other in (fd ^ 1, fd + TABLE_DESCRIPTORS):
        assert program.call(LSEEK, other)[6] == OTHER
    program.table.clear(fd)
    for number in (READ, LSEEK):
        assert program.call(number, fd)[6] == OTHER


def test_files_in_the_table_are_sent_to_what_is_no_file_and_there_too(program: Program) -> None:
    program.table.set(5, is_file=True)
    program.table.set(6)
    program.table.set(7, is_file=True)
    assert program.call(SENDFILE, 6, 5, 0, 99) == (SENDFILE, 6, 5, 0, 99, 44, PASS)
    for arguments in (
        (6, 5, 4096),
        (6, 4, 0),
        (6, 6, 0),
        (4, 5, 0),
        (7, 5, 0),
        (6, TABLE_DESCRIPTORS + 5, 0),
    ):
        assert program.call(SENDFILE, *arguments) == (SENDFILE, *arguments, 33, 44, OTHER)
    program.table.clear(6)
    assert program.call(SENDFILE, 6, 5, 0)[6] == OTHER


def test_epoll_refuses_files_in_the_table_and_nothing_else(program: Program) -> None:
    program.table.set(5, is_file=True)
    program.table.set(6)
    assert program.call(EPOLL_CTL, 4, ADD, 5) == ((1 << 64) - EPERM,)
    for arguments in ((4, ADD, 6), (4, MODIFY, 5), (5, ADD, 4), (4, ADD, TABLE_DESCRIPTORS + 5)):
        assert program.call(EPOLL_CTL, *arguments)[1:4] == arguments
    program.table.clear(5)
    assert program.call(EPOLL_CTL, 4, ADD, 5)[6] == OTHER


@pytest.mark.parametrize(
    ("operation", "fd", "refused"),
    [(ADD, 5, True), (ADD, 6, False), (MODIFY, 5, False), (ADD, 1 << 20, False)],
)
def test_the_runtimes_own_epoll_ctl_is_refused_alike(
    program: Program, operation: int, fd: int, refused: bool
) -> None:
    program.table.set(5, is_file=True)
    program.table.set(6)
    machine = program.machine
    machine.mem_map(STACK, PAGE_BYTES)
    machine.mem_write(STACK, struct.pack("<QiiiiQi", 0, 4, operation, fd, 0, 99, 0))
    machine.reg_write(UC_X86_REG_RSP, STACK)
    machine.emu_start(EPOLLCTL_AT, EPOLLCTL_AT + len(EPOLLCTL) - 1)
    (result,) = struct.unpack("<i", machine.mem_read(STACK + 32, 4))
    if refused:
        assert (program.made, result) == ([], -EPERM)
    else:
        assert program.made[0][:5] == (EPOLL_CTL, 4, operation, fd, 99)


def test_what_is_taken_out_is_as_it_was_and_its_neighbours_are_not(program: Program) -> None:
    for fd in (4, 5, 6):
        program.table.set(fd)
    program.table.clear(5)
    assert [program.call(READ, fd)[6] for fd in (4, 5, 6)] == [PASS, OTHER, PASS]
    program.table.await_unused()


def test_it_is_taken_out_and_nothing_else_is(program: Program) -> None:
    program.table.set(5)
    memory = Memory(program.machine)
    remove(memory, ENTRY)  # type: ignore[arg-type]
    assert memory.read(ENTRY, len(SIGNATURE)) == SIGNATURE
    assert memory.read(EPOLLCTL_AT, len(EPOLLCTL)) == EPOLLCTL
    assert program.call(READ, 5)[6] == OTHER
    remove(memory, ENTRY)  # type: ignore[arg-type]
    other = b"\xe9" + struct.pack("<i", DATA - ENTRY - 5)
    memory.write(ENTRY, other)
    remove(memory, ENTRY)  # type: ignore[arg-type]
    assert memory.read(ENTRY, 5) == other


def test_passes_are_of_64_bits_and_differ() -> None:
    passes = {make_pass() for _ in range(100)}
    assert len(passes) == 100
    assert all(1 << 63 <= given < 1 << 64 for given in passes)
