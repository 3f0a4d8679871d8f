"""Signals to a spread program as a whole are taken although its threads sleep, whose sleep is the home's."""

import errno
import struct

from ptserver.spread.address_space import AddressSpace
from ptserver.spread.futexes import FUTEX_WAIT
from ptserver.spread.home import Home
from ptserver.spread.messages import Called, Capture, ReadWords, Return, SignalsWait, SpreadMessage, Words
from ptserver.spread.placement import Stay
from stepping.maps import PAGE_BYTES
from stepping.syscalls import SYSCALLS

_FUTEX = SYSCALLS["futex"].numbers["amd64"]
_PAGE = 100
_FIRST, _SECOND = 7, 8


def _asleep(*tids: int) -> tuple[Home, list[tuple[int, SpreadMessage]]]:
    """Return a home whose threads sleep at host 0, and what it sends from then on."""
    sent: list[tuple[int, SpreadMessage]] = []
    home = Home(2, lambda *told: sent.append(told), lambda *_: None, Stay(), AddressSpace())
    home.pages.place(0, [_PAGE])
    for tid in tids:
        home.threads.begin(tid)
        home.take(0, Called(tid, _FUTEX, (_PAGE * PAGE_BYTES, FUTEX_WAIT, 0, 0, 0, 0), b""))
        for host, message in tuple(sent):
            if isinstance(message, ReadWords):
                home.take(host, Words(message.request, struct.pack("<I", 0)))
        sent.clear()
    return home, sent


def test_one_that_sleeps_is_interrupted_each_time() -> None:
    home, sent = _asleep(_FIRST, _SECOND)
    home.take(0, SignalsWait())
    assert sent == [(0, Return(_FIRST, -errno.EINTR))]
    home.take(0, SignalsWait())
    assert sent[1:] == [(0, Return(_SECOND, -errno.EINTR))]
    home.take(0, SignalsWait())
    assert len(sent) == 2


def test_one_at_another_host_goes_to_host_0_for_it() -> None:
    home, sent = _asleep(_FIRST)
    home.threads[_FIRST].host = 1
    home.take(0, SignalsWait())
    assert sent == [(1, Capture(_FIRST))]
    assert (home.threads[_FIRST].to, home.threads[_FIRST].result) == (0, -errno.EINTR)
