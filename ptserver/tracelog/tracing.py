"""Traces a program: chooses where its events come from, and hands them to a sink.

    ring    Go programs on amd64: some tenths of a microsecond a call, with goroutine and stack. It sees the
            calls that go through Syscall6, which is nearly all of the standard library's; not those that the
            runtime makes by itself (exit, getpid, clone...), that C code makes, nor those of children after
            their exec.
    stops   any program and its children: every traced call costs two stops, 50 to 100 microseconds.

With source "auto" the ring is tried first, and what it cannot do is done by stops; *note* is told which. A program
with C code is traced by stops then, unless events of goroutines are wanted, which only the ring sees.

Everything runs on the calling thread, which must be the process's main thread and its only one: signals are
taken from a descriptor, and the kernel reports tracees by one.
"""

import os
import select
import signal
import time
from collections.abc import Collection, Sequence
from typing import Literal

from goabi.errors import GoAbiError
from ptserver.hosts.signals import HostSignals, is_ending, is_passed_on, send_signal
from ptserver.inspection.proc_status import ThreadNumbers
from ptserver.tracelog.errors import TraceSourceError
from ptserver.tracelog.events import ExitEvent, LossEvent, TraceSink
from ptserver.tracelog.frame_names import FrameNames, exe_identity
from ptserver.tracelog.go_events import GoEvents, RuntimeWanted
from ptserver.tracelog.output import Note, complain_on_stderr
from ptserver.tracelog.ring_events import RecordSink, RecordTaker, RingEvents, RingFacts
from ptserver.tracelog.wanted import Wanted
from stepping.ring import BATCH, Ring
from stepping.ring_batch import RingBatch
from stepping.ring_probes import Probes
from stepping.ring_site import NoRingError, check_file, find_site

Source = Literal["auto", "ring", "stops"]

#: How often the ring is looked at: at the beginning, while calls come in and while none do.
_FIRST_POLL_MS, _BUSY_POLL_MS, _IDLE_POLL_MS = 5, 20, 40
#: How long events may lie in the sink's buffer while others come in.
_MAX_UNFLUSHED_S = 0.1


def run_traced(
    path: str,
    argv: Sequence[bytes],
    env: Sequence[bytes],
    sink: TraceSink,
    names: Collection[str] | None = None,
    *,
    source: Source = "auto",
    stacks: bool = False,
    runtime: RuntimeWanted = RuntimeWanted(),  # noqa: B008 - a tuple
    note: Note = complain_on_stderr,
) -> int:
    """Run the program *path* and trace it until it has ended; return its raw wait status.

    argv: its arguments with argv[0]; env: ``NAME=VALUE`` strings. names: the calls wanted, by name; by default all
    that touch a resource. stacks: name the functions on the goroutine's stack in each event (ring only).
    runtime: what is wanted of Go's runtime besides; its events need the ring, its calls are just calls by stops.
    note: is told in one line which source is used, and why.

    The program has this process's standard streams and terminal. Signals that a user sends to this process go to
    it. By stops it dies with this process; with the ring it lives on by itself. The sink is not closed.

    Raises:
        TraceSourceError: the *source* asked for cannot be had.
        ExecError, PtraceRefusedError, SeccompRefusedError: the kernel refuses.
    """
    from stepping.launch import Program  # here, as attaching does not need it
    from stepping.ring_launch import launch_with_ring

    wanted = Wanted(names, runtime)
    signals = HostSignals()
    try:
        program = Program(path=path, argv=list(argv), env=env, blocked=signals.original_mask)
        if source != "stops":
            try:
                with_c_code = source == "ring" or runtime.needs_ring
                check_file(path, with_c_code=with_c_code)
                probes = runtime.find_probes(path)
                frames = _open_names(path, sink, note, stacks=stacks, runtime=runtime)
                ring = launch_with_ring(program, wanted.rows, probes=probes, with_c_code=with_c_code)
            except NoRingError as error:
                _refuse_unless_auto(source, error, runtime)
                note(f"tracing by stops: {error.reason}")
            else:
                note(_seen_by(ring))
                taker = _taker(ring, sink, wanted, probes, frames, note, stacks=stacks)
                return _RingTrace(ring, sink, taker, signals, note).run_launched()
        from ptserver.tracelog.by_stops import run_by_stops

        return run_by_stops(program, sink, signals, wanted, note)
    finally:
        signals.close()


def trace_process(
    pid: int,
    sink: TraceSink,
    names: Collection[str] | None = None,
    *,
    source: Source = "auto",
    stacks: bool = False,
    runtime: RuntimeWanted = RuntimeWanted(),  # noqa: B008 - a tuple
    note: Note = complain_on_stderr,
) -> None:
    """Trace the running process *pid* until it ends or this process gets SIGINT, SIGTERM, SIGHUP or SIGQUIT.

    Then it is let go, unchanged. The parameters are those of `run_traced`.

    Raises:
        TraceSourceError: the *source* asked for cannot be had.
        PtraceRefusedError, TraceeGoneError: it cannot be traced, or there is none.
    """
    wanted = Wanted(names, runtime)
    signals = HostSignals()
    try:
        if source != "stops":
            try:
                site = find_site(pid, with_c_code=source == "ring" or runtime.needs_ring)
                probes = runtime.find_probes(f"/proc/{pid}/exe")
                frames = _open_names(f"/proc/{pid}/exe", sink, note, stacks=stacks, runtime=runtime)
                ring = Ring.attach(pid, wanted.rows, site=site, probes=probes)
            except NoRingError as error:
                _refuse_unless_auto(source, error, runtime)
                note(f"tracing by stops: {error.reason}")
            else:
                note(_seen_by(ring))
                taker = _taker(ring, sink, wanted, probes, frames, note, stacks=stacks)
                _RingTrace(ring, sink, taker, signals, note).run_attached()
                return
        from ptserver.tracelog.by_stops import trace_by_stops  # here, as the ring does not need it

        trace_by_stops(pid, sink, signals, wanted)
    finally:
        signals.close()


class _RingTrace:
    """The loop of a trace by the ring: looks at it now and then, and at signals."""

    def __init__(
        self,
        ring: Ring,
        sink: TraceSink,
        taker: RecordTaker,
        signals: HostSignals,
        note: Note,
    ) -> None:
        self._ring = ring
        self._sink = sink
        self._taker = taker
        self._signals = signals
        self._note = note
        self._lost = 0
        sink.flush()  # its first line
        self._unflushed, self._flushed_at = False, 0.0  # so that the first events go out at once
        self._poll = select.poll()
        self._poll.register(signals.fileno(), select.POLLIN)
        self._exe = exe_identity(ring.pid)
        self._numbers = ThreadNumbers(ring.pid)

    def run_launched(self) -> int:
        """Trace a child of this process to its end; return its raw wait status."""
        pid = self._ring.pid
        poll_ms = _FIRST_POLL_MS
        while True:
            for signo, from_kernel in self._wait(poll_ms):
                if signo == signal.SIGCHLD:
                    _follow_stop(pid)
                elif is_passed_on(signo) and not from_kernel:
                    send_signal(pid, signo)
            ended, status = os.waitpid(pid, os.WNOHANG)
            poll_ms = self._read(final=bool(ended))
            if ended:
                self._report_exit(status)
                self._close()
                return status

    def run_attached(self) -> None:
        """Trace until the process ends or a signal says that it is enough; then take the ring out."""
        pidfd = os.pidfd_open(self._ring.pid)
        self._poll.register(pidfd, select.POLLIN)
        poll_ms, ended = _FIRST_POLL_MS, False
        try:
            while not ended:
                enough = any(is_ending(signo) for signo, _ in self._wait(poll_ms))
                ended = bool(select.select([pidfd], [], [], 0)[0])
                if enough and not ended and not self._ring.detach():
                    self._note("a thread is still inside the ring; its 4 KiB stay until the next attach")
                poll_ms = self._read(final=ended or enough)
                ended = ended or enough
        finally:
            os.close(pidfd)
            self._ring.detach()
            self._close()

    def _wait(self, poll_ms: int) -> list[tuple[int, bool]]:
        """Wait for a signal, but not for long; return those that came."""
        now = time.monotonic()
        if self._unflushed and (poll_ms == _IDLE_POLL_MS or now - self._flushed_at > _MAX_UNFLUSHED_S):
            self._sink.flush()
            self._unflushed, self._flushed_at = False, now
        if self._poll.poll(poll_ms):
            return self._signals.receive()
        if poll_ms == _IDLE_POLL_MS:
            self._look_for_exec()
        return []

    def _look_for_exec(self) -> None:
        if self._exe is not None and exe_identity(self._ring.pid) not in (self._exe, None):
            self._exe = None
            self._note("the program has executed another one, which the ring does not see")

    def _read(self, *, final: bool) -> int:
        """Hand on what the ring holds, if *final* all of it; return how long to wait before the next time, in ms.

        Otherwise it is one batch, so that a program that makes calls faster than they can be handed on does not
        keep this process from its signals.
        """
        while True:
            batch = self._ring.read_batch(final=final)
            if batch is not None:
                self._give(batch)
                self._unflushed = True
            if not (final and batch):
                break
        if self._ring.lost > self._lost:
            self._sink.event(LossEvent(time.monotonic_ns(), self._ring.lost - self._lost))
            self._lost = self._ring.lost
            self._unflushed = True
        if batch is None:
            return _IDLE_POLL_MS
        return 0 if batch.size >= BATCH // 2 else _BUSY_POLL_MS

    def _give(self, batch: RingBatch) -> None:
        if self._numbers:
            batch.number_threads(self._numbers.outer)
        self._taker.take(batch)

    def _report_exit(self, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        pid = self._ring.pid
        exit_status, signo = (code, 0) if code >= 0 else (None, -code)
        core = signo != 0 and os.WCOREDUMP(status)
        self._sink.event(ExitEvent(time.monotonic_ns(), pid, pid, exit_status, signo, core))

    def _close(self) -> None:
        self._taker.finish()
        self._sink.flush()
        self._ring.close()


def _seen_by(ring: Ring) -> str:
    unseen = "calls of C code, and those after an exec," if ring.site.has_c_code else "calls after an exec"
    return f"tracing by the ring ({ring.site.go_version}); {unseen} are not seen"


def _taker(
    ring: Ring,
    sink: TraceSink,
    wanted: Wanted,
    probes: Probes | None,
    frames: FrameNames | None,
    note: Note,
    *,
    stacks: bool,
) -> RecordTaker:
    """Return what takes the records of *ring*. frames: if there is anything to be named, now or later."""
    if probes is not None and probes.uncovered:
        note(f"not seen: {', '.join(sorted(set(probes.uncovered)))}")
    if isinstance(sink, RecordSink):
        sink.begin(_facts(ring, wanted, probes, frames))
        return sink
    go = None
    if frames is not None:
        frames.load_bias = ring.site.load_bias
        runtime = wanted.runtime
        if probes is not None and runtime.needs_ring:
            go = GoEvents(runtime.events, probes.wait_reasons, frames, waits=runtime.waits)
    return RingEvents(sink, wanted.select, frames if stacks else None, go)


def _facts(ring: Ring, wanted: Wanted, probes: Probes | None, frames: FrameNames | None) -> RingFacts:
    exe = build_id = ""
    if frames is not None:
        exe, build_id = frames.exe, frames.build_id
        frames.close()
    return RingFacts(
        exe,
        build_id,
        ring.site.load_bias,
        tuple(row.name for row in wanted.rows),
        tuple(sorted(wanted.runtime.calls)),
        tuple(sorted(wanted.runtime.events)),
        tuple(probes.wait_reasons) if probes is not None else (),
    )


def _open_names(
    path: str, sink: TraceSink, note: Note, *, stacks: bool, runtime: RuntimeWanted
) -> FrameNames | None:
    if not (stacks or runtime.needs_ring or isinstance(sink, RecordSink)):
        return None
    try:
        return FrameNames(path)
    except (OSError, GoAbiError) as error:
        note(f"stacks cannot be named: {error}")
        return None


def _refuse_unless_auto(source: Source, error: NoRingError, runtime: RuntimeWanted) -> None:
    if source == "ring" or runtime.needs_ring:
        raise TraceSourceError(f"the ring cannot trace this program: {error.reason}") from error


def _follow_stop(pid: int) -> None:
    """Stop when the program was stopped, so that a shell sees its job stop, and continue it with us."""
    try:
        stopped = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)
    except ChildProcessError:
        return
    if stopped is not None:
        os.kill(os.getpid(), signal.SIGSTOP)
        send_signal(pid, signal.SIGCONT)
