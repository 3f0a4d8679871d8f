"""Logs the calls and signals of an emulated program as the trace's events, with goroutines and their stacks.

The emulator sees every call, so there is nothing to be injected into the program and nothing that is missed. What a
call reads is copied before it is made, what it fills when it has returned. Times are those of the program's clock.

Children that the program forks are not followed.

Thread rules: those of the machine.
"""

import contextlib
import os
import struct
import time
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from goabi.elf_header import read_elf_header
from goabi.errors import GoAbiError
from ptserver.emulated.child_numbers import REPEATABLE_PID
from ptserver.emulated.go_events import EmulatedGoEvents
from ptserver.emulated.goids import EmulatedGoids
from ptserver.hosts.endings import exit_of
from ptserver.tracelog.errors import TraceSourceError
from ptserver.tracelog.events import ExitEvent, Frame, SignalEvent, SyscallEvent, TraceSink, TraceStart
from ptserver.tracelog.frame_names import FrameNames
from ptserver.tracelog.options import TraceOptions
from stepping.emulation.address_space import AddressSpace
from stepping.emulation.clock import CountingClock
from stepping.emulation.machine import Machine
from stepping.emulation.registers import Context
from stepping.emulation.threads import Thread, keep_descriptor
from stepping.errors import MemoryFaultError
from stepping.syscall_copies import ClippedMemory, copy_ins, copy_outs
from stepping.syscalls import Syscall
from stepping.syscalls.marshal import Args, Gathered

_MAX_ERRNO = 4095
_MAX_FRAMES = 64
#: How long an event may lie in the sink's buffer.
_FLUSH_SECONDS = 0.1
_U64 = struct.Struct("<Q")
_PAIR = struct.Struct("<QQ")

#: Of `Context.read_general`: arm64's frame pointer and link register; amd64's frame pointer.
_ARM64_FP, _ARM64_LR = 29, 30
_AMD64_FP = 10


class _Begun(NamedTuple):
    """A call that has not returned."""

    row: Syscall
    call: Gathered
    began: int
    goid: int | None
    stack: tuple[Frame, ...]


class EmulatedTrace:
    """Gives *sink* an event for each call of *names*; see `stepping.emulation.resources.Observer`.

    path: the program's file; outside: of calls that may be about the program itself (mmap, clone) only those that are
    not; stacks: name the functions that led to each call, as far as they are Go's. events: kinds of what becomes of
    goroutines.

    Raises:
        TraceSourceError: there are no such events of this program.
    """

    def __init__(
        self,
        sink: TraceSink,
        names: Collection[str],
        path: str,
        *,
        outside: bool,
        stacks: bool,
        events: Collection[str] = (),
    ) -> None:
        self._sink = sink
        self._names = names
        self._outside = outside
        self._begun: dict[int, _Begun] = {}
        self._flushed = time.monotonic()
        self._goids = self._frames = None
        with contextlib.suppress(GoAbiError, OSError):  # it is no program of Go's
            self._goids = EmulatedGoids(path)
            if stacks:
                self._frames = FrameNames(path, copied=True)
        self._events: EmulatedGoEvents | None = None
        if events:
            try:
                self._events = EmulatedGoEvents(sink, events, path)
            except (GoAbiError, OSError) as error:
                raise TraceSourceError(f"events of goroutines cannot be had: {error}") from error

    def start(self, machine: Machine) -> None:
        """Begin; the program has not run yet."""
        if self._events is not None:
            self._events.start(machine)

    def begins(self, machine: Machine, thread: Thread, row: Syscall, args: list[int], began: int) -> None:
        """See `Observer`."""
        if row.name not in self._names:
            return
        only = row.only_if
        if self._outside and only is not None and args[only.arg] & only.mask != only.value:
            return
        a0, a1, a2, a3, a4, a5 = args
        registers: Args = (a0, a1, a2, a3, a4, a5)
        call = copy_ins(row, registers, ClippedMemory(machine.space))
        goid = None
        stack: tuple[Frame, ...] = ()
        if self._goids is not None:
            thread.context.save()
            goid = self._goids.of(thread.context, machine) or None
            if self._frames is not None:
                self._frames.load_bias = machine.load_bias
                stack = self._frames(_return_addresses(thread.context, machine))
        self._begun[thread.tid] = _Begun(row, call, began, goid, stack)

    def called(self, machine: Machine, tid: int, result: int | None, ended: int) -> None:
        """See `Observer`."""
        begun = self._begun.pop(tid, None)
        if begun is None:
            return
        row, call, began, goid, stack = begun
        value, error, outs = result, 0, {}
        if result is not None:
            outs = copy_outs(row, call, result, ClippedMemory(machine.space))
            if -_MAX_ERRNO <= result < 0:
                value, error = -1, -result
        self._sink.event(
            SyscallEvent(
                began,
                None if result is None else ended - began,
                machine.pid,
                tid,
                row.name,
                call.args,
                call.ins,
                outs,
                value,
                error,
                goid=goid,
                stack=stack,
            )
        )
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def signalled(self, machine: Machine, tid: int, number: int, info: bytes) -> None:
        """See `Observer`."""
        self._sink.event(SignalEvent(machine.clock.now(), machine.pid, tid, number, info))

    def flush(self) -> None:
        """See `Observer`."""
        self._sink.flush()
        self._flushed = time.monotonic()

    def ended(self, machine: Machine, status: int) -> None:
        """See `Observer`."""
        for tid, (row, call, began, goid, stack) in self._begun.items():
            self._sink.event(
                SyscallEvent(
                    began,
                    None,
                    machine.pid,
                    tid,
                    row.name,
                    call.args,
                    call.ins,
                    unfinished=True,
                    goid=goid,
                    stack=stack,
                )
            )
        self._sink.event(ExitEvent(machine.clock.now(), machine.pid, machine.pid, *exit_of(status)))

    def close(self) -> None:
        """Give up what is known of the program's file; the sink is not closed."""
        if self._events is not None:
            self._events.close()
        if self._frames is not None:
            self._frames.close()


def check_source(trace: TraceOptions) -> None:
    """Raise TraceSourceError if the log is to be taken from where there is nothing of emulated programs."""
    if trace.source != "auto":
        raise TraceSourceError(f"--source={trace.source} is for programs that run natively")


@contextlib.contextmanager
def open_trace(
    trace: TraceOptions, path: str, argv: Sequence[bytes], seed: int | None, pid: int
) -> Iterator[EmulatedTrace]:
    """Open the log of the program at *path*, and close it at the end. seed: as of `run_emulated`; pid: its number.

    Raises:
        TraceSourceError, TraceOutputError: it cannot be had, or its file cannot be made.
    """
    check_source(trace)
    arch = read_elf_header(path).arch
    words = tuple(map(os.fsdecode, argv))
    if seed is None:
        start = TraceStart.now(words, pid, arch)
    else:
        began = CountingClock.BEGIN
        start = TraceStart(words, arch, began, CountingClock.START + began, REPEATABLE_PID)
    runtime = trace.runtime()
    names = trace.names() | runtime.calls  # which are no different from others here
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(
            contextlib.closing(trace.open([*argv], start=start, keep=keep_descriptor, waits_by_events=True))
        )
        outside = not trace.filters
        observer = EmulatedTrace(
            sink, names, path, outside=outside, stacks=trace.stacks, events=runtime.all_events
        )
        yield stack.enter_context(contextlib.closing(observer))


def _word(space: AddressSpace, address: int) -> int:
    return int(_U64.unpack(space.read(address, 8))[0])


def _return_addresses(context: Context, machine: Machine) -> bytes:
    """Return where the call was made from and by whom, innermost first, as `FrameNames` takes them."""
    general, space = context.read_general(), machine.space
    found = []
    try:
        if machine.abi.arch == "arm64":
            frame = general[_ARM64_FP]
            found.append(general[_ARM64_LR])
        else:
            frame = general[_AMD64_FP]
            found.append(_word(space, context.sp))
        while frame and len(found) < _MAX_FRAMES:
            above, returns_to = _PAIR.unpack(space.read(frame, _PAIR.size))
            if returns_to:
                found.append(returns_to)
            if above <= frame:
                break
            frame = above
    except MemoryFaultError:
        pass  # the stack ends there, or it is none of Go's
    return b"".join(map(_U64.pack, found))
