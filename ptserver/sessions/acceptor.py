"""Accepts connections, has each served by a process of its own, and keeps count of them.

A peer that has connected is *unheard* until it has said a hello that may come in. It costs a process until then, so
each peer gets a few at a time; its further connections wait for their turn, and beyond `_MAX_UNHEARD_OF_PEER` they
are closed at once. A peer is an IPv4 address, an IPv6 network of 64 bits, or a user of this machine. So whoever
connects and says nothing keeps nobody waiting but himself. Sessions are counted apart: the session's process
asks for room when its peer has proved who it is.

Not trusted: peers; nothing that they send is read here.
Thread rules: trio's thread.
"""

import contextlib
import ipaddress
import os
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Callable

import trio

from ptserver.sessions.log import Log
from ptserver.sessions.spawner import Spawner
from ptserver.sessions.start import ADMITTED, WATCHER

_PROCESSES_OF_PEER = 16
_MAX_UNHEARD_OF_PEER = 128
_MAX_UNHEARD = 512
_MAX_WATCHERS = 64
_UCRED = struct.Struct("=iII")


class Acceptor:
    """Hands connections to the zygote, and knows how many sessions there are.

    zygote_died: set when that is why `count` stopped.
    """

    def __init__(
        self,
        listener: socket.socket | None,
        spawner: Spawner,
        max_sessions: int,
        log: Log,
        ended: Callable[[str], None],
    ) -> None:
        """Accept from *listener*, which may be None where `accept` is another; *ended* hears of sessions' ends."""
        self._session_ended = ended
        self._room = trio.Condition()
        self.zygote_died = False
        self._listener = listener
        self._spawner = spawner
        self._max_sessions = max_sessions
        self._log = log
        self._processes: set[str] = set()
        self._sessions: set[str] = set()
        self._watchers: set[str] = set()
        self._unheard = 0
        self._turns: dict[str, trio.CapacityLimiter] = {}
        self._prefix = secrets.token_hex(3)
        self._accepted = 0

    async def accept(self, nursery: trio.Nursery) -> None:
        """Accept until cancelled."""
        assert self._listener is not None
        listener = trio.socket.from_stdlib_socket(self._listener)
        while True:
            try:
                connection, _ = await listener.accept()
            except (
                OSError
            ) as error:  # the client is gone already, or there are no descriptors: the queue waits
                self._log(f"cannot accept a connection: {error.strerror}")
                await trio.sleep(0.1)
                continue
            if self._unheard >= _MAX_UNHEARD:
                connection.close()
            else:
                nursery.start_soon(self._take, connection)

    async def count(self, everything: trio.CancelScope) -> None:
        """Count sessions that end, until cancelled; cancel *everything* if the zygote is gone."""
        while True:
            await trio.lowlevel.wait_readable(self._spawner.socket)
            all_ended = self._spawner.take_ended()
            if all_ended is None:
                self.zygote_died = True
                everything.cancel()
                return
            for ended in all_ended:
                self._processes.discard(ended.session)
                self._sessions.discard(ended.session)
                self._watchers.discard(ended.session)
                self._session_ended(ended.session)
                if os.WIFSIGNALED(ended.status):
                    self._log(f"session process {ended.pid} was killed by signal {os.WTERMSIG(ended.status)}")
            async with self._room:
                self._room.notify_all()

    async def has_room(self) -> None:
        """Wait until there can be one more session."""
        async with self._room:
            while len(self._sessions) >= self._max_sessions:
                await self._room.wait()

    async def _take(self, connection: trio.socket.SocketType) -> None:
        """Have a process for *connection* when it is the peer's turn, and stay until the peer was heard."""
        self._unheard += 1
        try:
            async with self._turn(_peer_of(connection)) as has_turn:
                if has_turn:
                    await self._start(connection)
        finally:
            self._unheard -= 1
            connection.close()

    @contextlib.asynccontextmanager
    async def _turn(self, peer: str) -> AsyncIterator[bool]:
        turns = self._turns.setdefault(peer, trio.CapacityLimiter(_PROCESSES_OF_PEER))
        statistics = turns.statistics()
        if statistics.borrowed_tokens + statistics.tasks_waiting >= _MAX_UNHEARD_OF_PEER:
            yield False
            return
        try:
            async with turns:
                yield True
        finally:
            statistics = turns.statistics()
            if not statistics.borrowed_tokens and not statistics.tasks_waiting:
                self._turns.pop(peer, None)

    async def _start(self, connection: trio.socket.SocketType) -> bool:
        """Have a process for *connection*; return whether it has become a session."""
        self._accepted += 1
        session = f"{self._prefix}-{self._accepted}"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with trio.socket.from_stdlib_socket(ours) as asking, theirs:
            self._processes.add(session)
            if await self._spawn(session, _blocking_socket(connection), theirs):
                return await self._answer(session, asking)
            return False

    async def _spawn(self, session: str, connection: socket.socket, admission: socket.socket) -> bool:
        with connection:
            while True:
                await trio.lowlevel.wait_writable(self._spawner.socket)
                try:
                    self._spawner.spawn(session, connection, admission)
                    return True
                except BlockingIOError:
                    continue
                except OSError:
                    return False  # `count` hears of it

    async def _answer(self, session: str, asking: trio.socket.SocketType) -> bool:
        """Wait until *session* asks for room, or has ended; return whether it was let in."""
        try:
            who = await asking.recv(1)
            if not who:
                return False
            counted, most = (
                (self._watchers, _MAX_WATCHERS) if who == WATCHER else (self._sessions, self._max_sessions)
            )
            has_room = len(counted) < most and session in self._processes
            if has_room:
                counted.add(session)
            await asking.send(ADMITTED if has_room else b"-")
        except OSError:
            return False  # the process is gone; `count` hears of it
        return has_room


def _peer_of(connection: trio.socket.SocketType) -> str:
    """Return who is counted as one with others of the same name."""
    try:
        if connection.family == socket.AF_UNIX:
            _, uid, _ = _UCRED.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            )
            return f"user {uid}"
        address = ipaddress.ip_address(connection.getpeername()[0].partition("%")[0])
    except OSError:
        return ""  # gone already
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.ip_network((address, 64), strict=False))
        address = address.ipv4_mapped
    return str(address)


def _blocking_socket(connection: trio.socket.SocketType) -> socket.socket:
    sock = socket.socket(fileno=connection.detach())
    sock.setblocking(True)
    return sock
