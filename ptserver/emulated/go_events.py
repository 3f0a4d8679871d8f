"""What becomes of the goroutines of an emulated program: seen by the emulator at the entries of runtime functions.

What a probe of the ring would record (`stepping.ring_probes`) is put together here as such a record, and made into an
event as those are. The program is not changed, and other code runs as fast as ever.

Thread rules: those of the machine.
"""

from collections.abc import Collection
from functools import partial

from goabi.binary import GoBinary
from goabi.errors import LayoutError
from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.events import TraceSink
from ptserver.tracelog.frame_names import FrameNames
from ptserver.tracelog.go_events import GoEvents, wanted_changes, wanted_moments
from stepping.emulation.machine import Machine
from stepping.errors import MemoryFaultError
from stepping.ring_batch import RingBatch
from stepping.ring_layout import MAX_FRAMES, RECORD, STACK
from stepping.ring_probes import FUNCTIONS, MAX_CHANNELS, Moment

_WORD = 8
_WAITING = 4
_U32 = (1 << 32) - 1

#: Of `Context.read_general`: the first three arguments of a function, g, the frame pointer, arm64's link register.
_AMD64 = (13, 11, 14, 6, 10, None)
_ARM64 = (0, 1, 2, 28, 29, 30)


class EmulatedGoEvents:
    """Gives *sink* events of *kinds*. path: the program's file; `start` begins.

    Raises:
        OSError, GoAbiError: it is none of Go's, or of an unknown version.
    """

    def __init__(self, sink: TraceSink, kinds: Collection[str], path: str) -> None:
        self._sink = sink
        with GoBinary.open(path, prefer_table=True, copied=True) as binary:
            layouts = binary.layouts
            moments = wanted_moments(kinds) | ({Moment.STATUS} if wanted_changes(kinds) else set())
            functions = {
                moment: binary.functions.find_function_by_name(FUNCTIONS[moment]) for moment in moments
            }
        missing = [FUNCTIONS[moment] for moment, function in functions.items() if function is None]
        if missing:
            raise LayoutError(f"its runtime has no function {missing[0]}")
        self._entries = {
            moment: function.entry for moment, function in functions.items() if function is not None
        }
        self._changes = wanted_changes(kinds)
        g, m, sudog = layouts["g"], layouts["m"], layouts["sudog"]
        self._g = {name: g.offset(name) for name in _G_FIELDS}
        self._m = {name: m.offset(name) for name in ("curg", "g0")}
        hidden = "c.maybeTraceablePtr.vu"
        self._channel = sudog.offset(hidden if sudog.has(hidden) else "c")
        self._waitlink = sudog.offset("waitlink")
        self._names = FrameNames(path, copied=True)
        self._events = GoEvents(kinds, layouts.wait_reasons, self._names)
        self._sequence = 0

    def start(self, machine: Machine) -> None:
        """See to it that events come; to be called before the program runs."""
        self._names.load_bias = machine.load_bias
        for moment, entry in self._entries.items():
            machine.processor.watch(entry + machine.load_bias, partial(self._reached, machine, moment))

    def close(self) -> None:
        """Give the last events, and give up the program's file."""
        for event in self._events.rest():
            self._sink.event(event)
        self._events.close()

    def _reached(self, machine: Machine, moment: Moment) -> None:
        thread = machine.current
        if machine.observer is None or thread is None:
            return  # a child's
        thread.context.save()
        general = thread.context.read_general()
        is_arm64 = machine.abi.arch == "arm64"
        g, old, new, own_g, frame, link = (
            general[place] if place is not None else 0 for place in (_ARM64 if is_arm64 else _AMD64)
        )
        old, new = old & _U32, new & _U32
        if moment is Moment.STATUS and (old, new) not in self._changes:
            return
        read = _Reader(machine)
        fields = [0] * 6
        goid, data = 0, b""
        if moment is Moment.STATUS:
            goid = read.word(g + self._g["goid"])
            reason = read.word(g + self._g["waitreason"]) & 0xFF
            channels = self._channels(read, read.word(g + self._g["waiting"]))
            fields = [g, old, new, reason, channels[0] if channels else 0, read.word(g + self._g["startpc"])]
            if new == _WAITING:
                data = b"".join(channel.to_bytes(_WORD, "little") for channel in channels)
        m = read.word(own_g + self._g["m"])
        current = read.word(m + self._m["curg"])
        by = read.word(current + self._g["goid"]) if current else 0
        if own_g == read.word(m + self._m["g0"]):
            # On the system stack: where the goroutine left its own.
            pc = read.word(current + self._g["sched.pc"]) if current else 0
            frame = read.word(current + self._g["sched.bp"]) if current else 0
        else:
            pc = link if is_arm64 else read.word(thread.context.sp)
        pcs = read.stack(pc, frame)
        self._sequence += 1
        now = machine.clock.now()
        stack = STACK.pack(*pcs, *[0] * (MAX_FRAMES - len(pcs)))
        record = RECORD.pack(
            *(self._sequence, now, now, moment, len(pcs), len(data), 0),
            *fields,
            *(goid if goid < 1 << 63 else 0, by, own_g, thread.tid, stack, data),
        )
        batch = RingBatch(record, machine.pid, {}, 0, 1.0)
        for _, event in self._events.merge(batch, CallBatch(batch.calls())).others:
            self._sink.event(event)

    def _channels(self, read: "_Reader", sudog: int) -> list[int]:
        channels: list[int] = []
        while sudog and len(channels) < MAX_CHANNELS:
            channels.append(read.word(sudog + self._channel))
            sudog = read.word(sudog + self._waitlink)
        return channels


_G_FIELDS = ("goid", "m", "waitreason", "waiting", "startpc", "sched.pc", "sched.bp")


class _Reader:
    """Reads the program's memory; what is not there is 0."""

    def __init__(self, machine: Machine) -> None:
        self._space = machine.space

    def word(self, address: int) -> int:
        """Return the word at an address."""
        try:
            return int.from_bytes(self._space.read(address, _WORD), "little")
        except MemoryFaultError:
            return 0

    def stack(self, pc: int, frame: int) -> list[int]:
        """Return *pc* and the return addresses above it, by frame pointers."""
        pcs = [pc] if pc else []
        while pcs and frame and len(pcs) < MAX_FRAMES:
            above, returns_to = self.word(frame), self.word(frame + _WORD)
            if not returns_to:
                break
            pcs.append(returns_to)
            if above <= frame:
                break
            frame = above
        return pcs
