"""The handshake of a host that waits for a program: one message more, then the roles are those of any session.

    server                                              host
      |------------- offer  (JSON, at most 64 KiB) ------->|   there is a program for you
      |<------------ hello or refused  (JSON) -------------|
      |------------- welcome or refused  (JSON) ---------->|
      |<=== everything else, in the codec of the welcome ==>|

Who has connected to whom does not matter: the server speaks first. The rest is `ptserver.net.connection`'s, which the
server goes on with by `server_handshake`, the host by `client_handshake`. Functions here block, with a deadline.
"""

import hmac
import time
from collections.abc import Callable

from ptserver.errors import ProtocolError, PtServerError, RefusedError
from ptserver.messages import Offer, Resume
from ptserver.net.connection import Stream, check_versions, read_frame, refuse, send_all
from ptserver.net.wire import MAX_HELLO_BYTES, Codec

_JSON = Codec("json")
#: The purposes of offers: to execute a program, and to be one of several hosts that do.
RUN, SPREAD = "run", "spread"
_PURPOSES = (RUN, SPREAD)


def send_offer(sock: Stream, offer: Offer, timeout: float = 10.0) -> None:
    """Tell a host that there is a program for it.

    Raises:
        ConnectionLostError: it is gone.
        TimeoutError: it does not read.
    """
    send_all(sock, _JSON.encode(offer), time.monotonic() + timeout)


def read_offer(
    sock: Stream, arch: str, token: str | None, timeout: float, admit: Callable[[], None]
) -> Offer | Resume:
    """Return the offer of a server that may have it executed here; otherwise tell it why not, and close.

    Who wants to resume a session is heard here as well, and judged by `bring_back`.

    arch: this machine's; token: the secret that the offer must bring, if any; *admit* raises RefusedError if there is
    no room.

    Raises:
        RefusedError: the server may not, or the program cannot be executed here.
        ProtocolError: no well-formed offer came in time.
        ConnectionLostError: the peer closed.
    """
    try:
        try:
            offer: Offer | Resume = _JSON.decoder(Offer | Resume)(
                read_frame(sock, MAX_HELLO_BYTES, time.monotonic() + timeout)
            )
        except TimeoutError as error:
            raise ProtocolError(f"the peer did not complete its offer within {timeout:g} s") from error
        if isinstance(offer, Resume):
            return offer
        check_versions(offer.versions)
        if token is not None and not hmac.compare_digest(offer.token.encode(), token.encode()):
            raise RefusedError("token", "the token is wrong or missing: give this host's with --token-file")
        if offer.purpose not in _PURPOSES:
            raise RefusedError(
                "purpose", f"this host executes programs; it is not there to {offer.purpose!r} them"
            )
        if offer.executable.arch != arch:
            raise RefusedError("launch", f"the program is for {offer.executable.arch}, this host is {arch}")
        admit()
    except PtServerError as error:
        refuse(sock, error)
        raise
    return offer
