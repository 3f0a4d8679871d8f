"""How two hosts of a spread program get a connection with each other, and know that it is they. Blocks.

    address = HOST ":" PORT | "[" IPV6 "]" ":" PORT    TCP
            | "@" NAME                                 an abstract Unix socket

    who connects                                      who listens
      |------- hello: magic, own number, other's, nonce --->|
      |<------ nonce, proof ("listens") --------------------|
      |------- proof ("connects") ------------------------->|

A proof is an HMAC-SHA256 by the secret of the two, of which end one is, and all before. So neither learns the secret
of the other, and an old conversation proves nothing. Between machines all of it is under TLS, with a certificate that
is made anew for each program and host, and which the home has told to who connects.

Not trusted: whoever connects, or listens there instead of the host that was meant.
"""

import hmac
import secrets
import socket
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ptserver.errors import ConnectError, ProtocolError, UntrustedError
from ptserver.net.connection import Stream, receive_exactly, send_all
from ptserver.net.transport import connect, is_private, listen
from ptserver.spread.passing_messages import Listening

if TYPE_CHECKING:
    from ptserver.net.tls import Keys

#: How long the whole of it may take, at each end.
SECONDS = 10.0

_MAGIC = b"ptsPEER1"
_HELLO = struct.Struct(f">{len(_MAGIC)}sHH32s")
_NONCE_BYTES = _PROOF_BYTES = 32
#: What the certificates are for; they are told apart by their keys.
_NAME = "host"
_BACKLOG = 128


class Listener:
    """Where a host takes connections of others. home: its connection to the home; listening: tells others where."""

    def __init__(self, home: Stream) -> None:
        """Listen at that address of this machine by which the home reaches it.

        Raises:
            ConnectError: it cannot be listened at.
        """
        self._keys: Keys | None = None
        certificate = ""
        name = home.getsockname()
        if not isinstance(name, tuple):
            self.sock, self.listening = _listen_here()
            return
        if not is_private(name):
            from ptserver.keys import one_time_certificate  # which takes its time, as does ssl
            from ptserver.net.tls import one_time_listening_keys

            certificate, key = one_time_certificate(_NAME)
            self._keys = one_time_listening_keys(certificate, key)
        host = f"[{name[0]}]" if ":" in name[0] else name[0]
        self.sock = listen(f"{host}:0")
        self.listening = Listening(self.sock.getsockname()[1], "", certificate)

    def welcome(
        self, sock: socket.socket, number: int, secret_of: Callable[[int], bytes | None]
    ) -> tuple[int, bytes, Stream]:
        """Return who has connected, with which secret, and the connection; close it if it is none that is expected.

        number: this host's. secret_of: gives the secret of a host that is expected.

        Raises:
            PtServerError, OSError: it is none, or is gone, or says nothing in time.
        """
        deadline = time.monotonic() + SECONDS
        stream: Stream = sock
        if self._keys is not None:
            from ptserver.net.tls import accept_tls

            stream = accept_tls(sock, self._keys, SECONDS)
        try:
            hello = receive_exactly(stream, _HELLO.size, deadline)
            magic, peer, wanted, _ = _HELLO.unpack(hello)
            secret = secret_of(peer)
            if magic != _MAGIC or wanted != number or secret is None:
                raise UntrustedError("somebody connects who is not expected")
            hello += secrets.token_bytes(_NONCE_BYTES)
            send_all(stream, hello[_HELLO.size :] + _proof(secret, b"listens", hello), deadline)
            proof = receive_exactly(stream, _PROOF_BYTES, deadline)
            if not hmac.compare_digest(proof, _proof(secret, b"connects", hello)):
                raise UntrustedError(f"who connects as host {peer} is another")
        except TimeoutError as error:
            stream.close()
            raise ProtocolError(f"who connects says nothing for {SECONDS:g} s") from error
        except BaseException:
            stream.close()
            raise
        return peer, secret, stream


def call(address: str, certificate: str, number: int, peer: int, secret: bytes) -> Stream:
    """Return a connection from this host, *number*, to host *peer* at *address*.

    certificate: what that must show, in PEM; empty without TLS.

    Raises:
        PtServerError: nobody answers there, or it is another.
    """
    deadline = time.monotonic() + SECONDS
    sock = _connect(address)
    stream: Stream = sock
    if certificate:
        from ptserver.net.tls import connect_tls, one_time_connecting_keys

        stream = connect_tls(sock, one_time_connecting_keys(certificate), _NAME, SECONDS)
    try:
        hello = bytearray(_HELLO.pack(_MAGIC, number, peer, secrets.token_bytes(_NONCE_BYTES)))
        send_all(stream, hello, deadline)
        hello += receive_exactly(stream, _NONCE_BYTES, deadline)
        proof = receive_exactly(stream, _PROOF_BYTES, deadline)
        if not hmac.compare_digest(proof, _proof(secret, b"listens", hello)):
            raise UntrustedError(f"who listens at {address} is not host {peer}")
        send_all(stream, _proof(secret, b"connects", hello), deadline)
    except TimeoutError as error:
        stream.close()
        raise ConnectError(f"{address} says nothing for {SECONDS:g} s") from error
    except BaseException:
        stream.close()
        raise
    return stream


def _proof(secret: bytes, end: bytes, said: bytearray) -> bytearray:
    return bytearray(hmac.digest(secret, end + said, "sha256"))


def _listen_here() -> tuple[socket.socket, Listening]:
    """Listen where only processes of this machine's network can connect, and no file is left behind."""
    name = f"ptserver-{secrets.token_hex(16)}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(f"\0{name}")
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ConnectError(f"other hosts cannot be listened to: {error.strerror}") from error
    return sock, Listening(0, name)


def _connect(address: str) -> socket.socket:
    if not address.startswith("@"):
        return connect(address, SECONDS)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(SECONDS)
        sock.connect(f"\0{address[1:]}")
    except OSError as error:
        sock.close()
        raise ConnectError(f"cannot connect to {address}: {error.strerror or error}") from error
    return sock
