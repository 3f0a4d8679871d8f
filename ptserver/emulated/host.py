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

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from goabi.elf_header import read_elf_header
from goabi.errors import GoAbiError
from ptserver.call import Call
from ptserver.code_place import place_in
from ptserver.emulated.away_calls import Away, asks_only, interrupt_away, map_from_away
from ptserver.emulated.background import Background
from ptserver.emulated.child_numbers import REPEATABLE_PID, ChildNumbers
from ptserver.emulated.processes import SignalRelay, fork, own_pid
from ptserver.emulated.repeatable import Repeatable
from ptserver.emulated.repeatable_timers import RepeatableTimers
from ptserver.emulated.served_call import PATH_CALLS, PROC_EXE, ServedCall
from ptserver.emulated.stub import EmulatedStub, StubAway, StubHere
from ptserver.emulated.thread_state import find_auxv
from ptserver.errors import PtServerError, UnsupportedInstructionError
from ptserver.hosts import endings
from ptserver.hosts.stub_calls import StubCalls
from ptserver.inspection.guest import Guest, announce_guest
from ptserver.machine import native_arch, this_machine
from ptserver.messages import Program
from ptserver.outcomes import Done, Fail, Outcome
from ptserver.server import RuntimeServer
from ptserver.session import Session
from ptserver.shadow.execute import execute
from ptserver.shadow.waiting import Waiting
from stepping.emulation.address_space import map_file
from stepping.emulation.arch_layouts import Translation
from stepping.emulation.elsewhere import UnsupportedRemoteAccessError
from stepping.emulation.machine import Machine
from stepping.emulation.resources import Observer
from stepping.emulation.threads import Result, Thread
from stepping.errors import MemoryFaultError, SteppingError
from stepping.syscalls import SYSCALLS, Syscall, SyscallClass
from stepping.syscalls.marshal import Args, BadArgumentError, gather

if TYPE_CHECKING:
    from ptserver.emulated.remote_variables import RemoteVariables
    from stepping.syscalls import Arch

#: What a call came to: its value or 0, its errno or 0, and what it filled by argument index, as the program has it.
_Executed = tuple[int, int, dict[int, bytes]]

_ALL_DESCRIPTORS = 1 << 31
_DESCRIPTORS_CHANGE = frozenset("close dup2 dup3 close_range fcntl".split())

_SHOWN_CODE_BYTES = 16


class EmulatedResources:
    """Serves the calls of an emulated program; see the module's text.

    server: asked first for the calls that it declares an interest in. stub: answers the program's, if it has one;
    with a server at an address its stub host does.
    """

    def __init__(
        self,
        arch: "Arch",
        path: str,
        server: RuntimeServer | None,
        session: Session | None,
        away: Away | None = None,
        stub: StubCalls | None = None,
    ) -> None:
        self._arch: Arch = arch
        self._exe = os.fsencode(os.path.realpath(path))
        self._translation = Translation(arch, native_arch())
        self._waiting = Waiting()
        self._away = away
        self._repeatable: Repeatable | None = None
        self.background = Background(
            interrupt_away if away is not None and away.everything else None, here=away is None
        )
        self._stub: EmulatedStub | None = None
        if away is not None:
            self._stub = StubAway(self.background)
        elif stub is not None:
            self._stub = StubHere(stub)
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
        return frozenset(self._methods) if self._away is None else self._away.claimed

    def is_away(self, row: Syscall) -> bool:
        """Whether a server at an address makes such calls."""
        return self._away is not None and (self._away.everything or row.name in self._away.claimed)

    def repeat(self, machine: Machine, pid: int) -> None:
        """Let the calls come to the same in each run of the program, which is process *pid* to the kernel."""
        self.background.begin_to_settle()
        machine.scheduler.linger = self.background.linger
        machine.scheduler.settle = self.background.settle
        timers = RepeatableTimers(machine.scheduler, machine.clock) if self._away is None else None
        self._repeatable = Repeatable(ChildNumbers(pid), self.background, timers)

    def close(self) -> None:
        """Give up what is only for this run."""
        self.background.close()
        if self._repeatable is not None:
            self._repeatable.numbers.close()

    def unknown(self, machine: Machine, thread: Thread, number: int, args: list[int]) -> Result:
        """See `stepping.emulation.resources.Resources`."""
        return -errno.ENOSYS if self._stub is None else self._stub.call(machine, thread, number, args)

    def fork(self, machine: Machine, thread: Thread, args: list[int]) -> Result:
        """See `stepping.emulation.resources.Resources`."""
        before = os.getpid()
        numbers = self._repeatable.numbers if self._repeatable is not None else None
        result = fork(machine, thread, args, numbers)
        if os.getpid() != before:
            self.background.after_fork()
        elif numbers is not None and isinstance(result, int) and result > 0:
            self.background.child_born(numbers.real(result))
        return result

    def map_file(self, fd: int, offset: int, address: int, size: int, shared: bool) -> tuple[int, int]:
        """See `stepping.emulation.resources.Resources`."""
        if self.is_away(SYSCALLS["mmap"]):
            return map_from_away(fd, offset, address, size, shared)
        return map_file(address, size, fd, offset, shared)

    def make_at_once(self, machine: Machine, thread: Thread, name: str, args: list[int]) -> Result:
        """See `stepping.emulation.resources.Resources`."""
        served = self._gathered(machine, thread, SYSCALLS[name], args)
        return served if isinstance(served, int) else served.make(served.call)

    def call(self, machine: Machine, thread: Thread, row: Syscall, args: list[int]) -> Result:
        """See `stepping.emulation.resources.Resources`."""
        served = self._gathered(machine, thread, row, args)
        if isinstance(served, int):
            return served
        method = self._methods.get(row.name)
        if method is None:
            return served.proceed(served.call)
        return self._ask(served, method)

    def _gathered(
        self, machine: Machine, thread: Thread, row: Syscall, args: list[int]
    ) -> "ServedCall | int":
        """Return the call with all that it reads, or a negative errno."""
        a0, a1, a2, a3, a4, a5 = args
        try:
            call = gather(row, (a0, a1, a2, a3, a4, a5), machine.space, self._arch)
        except BadArgumentError as error:
            return -error.errno
        return ServedCall(self, machine, thread, row, call)

    def _ask(self, served: "ServedCall", method: Callable[[Call], Outcome | None]) -> Result:
        assert self._session is not None
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
        if self._repeatable is not None:
            return self._repeatable.execute(self._execute, row, args, ins, outs)
        return self._execute(row, args, ins, outs)

    def _execute(self, row: Syscall, args: Args, ins: dict[int, bytes], outs: dict[int, int]) -> _Executed:
        if row.name in PATH_CALLS:
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
        """Whether the call may sleep without bound; nobody here knows that of one that is made elsewhere."""
        if self.is_away(row):
            return not asks_only(row, args)
        return self._waiting.may_wait(row, args, ins)

    def finished(self, seen: Call | None, done: _Executed) -> None:
        """Let the server see the result, if it wants to."""
        if self._sees_results and seen is not None and self._server is not None:
            value, error, outs = done
            self._server.finished(seen, Done(value, error, seen.outs_by_name(outs)))

    def _own_path(self, row: Syscall, ins: dict[int, bytes]) -> dict[int, bytes]:
        """Let /proc/self/exe lead to the program and not to this process's interpreter."""
        index = PATH_CALLS[row.name]
        if ins.get(index) in PROC_EXE and row.name != "readlinkat" and row.name != "readlink":
            return {**ins, index: self._exe}
        return ins

    @property
    def exe(self) -> bytes:
        """The program's file."""
        return self._exe


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
    away: Away | None = None,
    stub: StubCalls | None = None,
) -> int:
    """Run the program at *path* on the emulator until it is gone; return its wait status, as waitpid(2) gives it.

    server: answers the calls that it has methods for; all else is this machine's. seed: makes the run repeatable:
    times, randomness, schedule and process id come from this number, so that the same program with the same
    arguments, environment and files does the same, call by call. sink: sees every call. remote: what of the program's
    memory lives elsewhere. away: what is a server's at an address. stub: see `EmulatedResources`.

    The program shares this process's descriptors, working directory and id.

    Raises:
        LoadError, OSError, GoAbiError: the program cannot be run.
        EmulatorError: the emulator failed.
    """
    arch = read_elf_header(path).arch
    machine: Machine | None = None
    session = Session(
        "emulated",
        Program.shown(path, argv, stub=stub is not None),
        this_machine(),
        "server",
        log=_log,
        send_signal=lambda number: machine.raise_signal(number) if machine is not None else None,
        keep_descriptor=lambda fd: fd,
    )
    resources = EmulatedResources(arch, path, server, session, away, stub)
    pid = own_pid() if seed is None else REPEATABLE_PID
    linker_path = away.linker_path if away is not None else None
    machine = Machine(path, argv, env, resources, pid=pid, seed=seed, observer=sink, linker_path=linker_path)
    if away is not None:
        announce_guest(Guest(path, machine.space.base, machine.load_bias))
    if seed is not None:
        resources.repeat(machine, own_pid())
    auxv = b""
    if remote is not None:
        auxv = find_auxv(machine.space, machine.threads[pid].context.sp)
        remote.make(machine, server, session)
    if sink is not None:
        sink.start(machine)
    relay = SignalRelay(machine, restarts=away is not None)
    try:
        if server is not None:
            server.session_started(session)
        try:
            status = machine.run()
        except UnsupportedRemoteAccessError as error:
            where = place_in(path, error.pc - machine.load_bias)
            raise UnsupportedInstructionError(
                machine.pid, f"{error}{where}; {_keep_core(machine, auxv)}"
            ) from error
        if machine.unknown_instruction is not None and os.WIFSIGNALED(status):
            _explain_death(machine, machine.unknown_instruction, 2 if away is None else away.stderr)
        if machine.is_child:
            end_as(status)
        if server is not None:
            code = os.waitstatus_to_exitcode(status)
            server.exited(session, code if code >= 0 else None, max(-code, 0))
        return status
    finally:
        relay.close()
        resources.close()
        machine.close()
        if server is not None:
            server.session_ended(session)


def _keep_core(machine: Machine, auxv: bytes) -> str:
    """Write a core of the program, which ends with this process; say where it is, or why it is nowhere."""
    from ptserver.emulated.core import CoreNotWrittenError, write_core

    try:
        core = write_core(machine, auxv)
    except CoreNotWrittenError as error:
        return f"the program was ended, and {error}"
    return f"the program was ended as it was before it: inspect {core} (`ptserver goroutines {core}`)"


def _explain_death(machine: Machine, pc: int, stderr: int) -> None:
    """Say which instruction the emulator lacks, of a program that has died by a signal."""
    try:
        code = machine.space.read(pc, _SHOWN_CODE_BYTES).hex(" ")
    except MemoryFaultError:
        return
    where = place_in(machine.path, pc - machine.load_bias)
    text = f"ptserver: the emulator does not know the instruction at {pc:#x}{where}: {code}\n"
    os.write(stderr, os.fsencode(text))


def end_as(status: int) -> NoReturn:
    """End this process with wait status *status*: by its exit status, or by the signal."""
    os._exit(endings.end_as(status))


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
