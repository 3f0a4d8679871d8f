"""A stopped Go program whose compiled code tests execute piece by piece, with registers of their own choice."""

import mmap
import re

from goabi.binary import GoBinary
from ptserver.blocks.of_program import open_blocks
from stepping.block_cache import Block
from stepping.breakpoints import Breakpoints
from stepping.launch import Program
from stepping.ptrace_api import FOLLOW_THREADS
from stepping.registers import AMD64
from stepping.remote_syscall import remote_syscall
from stepping.singlestep import StepExecutor
from stepping.tracee_group import TraceeGroup
from stepping.tracee_launch import launch_stopped
from stepping.tracee_memory import TraceeMemory
from tests.gofixtures import build
from tests.process.tracees import end

#: Addresses that lead nowhere: what registers hold that no local block may follow.
NOWHERE = 0x0000_5150_0000_0000
ROOM_BYTES = 0x40000
USED_BYTES = 0x4000
#: One function of so many is taken.
_TAKEN = 8


class Steppable:
    """A stopped Go program, whose blocks can be executed one by one with registers of the test's choice."""

    def __init__(self) -> None:
        self.binary = GoBinary.open(build("goroutines"))
        self.blocks = open_blocks(self.binary, cached=False)
        functions = self.binary.functions
        self.all: list[Block] = []
        self.local: list[Block] = []
        for number, function in enumerate(functions.iter_functions()):
            if number % _TAKEN:
                continue  # decoding all of them takes half a minute
            if re.fullmatch(r"runtime\.call\d+", function.name):
                continue  # frames of up to a gigabyte
            self.all += self.blocks.blocks_of(function.entry, function.end)
            found = self.blocks.local_blocks(function.entry, function.end)
            self.local += [block for run in found for block in run.blocks]
        self.group: TraceeGroup = launch_stopped(Program(self.binary.path, [b"x"], []), FOLLOW_THREADS)
        self.memory = TraceeMemory(self.group.pid)
        leader = self.group.leader
        assert leader is not None
        self.tracee = leader
        self.breakpoints = Breakpoints(self.memory, AMD64)
        self.stepper = StepExecutor(self.group, self.breakpoints)
        self.registers = leader.read_registers()
        with remote_syscall(leader) as sys:
            private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self.stack = sys.call("mmap", 0, ROOM_BYTES, mmap.PROT_READ | mmap.PROT_WRITE, private, -1, 0)

    def prepare(self, block: Block, seed: int) -> None:
        self.tracee.drop_signal()
        sp = self.stack + ROOM_BYTES // 2
        self.memory.write(sp - USED_BYTES, bytes(2 * USED_BYTES))
        registers = self.registers.copy()
        for index, name in enumerate(AMD64.names):
            if name.startswith("r") and name not in ("rip", "rsp"):
                registers[name] = NOWHERE + (seed * (index + 1) & 0xFFFF_FFF8)
        registers.pc, registers.sp = block.start, sp
        registers["fs_base"] = self.stack + ROOM_BYTES // 4  # storage of the thread's own
        registers["orig_rax"] = (1 << 64) - 1
        self.tracee.write_registers(registers)

    def close(self) -> None:
        end(self.group)
        self.memory.close()
        self.binary.close()
