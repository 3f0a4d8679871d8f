"""Runs a program on the emulator, with this machine's resources or a runtime server's.

The emulator (`stepping.emulation`) answers what concerns the program itself. What reaches outside comes here: it is
gathered from the program's memory by the syscall table, offered to the server's method of that name, and made on
this machine by `ptserver.shadow.execute`, translated if the program is of another architecture. The program's file
descriptors are those of this process, at the same numbers; ptserver's own are kept above.

A call that could sleep must not keep the other threads of the program from running. Where poll(2) can tell when it
would not, the scheduler waits for that; what poll cannot tell (locks, children, FIFOs' other ends) is made
on a thread of its own.

Not trusted: the program.
Thread rules: the machine's thread alone, but for the calls made in the background.
"""

import contextlib
import errno
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from goabi.elf_header import read_elf_header
from goabi.errors import GoAbiError
from ptserver.call import Call
from ptserver.emulated.background import Background
from ptserver.emulated.processes import SignalRelay, exec_program, fork
from ptserver.emulated.readiness import (
    EPOLLS,
    NEVER_REPEATED,
    POLLS,
    has_waited,
    is_ready,
    mask_while_waiting,
    patience_ns,
    timeout_ns,
    watched_by,
    watched_by_poll,
    without_waiting,
)
from ptserver.errors import PtServerError, UnsupportedInstructionError
from ptserver.machine import native_arch, this_machine
from ptserver.messages import Program
from ptserver.outcomes import Delay, Done, Fail, OpenBytes, Outcome, Proceed, Return
from ptserver.server import RuntimeServer
from ptserver.session import Session
from ptserver.shadow.execute import execute
from ptserver.shadow.waiting import Waiting
from stepping.emulation.address_space import map_file
from stepping.emulation.arch_layouts import Translation
from stepping.emulation.elsewhere import UnsupportedRemoteAccessError
from stepping.emulation.machine import Machine, Observer
from stepping.emulation.threads import BLOCKED, Result, Thread, Wait
from stepping.errors import MemoryFaultError, SteppingError
from stepping.syscalls import SYSCALLS, Syscall, SyscallClass
from stepping.syscalls.marshal import Args, BadArgumentError, Gathered, gather, scatter

if TYPE_CHECKING:
    from ptserver.emulated.remote_variables import RemoteVariables
    from stepping.syscalls import Arch

#: What a call came to: its value or 0, its errno or 0, and what it filled by argument index, as the program has it.
_Executed = tuple[int, int, dict[int, bytes]]

_ALL_DESCRIPTORS = 1 << 31
#: What may make a file shorter.
_FILES_CHANGE = frozenset("truncate ftruncate open openat openat2 creat fallocate".split())
_DESCRIPTORS_CHANGE = frozenset("close dup2 dup3 close_range fcntl".split())

#: What a program whose run shall be repeatable takes for its process id.
REPEATABLE_PID = 2
_SHOWN_CODE_BYTES = 16
_SECOND = 1_000_000_000
_PROC_EXE = frozenset({b"/proc/self/exe", b"/proc/%d/exe" % os.getpid()})


class EmulatedResources:
    """Serves the calls of an emulated program; see the module's text.

    server: asked first for the calls that it declares an interest in.
    """

    def __init__(self, arch: "Arch", path: str, server: RuntimeServer | None, session: Session) -> None:
        self._arch: Arch = arch
        self._exe = os.fsencode(os.path.realpath(path))
        self._translation = Translation(arch, native_arch())
        self._waiting = Waiting()
        self.background = Background()
        self._server = server
        self._session = session
        self._next_id = 0
        interest = server.declared_interest() if server is not None else {}
        self._methods: dict[str, Callable[[Call], Outcome | None]] = {
            name: getattr(server, name, server.observe)
            for name, wanted in interest.items()
            if server is not None and wanted != "ignore"
        }
        self._observed = frozenset(name for name, wanted in interest.items() if wanted == "observe")
        self._sees_results = server is not None and type(server).finished is not RuntimeServer.finished

    @property
    def claimed(self) -> frozenset[str]:
        """The calls, whatever they are about, that come here before the machine answers them itself."""
        return frozenset(self._methods)

    def fork(self, machine: Machine, thread: Thread, args: list[int]) -> Result:
        """See `stepping.emulation.machine.Resources`."""
        before = os.getpid()
        result = fork(machine, thread, args)
        if os.getpid() != before:
            self.background.after_fork()
        return result

    def map_file(self, fd: int, offset: int, address: int, size: int, shared: bool) -> tuple[int, int]:
        """See `stepping.emulation.machine.Resources`."""
        return map_file(address, size, fd, offset, shared)

    def process_control(self, machine: Machine, thread: Thread, args: list[int]) -> Result:
        """See `stepping.emulation.machine.Resources`."""
        served = self._gathered(machine, thread, SYSCALLS["prctl"], args)
        return served if isinstance(served, int) else served.make(served.call)

    def call(self, machine: Machine, thread: Thread, row: Syscall, args: list[int]) -> Result:
        """See `stepping.emulation.machine.Resources`."""
        served = self._gathered(machine, thread, row, args)
        if isinstance(served, int):
            return served
        method = self._methods.get(row.name)
        if method is None:
            return served.proceed(served.call)
        return self._ask(served, method)

    def _gathered(
        self, machine: Machine, thread: Thread, row: Syscall, args: list[int]
    ) -> "_ServedCall | int":
        """Return the call with all that it reads, or a negative errno."""
        a0, a1, a2, a3, a4, a5 = args
        try:
            call = gather(row, (a0, a1, a2, a3, a4, a5), machine.space, self._arch)
        except BadArgumentError as error:
            return -error.errno
        return _ServedCall(self, machine, thread, row, call)

    def _ask(self, served: "_ServedCall", method: Callable[[Call], Outcome | None]) -> Result:
        self._next_id += 1
        call, row = served.call, served.row
        seen = Call(
            self._session,
            self._next_id,
            served.thread.tid,
            served.machine.pid,
            row,
            call.args,
            call.ins,
            call.outs,
        )
        served.seen = seen
        try:
            outcome = method(seen)
        except OSError as error:
            outcome = Fail(error.errno or errno.EIO)
        except Exception as error:
            self._session.log(traceback.format_exc())
            name = f"{type(self._server).__name__}.{row.name}"
            raise PtServerError(f"{name} raised {type(error).__name__}: {error}") from error
        if row.name in self._observed:
            outcome = None
        return served.apply(outcome)

    def execute(self, row: Syscall, args: Args, ins: dict[int, bytes], outs: dict[int, int]) -> _Executed:
        """Make a call on this machine, in this thread."""
        if row.name in _PATH_CALLS:
            ins = self._own_path(row, ins)
        translated = self._translation.is_needed(row)
        if translated:
            args, ins, outs = self._translation.to_host(row, args, ins, outs)
        value, error, filled = execute(row, args, ins, outs)
        if translated and not error:
            value, filled = self._translation.to_guest(row, args, value, filled)
        if row.klass is SyscallClass.IDENTITY:
            self.background.identity_changed()
        if row.name in _DESCRIPTORS_CHANGE:
            self._waiting.forget(0, _ALL_DESCRIPTORS)
        return value, error, filled

    def may_wait(self, row: Syscall, args: Args, ins: dict[int, bytes]) -> bool:
        """Whether the call may sleep without bound."""
        return self._waiting.may_wait(row, args, ins)

    def finished(self, seen: Call | None, done: _Executed) -> None:
        """Let the server see the result, if it wants to."""
        if self._sees_results and seen is not None and self._server is not None:
            value, error, outs = done
            self._server.finished(seen, Done(value, error, seen.outs_by_name(outs)))

    def _own_path(self, row: Syscall, ins: dict[int, bytes]) -> dict[int, bytes]:
        """Let /proc/self/exe lead to the program and not to this process's interpreter."""
        index = _PATH_CALLS[row.name]
        if ins.get(index) in _PROC_EXE and row.name != "readlinkat" and row.name != "readlink":
            return {**ins, index: self._exe}
        return ins

    @property
    def exe(self) -> bytes:
        """The program's file."""
        return self._exe


_PATH_CALLS = {"openat": 1, "open": 0, "newfstatat": 1, "stat": 0, "statx": 1, "readlinkat": 1, "readlink": 0}


class _ServedCall:
    """One call on its way to an answer."""

    __slots__ = ("_resources", "call", "machine", "row", "seen", "then", "thread")

    def __init__(
        self, resources: EmulatedResources, machine: Machine, thread: Thread, row: Syscall, call: Gathered
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
        if row.name == "execve":
            return exec_program(self.machine, self.thread, call)
        if row.name in ("readlinkat", "readlink"):
            index = _PATH_CALLS[row.name]
            if call.ins.get(index) in _PROC_EXE and call.outs.get(index + 1):
                target = self._resources.exe[: call.outs[index + 1]]
                return self._finish((len(target), 0, {index + 1: target}))
        if not row.may_wait or not self._resources.may_wait(row, call.args, call.ins):
            return self.make(call)
        return self._when_ready(call)

    def make(self, call: Gathered) -> Result:
        """Make the call now."""
        done = self._resources.execute(self.row, call.args, call.ins, call.outs)
        if self.row.name in _FILES_CHANGE:
            self.machine.space.files_changed()
        return self._finish(done)

    def _finish(self, done: _Executed) -> Result:
        """Put what was filled into the program's memory, and return what the call returns."""
        value, error, outs = done
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
        if name in EPOLLS or name in POLLS:
            return self._when_event(call)
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
        name, ins = self.row.name, call.ins
        index = next(i for i, arg in enumerate(self.row.args) if arg.name == "timeout")
        limit_ns = timeout_ns(call, index, name)
        if name in ("ppoll", "epoll_pwait2"):
            at_once = call._replace(ins={**ins, index: bytes(16)}, args=_with(call.args, index, 8))
        else:
            at_once = call._replace(args=_with(call.args, index, 0))

        def attempt() -> Result:
            done = self._resources.execute(self.row, at_once.args, at_once.ins, at_once.outs)
            value, error, outs = done
            if not value and not error:
                return BLOCKED
            outs.pop(index, None)
            return self._finish((value, error, outs))

        result = attempt()
        if isinstance(result, int):
            return result
        mask = mask_while_waiting(self.row, call)
        if mask is not None and not self.machine.wait_with_mask(self.thread, mask):
            return -errno.EINTR
        clock = self.machine.clock
        deadline = None if limit_ns is None else clock.now() + limit_ns
        return self.machine.scheduler.watch(
            self.thread, watched_by_poll(name, call), attempt, Wait(timeout_result=0), deadline
        )

    def _in_background(self, call: Gathered) -> Result:
        name = self.row.name
        at_once = without_waiting(name, call)
        if at_once is not None:
            done = self._resources.execute(self.row, at_once.args, at_once.ins, at_once.outs)
            if not has_waited(name, call, *done[:2]):
                return self._finish(done)
        return self._resources.background.start(
            self.machine.scheduler,
            self.thread,
            lambda: self._resources.execute(self.row, call.args, call.ins, call.outs),
            lambda wait, done: self._resume(wait, lambda: self._finish(done)),
            restarts=name not in NEVER_REPEATED,
        )


def _with(args: Args, index: int, value: int) -> Args:
    a0, a1, a2, a3, a4, a5 = (value if i == index else arg for i, arg in enumerate(args))
    return a0, a1, a2, a3, a4, a5


def _log(text: str) -> None:
    os.write(2, os.fsencode(text) + b"\n")


def run_emulated(
    path: str,
    argv: Sequence[bytes],
    env: Sequence[bytes],
    *,
    server: RuntimeServer | None = None,
    seed: int | None = None,
    sink: Observer | None = None,
    remote: "RemoteVariables | None" = None,
) -> int:
    """Run the program at *path* on the emulator until it is gone; return its wait status, as waitpid(2) gives it.

    server: answers the calls that it has methods for; all else is this machine's. seed: makes the run repeatable:
    times, randomness, schedule and process id come from this number, so that the same program with the same
    arguments, environment and files does the same, call by call. sink: sees every call. remote: what of the program's
    memory lives elsewhere.

    The program shares this process's descriptors, working directory and id.

    Raises:
        LoadError, OSError, GoAbiError: the program cannot be run.
        EmulatorError: the emulator failed.
    """
    arch = read_elf_header(path).arch
    machine: Machine | None = None
    session = Session(
        "emulated",
        Program.shown(path, argv),
        this_machine(),
        "server",
        log=_log,
        send_signal=lambda number: machine.raise_signal(number) if machine is not None else None,
        keep_descriptor=lambda fd: fd,
    )
    resources = EmulatedResources(arch, path, server, session)
    pid = os.getpid() if seed is None else REPEATABLE_PID
    machine = Machine(path, argv, env, resources, pid=pid, seed=seed, observer=sink)
    if remote is not None:
        remote.make(machine, server, session)
    if sink is not None:
        sink.start(machine)
    relay = SignalRelay(machine)
    try:
        if server is not None:
            server.session_started(session)
        try:
            status = machine.run()
        except UnsupportedRemoteAccessError as error:
            where = _place_of(machine, error.pc)
            raise UnsupportedInstructionError(
                machine.pid, f"{error}{where}; the program was ended"
            ) from error
        if machine.unknown_instruction is not None and os.WIFSIGNALED(status):
            _explain_death(machine, machine.unknown_instruction)
        if machine.is_child:
            end_as(status)
        if server is not None:
            code = os.waitstatus_to_exitcode(status)
            server.exited(session, code if code >= 0 else None, max(-code, 0))
        return status
    finally:
        relay.close()
        resources.background.close()
        machine.close()
        if server is not None:
            server.session_ended(session)


def _explain_death(machine: Machine, pc: int) -> None:
    """Say which instruction the emulator lacks, of a program that has died by a signal."""
    try:
        code = machine.space.read(pc, _SHOWN_CODE_BYTES).hex(" ")
    except MemoryFaultError:
        return
    where = _place_of(machine, pc)
    _log(f"ptserver: the emulator does not know the instruction at {pc:#x}{where}: {code}")


def _place_of(machine: Machine, pc: int) -> str:
    """Return function and line of an instruction, as far as the program says, for a message; empty if it does not."""
    from goabi.binary import GoBinary  # of programs that end well nothing is to be known

    with contextlib.suppress(GoAbiError, OSError), GoBinary.open(machine.path, prefer_table=True) as binary:
        frames = binary.functions.frames_at(pc - machine.load_bias)
        if frames:
            return f" in {frames[0].function} ({frames[0].file}:{frames[0].line})"
    return ""


def end_as(status: int) -> NoReturn:
    """End this process with wait status *status*: by its exit status, or by the signal."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (0, limit))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def main(arguments: Sequence[str], argv0: str | None = None, seed: int | None = None) -> NoReturn:
    """Run the program *arguments*[0] with the rest as its arguments, and end as it does.

    If it cannot be run: say so in one line, and exit with 1.
    """
    path = arguments[0]
    argv = [os.fsencode(argv0 or path), *map(os.fsencode, arguments[1:])]
    env = [name + b"=" + value for name, value in os.environb.items()]
    try:
        status = run_emulated(path, argv, env, seed=seed)
    except (PtServerError, SteppingError, GoAbiError, OSError) as error:
        sys.exit(f"ptserver: {error}")
    end_as(status)


if __name__ == "__main__":
    main(sys.argv[1:])
