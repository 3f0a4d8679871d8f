"""Looks at a running spread program, and tells it what to do: the side of an operator's command.

All that needs Go's structures happens here, in the command's process: the home only gives the memory. The program
runs on meanwhile, so records that change just then may make no sense; those are left out.
"""

import select
import time
from collections.abc import Callable
from typing import Self, TypeVar

from goabi.errors import GoAbiError
from goabi.goroutine import Goroutine, M
from goabi.memory import CachedMemory
from goabi.sched import GoRuntime
from ptserver.errors import ConnectionLostError, PtServerError
from ptserver.inspection.inspector import open_binary
from ptserver.messages import SessionFacts
from ptserver.net.connection import Connection
from ptserver.net.wire import Codec
from ptserver.spread.operator_messages import (
    MAX_PEEK_BYTES,
    Did,
    Drain,
    FromOperator,
    Join,
    List,
    Listed,
    Migrate,
    Peek,
    Peeked,
    ToOperator,
)
from ptserver.spread.registry import spread_registry
from ptserver.watching.watcher import NoSessionError, find_session

_ANSWER_SECONDS = 30.0

T = TypeVar("T")


class NotDoneError(PtServerError):
    """The home of the program did not do what it was asked for."""

    exit_status = 69


def running() -> list[SessionFacts]:
    """Return the spread programs of this user on this machine, the oldest first."""
    return spread_registry().sessions()[0]


class Operator:
    """A connection to the home of a spread program, *session*. Close it."""

    def __init__(self, session: str, connection: Connection[ToOperator]) -> None:
        self.session = session
        self._connection = connection
        self._memory: CachedMemory | None = None
        self._last = 0

    @classmethod
    def connect(cls, name: str | None = None) -> Self:
        """Connect to the program of session *name* (the pid of its home), or to the only one.

        Raises:
            NoSessionError: there is none, or there are several.
        """
        registry = spread_registry()
        sessions, _ = registry.sessions()
        if name is not None:
            session = find_session(sessions, name)
        elif len(sessions) == 1:
            session = sessions[0]
        else:
            there = ", ".join(each.id for each in sessions)
            raise NoSessionError(
                f"say which program, of {there}"
                if sessions
                else "no program of yours is spread on this machine"
            )
        sock = registry.connect(session.id)
        if sock is None:
            raise NoSessionError(f"session {session.id} has ended")
        return cls(session.id, Connection(sock, Codec("msgpack"), ToOperator))

    def list(self, *, faults: bool = False) -> Listed:
        """Return what there is. faults: with those since the last time, and counted from now on.

        Raises:
            ConnectionLostError, ProtocolError: the program has ended, or its home hangs; so do all methods.
        """
        return self._ask(List(self._number(), faults), Listed)

    def peek(self, address: int, size: int) -> bytes | None:
        """Return *size* bytes of the program's memory, at most `MAX_PEEK_BYTES`; None if it may not touch them."""
        answer = self._ask(Peek(self._number(), address, size), Peeked)
        return answer.data if answer.mapped else None

    def drain(self, host: int) -> None:
        """Move everything off a host and let it go; takes as long as that takes.

        Raises:
            NotDoneError: says why not.
        """
        self._do(Drain(self._number(), host), None)

    def join(self, address: str, keys: str | None, token_file: str | None) -> int:
        """Take another host; return its number.

        Raises:
            NotDoneError: says why not.
        """
        return self._do(Join(self._number(), address, keys or "", token_file or ""), None)

    def migrate(self, goroutine: Goroutine, m: M | None, runtime: GoRuntime, to: int, seconds: float) -> bool:
        """Want a goroutine at a host; return whether it went there within *seconds*. m: what it runs on, if known.

        Raises:
            NotDoneError: says why it cannot.
        """
        goid_at = goroutine.addr + runtime.layouts["g"].offset("goid")
        tid, curg_at = (m.procid, m.addr + runtime.layouts["m"].offset("curg")) if m is not None else (0, 0)
        wish = Migrate(self._number(), goroutine.addr, goroutine.goid, goid_at, tid, curg_at, to)
        try:
            self._do(wish, seconds)
        except TimeoutError:
            return False
        return True

    def runtime(self, path: str) -> GoRuntime:
        """Return the program's runtime. path: the program's file.

        Raises:
            InspectError: it is no Go program that is known.
        """
        binary = open_binary(path, path, "", force=False)
        self._memory = CachedMemory(_Memory(self, binary.elf.read))
        return GoRuntime(binary, self._memory)

    def forget_memory(self) -> None:
        """Have the runtime read everything anew."""
        if self._memory is not None:
            self._memory.clear()

    def close(self) -> None:
        """Let go."""
        self._connection.close()

    def _number(self) -> int:
        self._last += 1
        return self._last

    def _do(self, message: FromOperator, seconds: float | None) -> int:
        answer = self._ask(message, Did, seconds)
        if answer.error:
            raise NotDoneError(answer.error)
        return answer.host

    def _ask(self, message: FromOperator, kind: type[T], seconds: float | None = _ANSWER_SECONDS) -> T:
        self._connection.send(message)
        if not self._connection.drain(_ANSWER_SECONDS):
            raise ConnectionLostError(f"the program's home takes nothing for {_ANSWER_SECONDS:g} s")
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        deadline = time.monotonic() + seconds if seconds is not None else None
        while True:
            if not poll.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError(f"the program's home did not answer for {seconds:g} s")
            for answer in self._connection.receive():
                if answer.request == message.request and isinstance(answer, kind):
                    return answer


class _Memory:
    """The program's memory, and what never changes of it, from its file."""

    def __init__(self, operator: Operator, read_file: Callable[[int, int], bytes]) -> None:
        self._operator = operator
        self._read_file = read_file

    def read(self, addr: int, size: int, /) -> bytes:
        """See `MemoryReader.read`."""
        data = bytearray()
        while len(data) < size:
            part = self._operator.peek(addr + len(data), min(size - len(data), MAX_PEEK_BYTES))
            if part is None:
                return self._read_file(addr, size)
            data += part
        return bytes(data)


def threads_of(runtime: GoRuntime) -> dict[int, M]:
    """Return the Ms by the address of the goroutine that each runs; none if they change too fast to be read."""
    try:
        return {m.curg: m for m in runtime.iter_ms() if m.curg}
    except GoAbiError:
        return {}


def host_number(listed: Listed, name: str) -> int:
    """Return the number of a host that a user named by that or by its address.

    Raises:
        NotDoneError: there is none.
    """
    for row in listed.hosts:
        if name == str(row.host) or (row.host and name == row.address):
            return row.host
    there = ", ".join(f"{row.host} ({row.address})" for row in listed.hosts)
    raise NotDoneError(f"there is no host {name}; there are {there}")
