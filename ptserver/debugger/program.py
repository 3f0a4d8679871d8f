"""What a debugger knows of the program's source: functions, lines, goroutines, stacks, variables.

Programs that are none of Go's have none of it, and can be debugged by addresses.

Not trusted: the program and its memory. Valid while its target is; what is read is of the current stop.
"""

import contextlib
import struct
from collections.abc import Iterator

from goabi.binary import GoBinary
from goabi.errors import GoAbiError, MemoryFaultError
from goabi.goroutine import Goroutine, M
from goabi.pclntab import Function, SourceFrame
from goabi.sched import GoRuntime
from goabi.unwind import Stack, Unwinder
from ptserver.debugger.target import Target
from ptserver.errors import PtServerError
from stepping.blocks import Decoder
from stepping.errors import MemoryFaultError as TraceeFaultError
from stepping.instructions import Flow, Touch

_AUXV_ENTRY = struct.Struct("<QQ")
_AT_ENTRY = 9
#: How many instructions a function may have in front of the check whether its stack must grow.
_LONGEST_CHECK = 8


class LocationError(PtServerError):
    """There is no such place in the program."""

    exit_status = 64


class TargetMemory:
    """A target's memory, as `goabi` wants it."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def read(self, addr: int, size: int, /) -> bytes:
        """See `goabi.memory.MemoryReader.read`."""
        try:
            return self._target.read_memory(addr, size)
        except TraceeFaultError as error:
            raise MemoryFaultError(addr, size) from error


class ProgramView:
    """The program of *target*. binary: its file, if it is Go's. bias: where it is in memory."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.memory = TargetMemory(target)
        self.binary: GoBinary | None = None
        self.runtime: GoRuntime | None = None
        self.bias = 0
        with contextlib.suppress(GoAbiError, OSError):
            self.binary = GoBinary.open(target.path, prefer_table=True)
        if self.binary is not None:
            self.bias = load_bias(self.binary, target.read_auxv())
            with contextlib.suppress(GoAbiError):
                self.runtime = GoRuntime(self.binary, self.memory, self.bias)

    def close(self) -> None:
        """Let go of the file."""
        if self.binary is not None:
            self.binary.close()

    # -- places -----------------------------------------------------------------------------------------------

    def resolve(self, text: str, pc: int | None = None) -> list[int]:
        """Return the addresses that a location names: ``*ADDRESS``, ``FILE.go:LINE``, ``LINE`` or ``FUNCTION``.

        pc: where the program is, whose file a LINE alone is in. A function's address is behind the check whether its
        stack must grow, where its arguments are still as they were given.

        Raises:
            LocationError: there is no such place.
        """
        if text.startswith("*") or text[:2].lower() == "0x":
            try:
                return [int(text.lstrip("*"), 0)]
            except ValueError:
                raise LocationError(f"{text!r} is no address") from None
        if self.binary is None:
            raise LocationError(f"{self.target.path} is no Go program: name an address, as in *0x401000")
        file, colon, line = text.rpartition(":")
        if colon and line.isdecimal() and not file.endswith(":"):
            return self._lines(file, int(line))
        if text.isdecimal() and pc is not None:
            frames = self.frames_at(pc)
            if not frames:
                raise LocationError("there is no source here, so a line alone says nothing")
            return self._lines(frames[0].file, int(text))
        function = self.binary.functions.find_function_by_name(text)
        if function is None:
            function = self._find_by_suffix(text)
        return [self.behind_check(function) + self.bias]

    def _find_by_suffix(self, text: str) -> Function:
        assert self.binary is not None
        found = [one for one in self.binary.functions.iter_functions() if one.name.endswith("." + text)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise LocationError(f"the program has no function {text}")
        names = ", ".join(one.name for one in found[:4])
        raise LocationError(f"{text!r} may be any of {len(found)} functions: {names}...")

    def _lines(self, file: str, line: int) -> list[int]:
        """Return where the code of a line begins, in each function that has some."""
        assert self.binary is not None
        functions = self.binary.functions
        found = []
        for function in functions.iter_functions():
            try:
                own, _ = functions.file_line(function, function.entry)
            except GoAbiError:
                continue
            if not (own == file or own.endswith("/" + file)):
                continue
            at = self._first_of_line(function, line)
            if at is not None:
                found.append(at + self.bias)
        if not found:
            raise LocationError(f"no code belongs to {file}:{line}")
        return found

    def _first_of_line(self, function: Function, line: int) -> int | None:
        assert self.binary is not None
        functions = self.binary.functions
        behind = self.behind_check(function)
        at = function.entry
        quantum = self.binary.arch.pc_quantum
        previous = 0
        while at < function.end:
            number = functions.file_line(function, at)[1]
            if number == line and previous != line and not functions.frames_at(at)[0].inlined:
                return max(at, behind) if at == function.entry else at
            previous = number
            at += quantum
        return None

    def behind_check(self, function: Function) -> int:
        """Return where a function goes on after it has looked whether its stack must grow; its entry if it does not.

        Such a function is entered again when its stack has grown, so its entry is no good for a breakpoint.
        """
        assert self.binary is not None
        code = self.binary.elf.read(function.entry, min(function.end - function.entry, 128))
        decoder = Decoder(self.binary.arch.name)
        touches = Touch.NOTHING
        for count, one in enumerate(decoder.iter_instructions(code, function.entry)):
            touches |= one.touch
            if one.flow is Flow.BRANCH and touches & Touch.MEMORY and one.target > one.end:
                return one.end
            if one.flow or count == _LONGEST_CHECK:
                break
        return function.entry

    def frames_at(self, pc: int) -> tuple[SourceFrame, ...]:
        """Return the source frames at an address, innermost first; none outside of Go's code."""
        if self.binary is None:
            return ()
        with contextlib.suppress(GoAbiError):
            return self.binary.functions.frames_at(pc - self.bias)
        return ()

    def function_at(self, pc: int) -> Function | None:
        """Return the function at an address; its own addresses lack the bias."""
        if self.binary is None:
            return None
        return self.binary.functions.find_function(pc - self.bias)

    def describe(self, pc: int) -> str:
        """Return what is at an address, for people: function, file and line."""
        frames = self.frames_at(pc)
        if not frames:
            return "?"
        return f"{frames[0].function} {frames[0].file}:{frames[0].line}"

    # -- goroutines -------------------------------------------------------------------------------------------

    def m_of(self, tid: int) -> M | None:
        """Return the runtime's record of a thread, None if it has none (yet)."""
        if self.runtime is None:
            return None
        with contextlib.suppress(GoAbiError):
            return self.runtime.find_m(tid)
        return None

    def goroutine_of(self, tid: int) -> Goroutine | None:
        """Return the goroutine that a thread runs, None if it runs none."""
        m = self.m_of(tid)
        if m is None or not m.curg or self.runtime is None:
            return None
        with contextlib.suppress(GoAbiError):
            return self.runtime.read_goroutine(m.curg)
        return None

    def goid_of(self, tid: int) -> int:
        """Return the number of the goroutine that a thread runs; 0 if it runs none."""
        goroutine = self.goroutine_of(tid)
        return goroutine.goid if goroutine is not None else 0

    def stack_of(self, tid: int) -> Stack | None:
        """Return the stack of a thread, on into its goroutine's; None if nothing is known of it."""
        m = self.m_of(tid)
        if m is None or self.runtime is None:
            return None
        return Unwinder(self.runtime).unwind_thread(m, self.target.read_registers(tid).as_dict())

    def iter_calls(self, stack: Stack) -> Iterator[SourceFrame]:
        """Yield the source frames of a stack, innermost first."""
        assert self.runtime is not None
        return Unwinder(self.runtime).iter_source_frames(stack, wrappers=False)


def load_bias(binary: GoBinary, auxv: bytes) -> int:
    """Return what was added to the link-time addresses of *binary* in a process with that auxiliary vector."""
    for kind, value in _AUXV_ENTRY.iter_unpack(auxv[: len(auxv) - len(auxv) % _AUXV_ENTRY.size]):
        if kind == _AT_ENTRY:
            return binary.elf.load_bias(value)
    return 0
