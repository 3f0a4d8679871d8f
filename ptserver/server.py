"""`RuntimeServer`: what you subclass to write a runtime server.

    class NoTmp(RuntimeServer):
        def openat(self, call: Call) -> Outcome:
            if call.path.startswith("/tmp/"):
                return call.fail(errno.EACCES)
            return call.proceed()

A method named after a syscall serves that call; with `@observe` it only watches. One instance belongs to one
session, so `self` may hold whatever the session needs. All methods of an instance run on one thread, one
after the other, and should not wait: return `Delay` instead of sleeping.

A method that raises OSError fails the call with that error's number; any other exception is a mistake in the
server, and ends the session with a traceback in the log.
"""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from ptserver.call import Call
from ptserver.errors import RefusedError, ServerLoadError
from ptserver.memory_access import MemoryAccess
from ptserver.messages import GoroutineEvent, GoroutineEventKind, GoroutineStatistics, Interest
from ptserver.outcomes import Delay, Done, Fail, OpenBytes, Outcome, Proceed, Return
from ptserver.session import Session
from stepping.syscalls import SYSCALLS, SyscallClass

__all__ = [
    "IGNORE",
    "OBSERVE",
    "SERVE",
    "Call",
    "Delay",
    "Done",
    "Fail",
    "GoroutineEvent",
    "GoroutineStatistics",
    "Interest",
    "MemoryAccess",
    "OpenBytes",
    "Outcome",
    "Proceed",
    "Return",
    "RuntimeServer",
    "Session",
    "check_hears",
    "observe",
]

#: The call runs where the program runs, and nobody sees it.
IGNORE: Interest = "ignore"
#: The call runs as if nobody cared, and the server hears of it.
OBSERVE: Interest = "observe"
#: The server answers the call.
SERVE: Interest = "serve"

_Method = TypeVar("_Method", bound=Callable[..., Any])


def observe(method: _Method) -> _Method:
    """Mark a method named after a syscall as one that only watches: what it returns is not used."""
    method._observes = True  # type: ignore[attr-defined]
    return method


class RuntimeServer:
    """Answers the calls of one session of a program.

    name: what the program is told (`runtime/remote`'s Info) and logs show; the class's name by default.
    abstraction: the OS abstraction that it presents (GOOSREMOTE); a program built for another is refused.
    interests: what it wants of calls that it has no method for, by syscall name, or by class of syscalls as
    ``"%file"`` (see `stepping.syscalls.SyscallClass`); a name outweighs its class.
    goroutines: whether `Call.goid` is wanted; finding it costs some microseconds a call.
    statistics_seconds: how often `goroutine_statistics` is wanted, 0 for never.
    goroutine_events: of which events of goroutines `goroutine_event` wants to hear, of programs that are spread over
    hosts (``ptserver run --spread``): ``create``, ``start``, ``block``, ``unblock``, ``exit``, ``move``.
    """

    name: ClassVar[str] = ""
    abstraction: ClassVar[str] = "linux"
    goroutines: ClassVar[bool] = False
    statistics_seconds: ClassVar[float] = 0
    goroutine_events: ClassVar[tuple[GoroutineEventKind, ...]] = ()
    interests: ClassVar[dict[str, Interest]] = {}

    def session_started(self, session: Session) -> None:
        """A program begins; nothing of it has run yet."""

    def session_ended(self, session: Session) -> None:
        """The session is over, however it ended; always the last that is called."""

    def thread_event(self, session: Session, tid: int, event: str) -> None:
        """Thread *tid* of the program was ``created`` or has ``exited``."""

    def goroutine_statistics(self, session: Session, statistics: GoroutineStatistics) -> None:
        """The program's goroutines have used so much since it began; asked for by `statistics_seconds`."""

    def goroutine_event(self, session: Session, event: GoroutineEvent) -> int | None:
        """Something became of a goroutine of a spread program: return the host where it is to run, None for anywhere.

        It is heard of some milliseconds later, and nothing waits for the answer. Costs nothing unless
        `goroutine_events` names some.
        """
        return None

    def exited(self, session: Session, status: int | None, signo: int) -> None:
        """The program is gone: with exit *status*, or None if signal *signo* killed it."""

    def observe(self, call: Call) -> None:
        """A call is made that this server observes and has no method for."""

    def finished(self, call: Call, done: Done) -> None:
        """A served call got its answer. Costs nothing unless overridden."""

    def memory_get(self, access: MemoryAccess) -> bytes | None:
        """A remote variable is read: return what it reads (`access.size` bytes), or None for what is there."""

    def memory_set(self, access: MemoryAccess) -> bytes | None:
        """A remote variable is written: return what is to be there instead of `access.data`, or None for that."""

    def memory_atomic(self, access: MemoryAccess) -> bytes | None:
        """An atomic operation on a remote variable: None to have it done, or what it finds, and nothing is done."""

    @classmethod
    def declared_interest(cls) -> dict[str, Interest]:
        """Return what this class wants of each syscall by name; names that are absent are ignored.

        A method named after a syscall outweighs `interests`, where a name outweighs a class.

        Raises:
            ServerLoadError: `interests` names what is no syscall, no class, or no interest.
        """
        declared: dict[str, Interest] = {}
        names: dict[str, Interest] = {}
        for key, interest in cls.interests.items():
            if interest not in (IGNORE, OBSERVE, SERVE):
                raise ServerLoadError(f"{cls.__name__}.interests[{key!r}] is {interest!r}, not an interest")
            if key.startswith("%"):
                declared |= dict.fromkeys(_names_of_class(cls, key), interest)
            elif key in SYSCALLS:
                names[key] = interest
            else:
                raise ServerLoadError(f"{cls.__name__}.interests: there is no syscall {key!r}")
        declared |= names
        for name in dir(cls):
            if name in SYSCALLS and callable(method := getattr(cls, name)):
                declared[name] = OBSERVE if getattr(method, "_observes", False) else SERVE
        return declared

    @classmethod
    def display_name(cls) -> str:
        """Return the name that users see."""
        return cls.name or cls.__name__


def check_hears(server: type[RuntimeServer]) -> None:
    """Look whether *server* is one for a spread program, of which it can only hear.

    Raises:
        RefusedError: it wants the program's calls, or wants to hear of no goroutines.
    """
    taken = sorted(name for name, interest in server.declared_interest().items() if interest != IGNORE)
    if taken:
        raise RefusedError(
            "spread",
            f"the server {server.display_name()} takes calls ({', '.join(taken[:3])}{', ...' * (len(taken) > 3)}),"
            " which are made by the hosts of a spread program",
        )
    if not server.goroutine_events:
        raise RefusedError("spread", f"the server {server.display_name()} wants no events of goroutines")


def _names_of_class(cls: type[RuntimeServer], key: str) -> list[str]:
    try:
        klass = SyscallClass(key[1:])
    except ValueError:
        classes = ", ".join(f"%{klass.value}" for klass in SyscallClass)
        raise ServerLoadError(f"{cls.__name__}.interests: {key!r} is not one of {classes}") from None
    return [name for name, syscall in SYSCALLS.items() if syscall.klass is klass]
