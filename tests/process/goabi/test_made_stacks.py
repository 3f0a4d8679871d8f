"""Stacks laid out by hand after each architecture's rules, on the tables of real binaries.

Programs for arm64 cannot run here, but how their frames lie is known: the return address at the stack pointer
where amd64 has it above the frame, and the link register saved by a signal handler before the call that it makes up.
"""

from collections.abc import Iterator

import pytest

from goabi.binary import GoBinary
from goabi.goroutine import Goroutine
from goabi.memory import BytesMemory
from goabi.pclntab import Function
from goabi.sched import GoRuntime
from goabi.unwind import Unwinder
from tests.gofixtures import build

STACK = 0x4000_0000_0000
STACK_BYTES = 0x4000


class Maker:
    """Lays frames one above the other, innermost first, by what the table says of each pc."""

    def __init__(self, binary: GoBinary) -> None:
        self.binary = binary
        self.uses_lr = binary.arch.uses_lr
        self.stack = bytearray(STACK_BYTES)
        self.pcs: list[int] = []
        self.sp = STACK + 0x100

    def put(self, addr: int, value: int) -> None:
        self.stack[addr - STACK : addr - STACK + 8] = value.to_bytes(8, "little")

    def pc_with_frame(self, name: str) -> tuple[Function, int, int]:
        """A function, a pc amid its code, and how deep its frame is there."""
        table = self.binary.functions
        function = table.find_function_by_name(name)
        assert function is not None, name
        step = self.binary.arch.pc_quantum
        for pc in range((function.entry + function.end) // 2 // step * step, function.end, step):
            delta = table.sp_delta(function, pc)
            if delta:
                return function, pc, delta
        raise AssertionError(f"{name} has no frame")

    def lay(self, names: list[str], injected: str = "") -> None:
        """Frames of those functions, and goexit's at last; what `injected` interrupted was called by nobody."""
        places = [self.pc_with_frame(name) for name in names]
        goexit = self.binary.functions.find_function_by_name("runtime.goexit")
        assert goexit is not None
        callers = [pc for _, pc, _ in places[1:]] + [goexit.entry + self.binary.arch.pc_quantum]
        for (function, pc, delta), caller in zip(places, callers, strict=True):
            self.pcs.append(pc)
            cfa = self.sp + delta + (0 if self.uses_lr else 8)
            self.put(self.sp if self.uses_lr else cfa - 8, caller)
            self.sp = cfa
            if self.uses_lr and function.name == injected:
                self.put(self.sp, 0xBAD)  # the link register, of no use: the interrupted function has a frame
                self.sp += 16

    def unwind(self, pc: int, sp: int) -> tuple[Unwinder, list[tuple[str, bool]], str]:
        runtime = GoRuntime(self.binary, BytesMemory([(STACK, bytes(self.stack))]))
        zero = Goroutine(*[0] * len(Goroutine._fields))
        goroutine = zero._replace(
            addr=1,
            goid=1,
            raw_status=4,
            sched_pc=pc,
            sched_sp=sp,
            stack_lo=STACK,
            stack_hi=STACK + STACK_BYTES,
        )
        unwinder = Unwinder(runtime)
        stack = unwinder.unwind_goroutine(goroutine)
        return (
            unwinder,
            [(f.function.name if f.function else "?", f.exact) for f in stack.frames],
            stack.problem,
        )


@pytest.fixture(params=["amd64", "arm64"])
def maker(request: pytest.FixtureRequest) -> Iterator[Maker]:
    with GoBinary.open(build("goabi_states", arch=request.param), prefer_table=True) as binary:
        yield Maker(binary)


def test_calls(maker: Maker) -> None:
    names = ["runtime.gopark", "runtime.chanrecv", "main.recurse", "main.recurse", "main.spawn.func1"]
    start = maker.sp
    maker.lay(names)
    _, frames, problem = maker.unwind(maker.pcs[0], start)
    assert problem == ""
    assert frames == [(name, False) for name in [*names, "runtime.goexit"]]


def test_calls_that_a_signal_made_up(maker: Maker) -> None:
    names = ["main.announce", "runtime.sigpanic", "main.recurse", "main.spawn.func1"]
    start = maker.sp
    maker.lay(names, injected="runtime.sigpanic")
    _, frames, problem = maker.unwind(maker.pcs[0], start)
    assert problem == ""
    assert [name for name, _ in frames] == [*names, "runtime.goexit"]
    # What the signal interrupted is at the very instruction.
    assert [name for name, exact in frames if exact] == ["main.recurse"]


def test_ends_that_are_none(maker: Maker) -> None:
    start = maker.sp
    maker.lay(["runtime.gopark", "main.recurse"])
    _, frames, problem = maker.unwind(maker.pcs[0], STACK + STACK_BYTES - 8)
    assert problem
    assert len(frames) <= 1
    _, frames, problem = maker.unwind(0xDEAD, start)
    assert "0xdead" in problem
    assert frames == [("?", False)]


def test_too_many_frames(maker: Maker) -> None:
    start = maker.sp
    maker.lay(["main.recurse"] * 50)
    runtime = GoRuntime(maker.binary, BytesMemory([(STACK, bytes(maker.stack))]))
    goroutine = Goroutine(*[0] * len(Goroutine._fields))._replace(
        raw_status=4, sched_pc=maker.pcs[0], sched_sp=start, stack_lo=STACK, stack_hi=STACK + STACK_BYTES
    )
    stack = Unwinder(runtime).unwind_goroutine(goroutine, max_frames=20)
    assert len(stack.frames) == 20
    assert stack.problem == "more than 20 frames"
