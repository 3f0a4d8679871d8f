"""Waits for a host that connects to take a program, where a program does not go to its host.

Not trusted: whoever connects, until it has proved that it may execute the program, which then asks for everything on
this machine: by its certificate, or by the token in its hello.
"""

import hmac
import socket
from collections.abc import Callable

from ptserver.errors import PtServerError, RefusedError
from ptserver.messages import Hello, Offer, ToServer, Welcome
from ptserver.net.connection import Connection, Stream, server_handshake
from ptserver.net.tls import accept_tls, listening_keys
from ptserver.net.transport import close_listener, listen, local_address
from ptserver.offered.handshake import send_offer
from ptserver.running.here import say
from ptserver.running.run import RunOptions
from ptserver.sessions.serve import check_exposure, chosen_token

#: How `--on` says that the host is to come here.
LISTEN = "listen:"
_HANDSHAKE_SECONDS = 5.0

Choose = Callable[[Hello, int, str], Welcome]


def await_host(
    options: RunOptions, keep: Callable[[int], int], offer: Offer, choose: Choose
) -> tuple[Hello, Welcome, Connection[ToServer], str]:
    """Return the handshake with the first host that takes *offer* and may, and the token that it had to know.

    *keep* moves a descriptor out of the program's way; *choose*: as of `server_handshake`.

    Raises:
        AddressError, ConnectError: the address cannot be listened at, or not without TLS.
        KeysError: the folder of keys is not in order.
    """
    assert options.on is not None
    keys = listening_keys(options.keys) if options.keys is not None else None
    token = chosen_token(options.token_file, keys)
    listener = listen(options.on.removeprefix(LISTEN))
    listener = socket.socket(fileno=keep(listener.detach()))

    def choose_trusted(hello: Hello, version: int, codec: str) -> Welcome:
        if token is not None and not hmac.compare_digest(hello.token.encode(), token.encode()):
            raise RefusedError("token", "the token is wrong or missing: give the program's with --token-file")
        return choose(hello, version, codec)

    try:
        check_exposure(listener, keys, token)
        told = ""
        say(f"waiting for a host on {local_address(listener)}")
        while True:
            sock, _ = listener.accept()
            sock = socket.socket(fileno=keep(sock.detach()))
            try:
                stream: Stream = sock if keys is None else accept_tls(sock, keys, _HANDSHAKE_SECONDS)
                send_offer(stream, offer, _HANDSHAKE_SECONDS)
                return *server_handshake(stream, _HANDSHAKE_SECONDS, choose_trusted), token or ""
            except (PtServerError, TimeoutError) as error:
                sock.close()
                if str(error) != told:  # it may try again and again
                    told = str(error)
                    say(f"a host did not take the program: {told}")
    finally:
        close_listener(listener)
