"""The end that is connected to: a session that is kept while it has no connection, for who can prove to be its peer.

The session listens at a Unix socket of its server's (`ptserver.sessions.registry`). A new connection is accepted, and
heard, by a process of its own as any other; what begins with `Resume` is brought there, as a descriptor, and the
session answers it. The proof is the *ticket*, which the session's process alone has, besides its peer.

Not trusted: who brings a ticket.
"""

import contextlib
import hmac
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any

from ptserver.errors import ConnectionLostError, ProtocolError, PtServerError, RefusedError
from ptserver.messages import Resume, Resumed
from ptserver.net.carry import as_descriptor
from ptserver.net.connection import Stream, check_versions, refuse, refused_for, send_all
from ptserver.net.lasting import LastingConnection
from ptserver.net.wire import HEADER_BYTES, MAX_HELLO_BYTES, Codec
from ptserver.sessions.registry import BACK, SessionRegistry

_JSON = Codec("json")
#: How long a process of this server may take to say what it brings, and its peer to be told.
_PATIENCE_SECONDS = 1.0


class KeptSession:
    """Where a session gets connections. ticket: for its peer."""

    def __init__(
        self, registry: SessionRegistry, session_id: str, keep: Callable[[int], int] = lambda fd: fd
    ) -> None:
        """Listen. *keep* moves a descriptor out of a program's way.

        Raises:
            OSError: that cannot be.
        """
        self.ticket = f"{session_id}:{secrets.token_hex(24)}"
        self._keep = keep
        self._listener = socket.socket(fileno=keep(registry.listen(session_id, BACK).detach()))
        self._listener.setblocking(False)

    def fileno(self) -> int:
        """Return the socket's number: see `ptserver.net.recovery.Source`."""
        return self._listener.fileno()

    def ask(self, received_bytes: int, seconds: float) -> None:
        """Do nothing: streams come by themselves."""

    def take(self, connection: LastingConnection[Any]) -> tuple[socket.socket, int] | None:
        """Return the stream that was brought, if it may have the session: see `ptserver.net.recovery.Source`."""
        try:
            bringer, _ = self._listener.accept()
        except OSError:
            return None
        with bringer, contextlib.ExitStack() as on_error:
            try:
                bringer.settimeout(_PATIENCE_SECONDS)
                packet, fds, _, _ = socket.recv_fds(bringer, MAX_HELLO_BYTES, 1)
            except OSError:
                return None
            if not fds:
                return None
            stream = socket.socket(fileno=self._keep(fds[0]))
            on_error.callback(stream.close)
            deadline = time.monotonic() + _PATIENCE_SECONDS
            try:
                resume: Resume = _JSON.decoder(Resume)(memoryview(packet)[HEADER_BYTES:])
                if not hmac.compare_digest(resume.ticket.encode(), self.ticket.encode()):
                    raise RefusedError("session", "there is no session with that ticket")
                if not connection.can_resume_at(resume.received_bytes):
                    raise ProtocolError("the session cannot be resumed there")
                send_all(stream, _JSON.encode(Resumed(connection.received_bytes)), deadline)
            except (RefusedError, ProtocolError) as error:
                with contextlib.suppress(OSError, PtServerError):
                    send_all(stream, _JSON.encode(refused_for(error)), deadline)
                return None
            except (OSError, ConnectionLostError):
                return None
            on_error.pop_all()
        return stream, resume.received_bytes

    def close(self) -> None:
        """Be found no more."""
        self._listener.close()


def bring_back(stream: Stream, resume: Resume, token: str | None, registry: SessionRegistry | None) -> None:
    """Bring a connection to the session that it is for, and carry it where it must be; or tell its peer why not.

    token: the secret that the peer must bring as well, if any.

    Raises:
        RefusedError: there is no such session, or the peer may not come in.
    """
    session: socket.socket | None = None
    try:
        check_versions(resume.versions)
        check_token(token, resume.token)
        if registry is not None:
            session = registry.connect(resume.ticket.partition(":")[0], BACK)
        if session is None:
            raise RefusedError("session", "the session is not there any more")
    except RefusedError as error:
        refuse(stream, error)
        raise
    given, carry_on = as_descriptor(stream)
    with session, given, contextlib.suppress(OSError):  # the session ends
        session.settimeout(_PATIENCE_SECONDS)
        socket.send_fds(session, [_JSON.encode(resume)], [given.fileno()])
    carry_on(-1)


def check_token(wanted: str | None, token: str) -> None:
    """Raise RefusedError if a peer that brings *token* may not come in."""
    if wanted is not None and not hmac.compare_digest(token.encode(), wanted.encode()):
        raise RefusedError("token", "the token is wrong or missing: give this server's with --token-file")
