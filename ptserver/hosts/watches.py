"""What a stub host tells those who watch its program: calls that it takes, goroutines, stacks, what happens live.

Calls come from the host itself, as they are answered. Goroutines and stacks are looked into by a process of its own,
`ptserver goroutines|stack|attach` with JSON, whose lines are passed on: so the host goes on answering meanwhile.

A slow watcher never slows the program. Calls are kept for it in a buffer of `_BUFFERED_CALLS`, and are sent while the
connection has room; the others are counted as lost. A helper that is faster than the connection waits.

Not trusted: the server, whose watches these are: what a watch may ask is bounded by its type, and a helper reads one
process, the program. Thread rules: those of the host.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import msgspec

from ptserver.attach.counts import CallCounts
from ptserver.attach.snapshot import decode, encoder
from ptserver.errors import ProtocolError
from ptserver.hosts.endings import exit_of
from ptserver.hosts.go_events import NoEventsError
from ptserver.hosts.host import Host
from ptserver.messages import (
    MAX_WATCHED_BYTES,
    MAX_WATCHED_CALLS,
    Message,
    Unwatch,
    Watch,
    WatchedCall,
    WatchedCalls,
    WatchedFrame,
    WatchedRows,
    WatchEnded,
)
from ptserver.net.poll_loop import PollLoop
from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.events import Event, Frame, GcEvent, GoEvent, LossEvent, SyscallEvent
from ptserver.tracelog.filters import RUNTIME_CALLS, parse_filters
from ptserver.tracelog.jsonl import line_of
from stepping.syscalls import SYSCALLS

_MAX_WATCHES = 64
_BUFFERED_CALLS = 8192
_READ_BYTES = 256 << 10
_AGAIN_SECONDS = 0.05
_END_SECONDS = 3.0
_MAX_PROBLEM = 4096

Send = Callable[[Message], None]
_Kept = TypeVar("_Kept", SyscallEvent, bytes)
HasRoom = Callable[[], bool]


class _Watching(Protocol):
    def stop(self) -> None:
        """Give up everything."""


class HostWatches:
    """The watches of *host*. send: queues a message; has_room: whether there is room for what may be left out."""

    def __init__(self, host: Host, loop: PollLoop, send: Send, has_room: HasRoom) -> None:
        self._host = host
        self._loop = loop
        self._send = send
        self._has_room = has_room
        self._watches: dict[int, _Watching] = {}
        self._ending: dict[subprocess.Popen[bytes], float] = {}

    def take_watch(self, watch: Watch) -> None:
        """Begin to tell.

        Raises:
            ProtocolError: there is one of the same number.
        """
        if watch.id in self._watches:
            raise ProtocolError(f"the server began watch {watch.id} twice")
        if len(self._watches) >= _MAX_WATCHES:
            self._send(WatchEnded(watch.id, f"the program is watched {_MAX_WATCHES} times already"))
            return
        self._host.find_goroutines(f"/proc/{self._host.pid}/exe")
        try:
            if watch.what == "trace":
                self._watches[watch.id] = _Trace(self._host, self._loop, watch, self._send, self._has_room)
            else:
                self._watches[watch.id] = _Helper(
                    self, self._host, self._loop, watch, self._send, self._has_room
                )
        except NoEventsError as error:
            self._send(WatchEnded(watch.id, str(error)))
        except OSError as error:
            self._send(WatchEnded(watch.id, f"cannot look into the program: {error.strerror}"))

    def take_unwatch(self, message: Unwatch) -> None:
        """Tell no more; a watch that has ended meanwhile is no matter."""
        watching = self._watches.pop(message.id, None)
        if watching is not None:
            watching.stop()
            self._send(WatchEnded(message.id))

    def ended(self, watch_id: int, problem: str) -> None:
        """Hear that a watch has come to its end."""
        if self._watches.pop(watch_id, None) is not None:
            self._send(WatchEnded(watch_id, problem[:_MAX_PROBLEM]))

    def program_ended(self, wait_status: int) -> None:
        """Say that the program is gone."""
        status, signo, *_ = exit_of(wait_status)
        for watch_id, watching in self._watches.items():
            watching.stop()
            self._send(WatchEnded(watch_id, "", gone=True, status=status, signo=signo))
        self._watches.clear()

    def let_end(self, helper: "subprocess.Popen[bytes]") -> None:
        """Tell a helper to end, and see that it does, without waiting for it."""
        helper.terminate()
        self._ending[helper] = time.monotonic() + _END_SECONDS
        self._loop.later(_AGAIN_SECONDS, self._reap)

    def _reap(self) -> None:
        now = time.monotonic()
        for helper, deadline in list(self._ending.items()):
            if helper.poll() is not None:
                del self._ending[helper]
            elif now > deadline:
                helper.kill()
        if self._ending:
            self._loop.later(_AGAIN_SECONDS, self._reap)

    def close(self) -> None:
        """End all helpers, and wait until they have."""
        for watching in self._watches.values():
            watching.stop()
        self._watches.clear()
        for helper in self._ending:
            try:
                helper.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                helper.kill()
                helper.wait()
        self._ending.clear()


class _Trace:
    """A `TraceSink` that sends calls."""

    def __init__(self, host: Host, loop: PollLoop, watch: Watch, send: Send, has_room: HasRoom) -> None:
        self._host = host
        self._loop = loop
        self._id = watch.id
        self._send = send
        self._has_room = has_room
        #: Calls, and other events as JSON, in their order.
        self._kept: deque[SyscallEvent | bytes] = deque()
        self._lost = 0
        self._waits = False
        only_others = watch.events or watch.runtime
        names = frozenset(watch.names) or (frozenset() if only_others else parse_filters(()))
        runtime = RUNTIME_CALLS if watch.runtime else ()
        host.start_trace(self, names, stacks=watch.stacks, events=watch.events, runtime=runtime)

    def stop(self) -> None:
        """Send what is left, as far as there is room."""
        self._host.stop_trace(self)
        self.flush()

    def event(self, event: Event) -> None:
        """Keep a call for the next `flush`, unless there are too many."""
        if type(event) is SyscallEvent:
            self._keep(event)

    def calls(self, batch: CallBatch) -> None:
        """Keep events of goroutines, and calls of the runtime; others a host answers one by one."""
        for event in batch.all_events():
            if isinstance(event, GoEvent | GcEvent | LossEvent):
                self._keep(msgspec.json.encode(line_of(event)))
            else:
                self.event(event)

    def flush(self) -> None:
        """Send what was kept, as far as there is room; the rest a little later."""
        kept = self._kept
        while (kept or self._lost) and self._has_room():
            lost, self._lost = self._lost, 0
            if kept and isinstance(kept[0], bytes):
                rows = tuple(self._run(bytes))
                self._send(WatchedRows(self._id, rows, lost))
                continue
            stacks: dict[tuple[Frame, ...], int] = {}
            batch = tuple(_watched(event, stacks) for event in self._run(SyscallEvent))
            named = tuple(tuple(map(_watched_frame, stack)) for stack in stacks)
            self._send(WatchedCalls(self._id, time.monotonic_ns(), time.time_ns(), batch, lost, named))
        if kept and not self._waits:
            self._waits = True
            self._loop.later(_AGAIN_SECONDS, self._flush_again)

    def close(self) -> None:
        """Nothing is left to do."""

    def _keep(self, kept: SyscallEvent | bytes) -> None:
        if len(self._kept) >= _BUFFERED_CALLS:
            self._lost += 1
            return
        self._kept.append(kept)
        if len(self._kept) == MAX_WATCHED_CALLS:
            self.flush()

    def _run(self, kind: type[_Kept]) -> Iterator[_Kept]:
        """Take the first of what was kept, as long as it is of one kind, and as much as a message holds."""
        for _ in range(MAX_WATCHED_CALLS):
            first = self._kept[0] if self._kept else None
            if not isinstance(first, kind):
                return
            self._kept.popleft()
            yield first

    def _flush_again(self) -> None:
        self._waits = False
        self.flush()


def _watched(event: SyscallEvent, stacks: dict[tuple[Frame, ...], int]) -> WatchedCall:
    """Return a call as a message has it. stacks: numbers those that there are; its own is added."""
    return WatchedCall(
        event.start_ns,
        event.tid,
        event.pid,
        event.name,
        event.args,  # type: ignore[arg-type]
        event.duration_ns,
        event.value,
        event.errno,
        event.goid or 0,
        {index: data[:MAX_WATCHED_BYTES] for index, data in event.ins.items()},
        {index: data[:MAX_WATCHED_BYTES] for index, data in event.outs.items()},
        stacks.setdefault(event.stack, len(stacks)) if event.stack else -1,
    )


def _watched_frame(frame: Frame) -> WatchedFrame:
    return WatchedFrame(_text(frame.function), _text(frame.file), frame.line, frame.pc)


def _text(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()[:_MAX_PROBLEM]  # names are the program's


class _Helper:
    """A process that looks into the program and writes lines of JSON, which are passed on."""

    def __init__(
        self,
        watches: HostWatches,
        host: Host,
        loop: PollLoop,
        watch: Watch,
        send: Send,
        has_room: HasRoom,
    ) -> None:
        self._watches = watches
        self._host = host
        self._loop = loop
        self._id = watch.id
        self._send = send
        self._has_room = has_room
        self._rest = b""
        self._counts = CallCounts(exact=watch.exact) if watch.what == "attach" else None
        if self._counts is not None:
            host.start_trace(self._counts, SYSCALLS, events=("block",) if watch.exact else ())
        self._encode = encoder()
        try:
            self._process = subprocess.Popen(
                # -P: no module of the current folder's is taken for ours.
                [sys.executable, "-P", "-c", "from cli import main; main()", *_command(watch, host.pid)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                preexec_fn=_with_all_signals,
            )
        except OSError:
            if self._counts is not None:
                host.stop_trace(self._counts)
            raise
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._out, self._err = self._process.stdout.fileno(), self._process.stderr.fileno()
        os.set_blocking(self._out, False)
        os.set_blocking(self._err, False)
        loop.watch(self._out, self._on_output)

    def stop(self) -> None:
        """Have the process end; it lets the program go first."""
        self._loop.unwatch(self._out)
        if self._counts is not None:
            self._host.stop_trace(self._counts)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
        self._watches.let_end(self._process)

    def _on_output(self) -> None:
        if not self._has_room():
            self._loop.unwatch(self._out)
            self._loop.later(_AGAIN_SECONDS, self._go_on)
            return
        try:
            data = os.read(self._out, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            problem = self._problem()
            self.stop()
            self._watches.ended(self._id, problem)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines:
            self._send(WatchedRows(self._id, tuple(self._merged(lines))))

    def _go_on(self) -> None:
        if self._process.stdout is not None and not self._process.stdout.closed:
            self._loop.watch(self._out, self._on_output)

    def _merged(self, lines: Sequence[bytes]) -> Sequence[bytes]:
        """Return the lines, of an attached program with the calls that this host has counted."""
        if self._counts is None:
            return lines
        try:
            return [self._encode(self._counts.merge(decode(line))).rstrip() for line in lines]
        except msgspec.DecodeError:  # the helper is another version
            return lines

    def _problem(self) -> str:
        """Return what the process has said on its standard error, once it has ended."""
        poll = select.poll()
        poll.register(self._err, select.POLLIN)
        said = b""
        while poll.poll(_END_SECONDS * 1000) and (data := os.read(self._err, _READ_BYTES)):
            said += data
        return said.decode("utf-8", "replace").strip().rpartition("\n")[2].removeprefix("ptserver: ")


def _command(watch: Watch, pid: int) -> list[str]:
    """Return the words of the command that answers a watch."""
    if watch.what == "stack":
        return ["stack", "--json", str(pid), str(max(1, watch.goid))]
    selected = [f"--state={state}" for state in watch.states]
    selected += [f"--func={watch.function}"] if watch.function else []
    selected += ["--system"] if watch.system else []
    if watch.what == "attach":
        interval = watch.interval_ms / 1000
        return ["attach", "--json", "-n", str(interval), "-e", "none", *selected, str(pid)]
    wanted = [word for word, on in (("-k", watch.stacks), ("-l", watch.labels)) if on]
    return ["goroutines", "--json", *wanted, *selected, str(pid)]


def _with_all_signals() -> None:
    """Undo in the child what the host has done to signals."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with contextlib.suppress(OSError):
        os.setsid()  # the keys of the user's terminal are for the program
