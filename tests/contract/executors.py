"""What every executor does, on code whose instructions have names (`fixtures/executor_c`).

Each check takes a `Bench`: a stopped process with that code in it, and the executor under test. `CHECKS` lists
them; `test_executors.py` runs them for each executor.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from goabi.elf import ElfFile
from stepping.breakpoints import Breakpoints
from stepping.executor import (
    AboutToCall,
    CannotExecute,
    CountUsedUp,
    Executor,
    Exited,
    Interrupted,
    LeftRange,
    MemoryFault,
    NewTask,
    Reached,
    Signalled,
    Until,
)
from stepping.launch import Program
from stepping.ptrace_api import FOLLOW_ALL
from stepping.registers import AMD64
from stepping.tracee import Tracee
from stepping.tracee_group import TraceeGroup
from stepping.tracee_launch import launch_stopped
from stepping.tracee_memory import TraceeMemory
from tests.cfixtures import build_c
from tests.process.tracees import end

Make = Callable[[TraceeGroup, Breakpoints, TraceeMemory], Executor]

SIGSEGV = int(signal.SIGSEGV)


@dataclass
class Bench:
    """A stopped process, what executes it, and the addresses of its code by name."""

    group: TraceeGroup
    tracee: Tracee
    memory: TraceeMemory
    breakpoints: Breakpoints
    executor: Executor
    elf: ElfFile
    #: Whether the executor makes syscalls and delivers signals itself.
    is_real: bool

    def at(self, name: str) -> int:
        symbol = self.elf.find_symbol(name)
        assert symbol is not None, name
        return symbol.addr

    def goto(self, name: str) -> None:
        """Let the thread be at *name*, out of whatever syscall it was in."""
        registers = self.tracee.read_registers()
        registers.pc = self.at(name)
        registers["orig_rax"] = (1 << 64) - 1
        self.tracee.write_registers(registers)

    def register(self, name: str) -> int:
        return self.tracee.read_registers()[name]

    def run(self, **until: object) -> object:
        return self.executor.run(self.tracee, Until(**until))  # type: ignore[arg-type]


@contextlib.contextmanager
def bench(make: Make, *, is_real: bool) -> Iterator[Bench]:
    path = build_c("executor_c", flags=("-nostdlib", "-static", "-no-pie"))
    group = launch_stopped(Program(str(path), [b"executor_c"], []), FOLLOW_ALL)
    memory = TraceeMemory(group.pid)
    breakpoints = Breakpoints(memory, AMD64)
    elf = ElfFile(path)
    leader = group.leader
    assert leader is not None
    try:
        yield Bench(group, leader, memory, breakpoints, make(group, breakpoints, memory), elf, is_real)
    finally:
        elf.close()
        memory.close()
        end(group)


def check_count(b: Bench) -> None:
    b.goto("counted")
    registers = b.tracee.read_registers()
    registers["rax"], registers["rbx"] = 5, 10
    b.tracee.write_registers(registers)
    assert b.run(instructions=3) == CountUsedUp(b.at("counted") + 4 + 3 + 4)
    assert (b.register("rax"), b.register("rbx"), b.register("rcx")) == (6, 11, 17)
    assert b.run(instructions=1) == CountUsedUp(b.at("counted_end"))


def check_address(b: Bench) -> None:
    b.goto("counted")
    target = b.at("counted_end")
    assert b.run(addresses=frozenset({target, b.at("loops")})) == Reached(target)
    assert b.register("rip") == target
    assert b.memory.read(target, 1) == b"\x90"


def check_address_where_it_begins(b: Bench) -> None:
    """A run that begins at its address goes round the loop once."""
    b.goto("loops")
    head = b.at("loop_head")
    assert b.run(addresses=frozenset({head})) == Reached(head)
    assert b.register("rcx") == 1000
    assert b.run(addresses=frozenset({head})) == Reached(head)
    assert b.register("rcx") == 999
    assert b.run(addresses=frozenset({head, b.at("loop_end")}), instructions=1) == CountUsedUp(head + 2)


def check_blocks(b: Bench) -> None:
    b.goto("jumps")
    assert b.run(blocks=1) == CountUsedUp(b.at("behind_jump"))
    # The jump that is not taken ends a block, too; the third one ends with the jump to loops.
    assert b.run(blocks=2) == CountUsedUp(b.at("loops"))
    assert b.register("rdi") == 7


def check_range(b: Bench) -> None:
    b.goto("calls")
    within = (b.at("calls"), b.at("behind_call"))
    assert b.run(within=within) == LeftRange(b.at("call_target"))
    assert b.run(within=(b.at("call_target"), b.at("executes"))) == LeftRange(b.at("behind_call"))
    b.goto("loops")
    assert b.run(within=(b.at("loops"), b.at("loop_end"))) == LeftRange(b.at("loop_end"))
    assert b.register("rcx") == 0


def check_breakpoint_of_somebody_else(b: Bench) -> None:
    b.goto("calls")
    target = b.at("call_target")
    b.breakpoints.insert(target)
    assert b.run(addresses=frozenset({b.at("behind_call")})) == Reached(target)
    assert b.run(addresses=frozenset({b.at("behind_call")})) == Reached(b.at("behind_call"))
    assert target in b.breakpoints
    assert b.memory.read(target, 1) == b"\xcc"
    b.breakpoints.remove_all()


def check_syscall(b: Bench) -> None:
    b.goto("executes")
    result = b.run(syscalls=True)
    assert isinstance(result, AboutToCall)
    assert (result.pc, result.number) == (b.at("getpid_call"), 39)
    if b.is_real:
        behind = b.at("behind_getpid")
        assert b.run(addresses=frozenset({behind}), syscalls=True) == Reached(behind)
        assert b.register("rax") == b.group.pid
        b.goto("getpid_call")
        assert b.run(instructions=1) == CountUsedUp(behind)


def check_fault(b: Bench) -> None:
    b.goto("faults")
    result = b.run(addresses=frozenset({b.at("unknown")}))
    assert isinstance(result, MemoryFault)
    assert (result.pc, result.address) == (b.at("fault_load"), 0x18)
    assert result.access in ("write", None)
    assert b.register("rip") == b.at("fault_load")
    # Whoever mends it goes on from there.
    b.tracee.drop_signal()
    registers = b.tracee.read_registers()
    registers["rbx"] = b.at("variable")
    b.tracee.write_registers(registers)
    assert b.run(addresses=frozenset({b.at("unknown")})) == Reached(b.at("unknown"))
    assert b.memory.read(b.at("variable") + 8, 8) == (5).to_bytes(8, "little")


def check_unknown_instruction(b: Bench) -> None:
    b.goto("unknown")
    result = b.run(addresses=frozenset({b.at("loops")}))
    assert isinstance(result, CannotExecute)
    assert result.pc == b.at("unknown_instruction") == b.register("rip")
    assert result.code.startswith(b"\x0f\x0b\x90")


def check_memory_and_vectors(b: Bench) -> None:
    b.goto("stores")
    assert b.run(addresses=frozenset({b.at("moves")})) == Reached(b.at("moves"))
    word = (0x1122334455667788).to_bytes(8, "little")
    changed = (0x1122334455667789).to_bytes(8, "little")
    assert b.memory.read(b.at("variable"), 32) == changed + bytes(8) + word + word
    assert b.run(addresses=frozenset({b.at("moves_done")})) == Reached(b.at("moves_done"))
    assert b.memory.read(b.at("variable") + 64, 32) == changed + bytes(8) + word + word
    assert b.register("rcx") == 0


def check_signal(b: Bench) -> None:
    """A signal ends the run before it is delivered; whoever does not drop it has it delivered."""
    b.goto("loops")
    os.kill(b.group.pid, signal.SIGUSR1)
    result = b.run(addresses=frozenset({b.at("loop_end")}))
    assert isinstance(result, Signalled)
    assert result.signo == signal.SIGUSR1
    b.tracee.drop_signal()
    assert b.run(addresses=frozenset({b.at("loop_end")})) == Reached(b.at("loop_end"))
    os.kill(b.group.pid, signal.SIGUSR1)
    b.goto("loops")
    assert isinstance(b.run(addresses=frozenset({b.at("loop_end")})), Signalled)
    ended = b.run(addresses=frozenset({b.at("loop_end")}))
    assert isinstance(ended, Exited)
    assert ended.status.signo == signal.SIGUSR1


def check_interrupt(b: Bench) -> None:
    b.goto("loops")
    b.tracee.interrupt()
    assert isinstance(b.run(addresses=frozenset({b.at("loop_end")})), Interrupted)
    assert b.run(addresses=frozenset({b.at("loop_end")})) == Reached(b.at("loop_end"))


def check_new_task(b: Bench) -> None:
    b.goto("clones")
    result = b.run(addresses=frozenset({b.at("exits")}))
    assert isinstance(result, NewTask)
    assert result.tid in b.group.tracees
    assert result.tid != b.group.pid
    assert b.run(addresses=frozenset({b.at("exits")})) == Reached(b.at("exits"))
    assert b.register("rax") == result.tid


def check_exit(b: Bench) -> None:
    b.goto("exits")
    result = b.run()
    assert isinstance(result, Exited)
    assert result.status.exit_status == 3


def check_default_ending_of_a_fault(b: Bench) -> None:
    b.goto("faults")
    result = b.run()
    assert isinstance(result, MemoryFault)
    assert result.signo == SIGSEGV
    ended = b.run()
    assert isinstance(ended, Exited)
    assert ended.status.signo == SIGSEGV


#: What every executor does.
CHECKS = [
    check_count,
    check_address,
    check_address_where_it_begins,
    check_blocks,
    check_range,
    check_breakpoint_of_somebody_else,
    check_syscall,
    check_fault,
    check_unknown_instruction,
    check_memory_and_vectors,
]

#: What those do that run the thread itself.
REAL_CHECKS = [
    check_signal,
    check_interrupt,
    check_new_task,
    check_exit,
    check_default_ending_of_a_fault,
]
