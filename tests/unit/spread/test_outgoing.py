"""What the home says to hosts: pages together, and all in order."""

from ptserver.spread.messages import AllowWrite, SpreadMessage
from ptserver.spread.outgoing import MOST_PAGES, Outgoing
from ptserver.spread.page_messages import Access, PutPages, SendPages
from stepping.maps import PAGE_BYTES

_DATA = b"a" * PAGE_BYTES + b"b" * PAGE_BYTES


def _said() -> tuple[Outgoing, list[tuple[int, SpreadMessage]]]:
    sent: list[tuple[int, SpreadMessage]] = []
    return Outgoing(lambda *told: sent.append(told)), sent


def test_pages_of_one_kind_that_follow_each_other_go_together() -> None:
    outgoing, sent = _said()
    outgoing.ask(1, 7, keep=True)
    outgoing.put(0, 3, _DATA, PAGE_BYTES, Access.CLEAN)
    outgoing.ask(1, 9, keep=False)
    outgoing.put(0, 4, _DATA, 0, Access.READ)
    assert not sent
    outgoing.flush()
    assert sent == [
        (1, SendPages((7, 9), b"\1\0")),
        (0, PutPages((3, 4), bytes((Access.CLEAN, Access.READ)), _DATA[PAGE_BYTES:] + _DATA[:PAGE_BYTES])),
    ]
    assert not outgoing.waits


def test_all_that_is_said_to_a_host_is_said_in_order() -> None:
    outgoing, sent = _said()
    outgoing.ask(1, 7, keep=False)
    outgoing.put(1, 8, b"c", 0, Access.WRITE)
    outgoing.say(0, AllowWrite(1))
    outgoing.say(1, AllowWrite(2))
    outgoing.flush()
    assert [message for host, message in sent if host] == [
        SendPages((7,), b"\0"),
        PutPages((8,), bytes((Access.WRITE,)), b"c"),
        AllowWrite(2),
    ]


def test_no_message_has_more_pages_than_a_frame_has_room_for() -> None:
    outgoing, sent = _said()
    for page in range(MOST_PAGES + 1):
        outgoing.put(1, page, b"", 0, Access.READ)
    outgoing.flush()
    assert [len(message.pages) for _, message in sent if isinstance(message, PutPages)] == [MOST_PAGES, 1]


def test_what_has_come_together_and_goes_together_is_not_copied() -> None:
    outgoing, sent = _said()
    for place, page in enumerate((7, 9)):
        outgoing.put(1, page, _DATA, place * PAGE_BYTES, Access.WRITE)
    outgoing.flush()
    ((_, message),) = sent
    assert isinstance(message, PutPages)
    assert message.data is _DATA
