"""A proxy on the way to an address that breaks each connection after so many bytes, wherever a message is then.

with CuttingProxy(address, [90_000, 500, 500]) as proxy:
    ... connect to proxy.address: the fourth connection lasts ...
"""

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterable

from ptserver.net.transport import connect, listen, local_address

_RESET = struct.pack("=ii", 1, 0)  # SO_LINGER: close by RST, as a router does that has forgotten a connection


class CuttingProxy:
    """lasts_bytes: how much each connection carries, both ways together; later ones have no end. cuts: so far."""

    def __init__(self, address: str, lasts_bytes: Iterable[int]) -> None:
        self._target = address
        self._budgets = iter(lasts_bytes)
        self._listener = listen("127.0.0.1:0")
        self.address = local_address(self._listener)
        self.cuts = 0
        self._ends, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "CuttingProxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()
        self._thread.join(20)
        self._listener.close()
        self._ends.close()

    def _run(self) -> None:
        """Carry one connection at a time: a client has only one that it uses."""
        while True:
            if self._ends in select.select([self._listener, self._ends], [], [])[0]:
                return
            here, _ = self._listener.accept()
            with contextlib.suppress(OSError), here, connect(self._target) as there:
                self._carry(here, there, next(self._budgets, None))

    def _carry(self, here: socket.socket, there: socket.socket, budget: int | None) -> None:
        other = {here: there, there: here}
        while True:
            ready = select.select([here, there, self._listener, self._ends], [], [])[0]
            if self._ends in ready or (self._listener in ready and len(ready) == 1):
                return  # over, or the client has given this one up
            for sock in (sock for sock in ready if sock in other):
                data = sock.recv(65536 if budget is None else min(budget, 65536))
                if not data:
                    return
                other[sock].sendall(data)
                if budget is not None:
                    budget -= len(data)
                    if budget <= 0:
                        self.cuts += 1
                        for each in other:
                            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                        return
