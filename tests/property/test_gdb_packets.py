"""GDB's packets: what is encoded is decoded, however it is cut; whatever comes, nothing fails."""

from hypothesis import given
from hypothesis import strategies as st

from ptserver.gdb.packets import Acknowledged, Damaged, Decoder, Interrupt, Packet, encode

messages = st.lists(st.binary(max_size=80), max_size=5)


@given(messages, st.data())
def test_round_trip(wanted: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(encode(one) for one in wanted)
    decoder = Decoder()
    events = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        events += decoder.feed(stream[:size])
        stream = stream[size:]
    assert events == [Packet(one) for one in wanted]


@given(st.binary(max_size=300))
def test_whatever_comes(stream: bytes) -> None:
    decoder = Decoder()
    for event in decoder.feed(stream):
        assert isinstance(event, Packet | Damaged | Acknowledged | Interrupt)


@given(st.binary(min_size=1, max_size=40), st.integers(0, 200), st.integers(1, 255))
def test_a_changed_byte_is_noticed_or_cuts_the_packet(data: bytes, where: int, change: int) -> None:
    packet = bytearray(encode(data))
    packet[1 + where % (len(packet) - 3)] ^= change
    assert Packet(data) not in Decoder().feed(bytes(packet))


def test_forms() -> None:
    assert encode(b"OK") == b"$OK#9a"
    assert encode(b"}#$*") == b"$}]}\x03}\x04}\x0a#62"
    decoder = Decoder()
    assert decoder.feed(b"+$m0* #0f\x03-") == [
        Acknowledged(True),
        Damaged(),
        Interrupt(),
        Acknowledged(False),
    ]
    assert decoder.feed(b"$0* #7a") == [Packet(b"0000")]
    assert decoder.feed(b"$a") == []
    assert decoder.feed(b"b#c3+") == [Packet(b"ab"), Acknowledged(True)]
    assert decoder.feed(b"$*!#4b$}#7d$ab#zz") == [Damaged(), Damaged(), Damaged()]
