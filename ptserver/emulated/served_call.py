"""One call of an emulated program on its way to an answer: made now, or when it does not sleep any more."""

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from ptserver.call import Call
from ptserver.emulated.processes import exec_away, exec_program
from ptserver.emulated.readiness import (
    EPOLLS,
    NEVER_REPEATED,
    POLLS,
    SELECTS,
    at_once,
    has_waited,
    is_ready,
    mask_while_waiting,
    patience_ns,
    timeout_ns,
    watched_by,
    watched_by_poll,
    without_waiting,
)
from ptserver.errors import PtServerError
from ptserver.outcomes import Delay, Done, Fail, OpenBytes, Outcome, Proceed, Return
from ptserver.stub.hypercalls import SERVER_LOST
from stepping.emulation.machine import Machine
from stepping.emulation.threads import BLOCKED, Result, Thread, Wait
from stepping.syscalls import Syscall
from stepping.syscalls.marshal import BadArgumentError, Gathered, scatter

if TYPE_CHECKING:
    from ptserver.emulated.host import EmulatedResources

#: The calls with a path, and which argument that is.
PATH_CALLS = {"openat": 1, "open": 0, "newfstatat": 1, "stat": 0, "statx": 1, "readlinkat": 1, "readlink": 0}
PROC_EXE = frozenset({b"/proc/self/exe", b"/proc/%d/exe" % os.getpid()})

#: What a call came to: its value or 0, its errno or 0, and what it filled by argument index, as the program has it.
_Executed = tuple[int, int, dict[int, bytes]]
#: What may make a file shorter.
_FILES_CHANGE = frozenset("truncate ftruncate open openat openat2 creat fallocate".split())
_SECOND = 1_000_000_000


class ServedCall:
    """One call on its way to an answer."""

    __slots__ = ("_resources", "call", "machine", "row", "seen", "then", "thread")

    def __init__(
        self, resources: "EmulatedResources", machine: Machine, thread: Thread, row: Syscall, call: Gathered
    ) -> None:
        self._resources = resources
        self.machine = machine
        self.thread = thread
        self.row = row
        self.call = call
        self.seen: Call | None = None
        self.then: Callable[[Done], Outcome | None] | None = None

    def apply(self, outcome: Outcome | None) -> Result:
        """Do what a server's method returned."""
        seen = self.seen
        assert seen is not None
        match outcome:
            case None:
                return self.proceed(self.call)
            case Return():
                return self._finish((outcome.value, 0, seen.outs_by_index(outcome.outs)))
            case Fail():
                return self._finish((0, outcome.errno, {}))
            case Proceed():
                self.then = outcome.then
                if not outcome.changes:
                    return self.proceed(self.call)
                args, ins = seen.changed(outcome.changes)
                return self.proceed(self.call._replace(args=args, ins=ins))
            case Delay():
                later = outcome.outcome
                wait = Wait()
                deadline = self.machine.clock.now() + int(outcome.seconds * _SECOND)
                self.machine.scheduler.block(self.thread, wait)
                self.machine.scheduler.call_at(
                    deadline, lambda: self._resume(wait, lambda: self.apply(later))
                )
                return BLOCKED
            case OpenBytes():
                fd = os.memfd_create("ptserver", os.MFD_CLOEXEC)
                with os.fdopen(fd, "wb") as file:
                    file.write(outcome.data)
                    file.flush()
                    close_on_exec = outcome.flags & os.O_CLOEXEC
                    number = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
                os.set_inheritable(number, not close_on_exec)
                return self._finish((number, 0, {}))
        raise PtServerError(f"{seen.name} returned {outcome!r}, which is no outcome")

    def _resume(self, wait: Wait, go_on: Callable[[], Result]) -> None:
        if self.thread.wait is wait:
            result = go_on()
            if isinstance(result, int):
                self.machine.scheduler.wake(self.thread, result)

    def proceed(self, call: Gathered) -> Result:
        """Make the call, now or when it does not sleep any more."""
        row = self.row
        own = self.machine.own_handler(row)
        if own is not None:
            return own(self.thread, list(call.args))
        if row.name == "execve" and self._resources.is_away(row):
            return exec_away(call)
        if row.name == "execve":
            return exec_program(self.machine, self.thread, call)
        if row.name in ("readlinkat", "readlink"):
            index = PATH_CALLS[row.name]
            if call.ins.get(index) in PROC_EXE and call.outs.get(index + 1):
                target = self._resources.exe[: call.outs[index + 1]]
                return self._finish((len(target), 0, {index + 1: target}))
        if not row.may_wait or not self._resources.may_wait(row, call.args, call.ins):
            return self.make(call)
        return self._when_ready(call)

    def make(self, call: Gathered) -> Result:
        """Make the call now."""
        done = self._make_now(call)
        if self.row.name in _FILES_CHANGE:
            self.machine.space.files_changed()
        return self._finish(done)

    def _make_now(self, call: Gathered) -> _Executed:
        """Make a *call* that does not sleep."""
        done = self._resources.execute(self.row, call.args, call.ins, call.outs)
        self._resources.background.settle()
        return done

    def _finish(self, done: _Executed) -> Result:
        """Put what was filled into the program's memory, and return what the call returns."""
        value, error, outs = done
        if error == SERVER_LOST and self._resources.is_away(self.row):
            return self.machine.scheduler.block(self.thread, Wait(restarts=True))
        if self.then is not None and self.seen is not None:
            then, self.then = self.then, None
            replaced = then(Done(value, error, self.seen.outs_by_name(outs)))
            if replaced is not None:
                return self.apply(replaced)
        if outs:
            try:
                scatter(self.call, outs, self.machine.space)
            except BadArgumentError as fault:
                value, error = 0, fault.errno
        self._resources.finished(self.seen, (value, error, outs))
        return -error if error else value

    def _when_ready(self, call: Gathered) -> Result:
        """Make a call that may sleep, once it does not."""
        name = self.row.name
        if self._resources.is_away(self.row):
            return self._in_background(call)
        if name in EPOLLS or name in POLLS:
            return self._when_event(call)
        if name in SELECTS and self._resources.background.settles:
            return self._when_selected(call)
        found = watched_by(name, call)
        if found is None:
            return self._in_background(call)
        watched, option = found
        if is_ready(watched):
            return self.make(call)
        patience = patience_ns(watched[0], option)
        deadline = None if patience is None else self.machine.clock.now() + patience
        wait = Wait(restarts=patience is None, timeout_result=-errno.EAGAIN)
        return self.machine.scheduler.watch(self.thread, [watched], lambda: self.make(call), wait, deadline)

    def _when_event(self, call: Gathered) -> Result:
        """Make a call that waits for events with a time limit: without one as often as there may be some."""
        name = self.row.name
        index, limit_ns = self._time_limit(call)
        attempt = self._attempt(call, index)
        result = attempt()
        if isinstance(result, int):
            return result
        if (failure := self._take_mask(call)) is not None:
            return failure
        clock = self.machine.clock
        deadline = None if limit_ns is None else clock.now() + limit_ns
        return self.machine.scheduler.watch(
            self.thread, watched_by_poll(name, call), attempt, Wait(timeout_result=0), deadline
        )

    def _when_selected(self, call: Gathered) -> Result:
        """Make a select(2), whose time limit is by the program's clock: the kernel's would be by its own."""
        index, limit_ns = self._time_limit(call)
        attempt = self._attempt(call, index)
        result = attempt()
        if isinstance(result, int):
            return result
        if (failure := self._take_mask(call)) is not None:
            return failure
        wait, scheduler = Wait(), self.machine.scheduler
        if limit_ns is not None:
            last = at_once(self.row.name, call, index)  # which empties the sets
            deadline = self.machine.clock.now() + limit_ns
            scheduler.call_at(
                deadline, lambda: self._resume(wait, lambda: self._finish(self._make_now(last)))
            )
        return scheduler.watch(self.thread, watched_by_poll(self.row.name, call), attempt, wait)

    def _time_limit(self, call: Gathered) -> tuple[int, int | None]:
        """Return which argument the time limit of a call is that waits for events, and the limit; None: for ever."""
        index = next(i for i, arg in enumerate(self.row.args) if arg.name == "timeout")
        return index, timeout_ns(call, index, self.row.name)

    def _attempt(self, call: Gathered, index: int) -> Callable[[], Result]:
        """Return what asks for the events that *call* waits for, and returns `BLOCKED` if there are none."""
        asking = at_once(self.row.name, call, index)

        def attempt() -> Result:
            value, error, outs = self._make_now(asking)
            if not value and not error:
                return BLOCKED
            outs.pop(index, None)
            return self._finish((value, error, outs))

        return attempt

    def _take_mask(self, call: Gathered) -> int | None:
        """Let the thread block what it wants blocked while the call waits; return what it returns if it does not."""
        mask = mask_while_waiting(self.row, call)
        if mask is not None and not self.machine.wait_with_mask(self.thread, mask):
            return -errno.EINTR
        return None

    def _in_background(self, call: Gathered) -> Result:
        name = self.row.name
        at_once = without_waiting(name, call)
        if at_once is not None:
            done = self._make_now(at_once)
            if not has_waited(name, call, *done):
                return self._finish(done)
        if (failure := self._take_mask(call)) is not None:
            return failure
        return self._resources.background.start(
            self.machine.scheduler,
            self.thread,
            lambda: self._resources.execute(self.row, call.args, call.ins, call.outs),
            lambda wait, done: self._resume(wait, lambda: self._finish(done)),
            restarts=name not in NEVER_REPEATED,
        )
