"""What is told to watchers, without a program: nothing is waited for, and what is left out is counted."""

from pathlib import Path

import pytest

from ptserver.attach.counts import CallCounts
from ptserver.attach.snapshot import CallUse, GoroutineUse, SiteUse, Snapshot, Use
from ptserver.errors import ProtocolError
from ptserver.hosts.watches import HostWatches
from ptserver.messages import (
    Message,
    SessionFacts,
    ToServer,
    Unwatch,
    Watch,
    WatchedCalls,
    WatchedFrame,
    WatchedRows,
    WatchEnded,
)
from ptserver.net.connection import Connection
from ptserver.net.poll_loop import PollLoop
from ptserver.net.wire import Codec
from ptserver.sessions.registry import SessionRegistry
from ptserver.sessions.watches import SessionWatches
from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.errors import TraceFormatError
from ptserver.tracelog.events import Frame, GcEvent, GoEvent, SyscallEvent, TraceSink
from ptserver.tracelog.jsonl import decode_event
from tests.ringrecords import batch_of

CALL = SyscallEvent(5, 7, 100, 101, "read", (3, 0x1000, 8, 0, 0, 0), {}, {1: b"x" * 9000}, 8, goid=4)


class FakeHost:
    """A host whose calls a test makes up."""

    def __init__(self) -> None:
        self.pid = 100
        self.sinks: list[TraceSink] = []

    def find_goroutines(self, path: str) -> None:
        assert path == "/proc/100/exe"

    def start_trace(
        self, sink: TraceSink, names: object, *, stacks: bool, events: object, runtime: object
    ) -> None:
        self.sinks.append(sink)

    def stop_trace(self, sink: TraceSink) -> None:
        self.sinks.remove(sink)


class Told:
    """A host's watches, with what they send; room: whether there is any."""

    def __init__(self) -> None:
        self.host = FakeHost()
        self.loop = PollLoop()
        self.sent: list[Message] = []
        self.room = True
        self.watches = HostWatches(self.host, self.loop, self.sent.append, lambda: self.room)  # type: ignore[arg-type]


def test_calls_are_sent_in_batches() -> None:
    told = Told()
    told.watches.take_watch(Watch(3, "trace"))
    (sink,) = told.host.sinks
    for _ in range(1500):
        sink.event(CALL)
    sink.flush()
    sizes = [len(message.calls) for message in told.sent if isinstance(message, WatchedCalls)]
    assert sizes == [1024, 476]
    first = told.sent[0]
    assert isinstance(first, WatchedCalls)
    call = first.calls[0]
    assert (call.name, call.goid, call.value, call.outs) == ("read", 4, 8, {1: b"x" * 4096})
    told.watches.take_unwatch(Unwatch(3))
    assert told.sent[-1] == WatchEnded(3)
    assert told.host.sinks == []
    told.watches.take_unwatch(Unwatch(3))  # ended already


def test_calls_and_what_becomes_of_goroutines_keep_their_order_and_stacks() -> None:
    told = Told()
    told.watches.take_watch(Watch(3, "trace", stacks=True, events=("block",)))
    (sink,) = told.host.sinks
    stack = (Frame("main.main", "/main.go", 7, 0x1000),)
    blocks = GoEvent(6, 100, 101, "block", 4, reason="select", channel=1, stack=stack, channels=(1, 2))
    sink.event(CALL._replace(stack=stack))
    sink.event(CALL._replace(stack=(Frame("runtime.read", pc=1),)))
    sink.calls(CallBatch(batch_of(()), None, [(0, blocks), (0, GcEvent(7, 100, 101, "sweep"))]))
    sink.event(CALL._replace(stack=stack))
    sink.flush()
    first, rows, last = told.sent
    assert isinstance(first, WatchedCalls)
    assert [call.stack for call in first.calls] == [0, 1]
    assert first.stacks == (
        (WatchedFrame("main.main", "/main.go", 7, 0x1000),),
        (WatchedFrame("runtime.read", pc=1),),
    )
    assert isinstance(rows, WatchedRows)
    assert list(map(decode_event, rows.rows)) == [blocks, GcEvent(7, 100, 101, "sweep")]
    assert isinstance(last, WatchedCalls)
    assert [call.stack for call in last.calls] == [0]
    for nonsense in (b"", b"{", b'{"type":"thread","start_ns":1,"pid":1,"tid":1,"event":"created"}'):
        with pytest.raises(TraceFormatError):
            decode_event(nonsense)


def test_without_room_calls_are_kept_for_a_while_and_then_counted() -> None:
    told = Told()
    told.watches.take_watch(Watch(1, "trace"))
    (sink,) = told.host.sinks
    told.room = False
    for _ in range(10_000):
        sink.event(CALL)
    sink.flush()
    assert told.sent == []
    told.room = True
    sink.flush()
    messages = [message for message in told.sent if isinstance(message, WatchedCalls)]
    assert sum(len(message.calls) for message in messages) == 8192
    assert [message.lost for message in messages] == [10_000 - 8192] + [0] * 7


def test_the_end_of_the_program_is_told_to_all() -> None:
    told = Told()
    for number in (1, 2):
        told.watches.take_watch(Watch(number, "trace"))
    told.watches.program_ended(3 << 8)
    assert told.sent == [WatchEnded(number, gone=True, status=3) for number in (1, 2)]


def test_a_server_with_too_many_watches_is_told_so() -> None:
    told = Told()
    for number in range(1, 66):
        told.watches.take_watch(Watch(number, "trace"))
    (ended,) = told.sent
    assert isinstance(ended, WatchEnded)
    assert "watched 64 times already" in ended.problem
    with pytest.raises(ProtocolError):
        told.watches.take_watch(Watch(1, "trace"))


class Relay:
    """A watcher's relay, as a session sees it."""

    def __init__(self, registry: SessionRegistry) -> None:
        sock = registry.connect("ab-1")
        assert sock is not None
        self.connection: Connection[ToServer] = Connection(sock, Codec("msgpack"), ToServer)

    def send(self, message: Message) -> None:
        self.connection.send(message)
        assert self.connection.flush()


def rounds(loop: PollLoop, watches: SessionWatches, count: int = 3) -> None:
    for _ in range(count):
        loop.later(0, lambda: None)  # so that no round waits
        loop.round(watches.before_waiting)


def test_a_session_gives_each_relay_what_is_its(tmp_path: Path) -> None:
    registry, loop, asked = SessionRegistry(str(tmp_path)), PollLoop(), list[Message]()
    watches = SessionWatches(registry.listen("ab-1"), loop, asked.append, lambda fd: fd)
    one, two = Relay(registry), Relay(registry)
    for relay in (one, two):
        relay.send(Watch(9, "trace", "ab-1"))
        rounds(loop, watches)
    assert [(type(message), message.id) for message in asked] == [(Watch, 1), (Watch, 2)]  # type: ignore[attr-defined]
    watches.take(WatchedRows(2, (b"{}",)))
    watches.take(WatchedRows(77, (b"{}",)))  # nobody's
    rounds(loop, watches)
    assert one.connection.receive() == []
    assert two.connection.receive() == [WatchedRows(9, (b"{}",))]
    two.send(Unwatch(9))
    rounds(loop, watches)
    assert asked[-1] == Unwatch(2)
    watches.take(WatchEnded(2))
    rounds(loop, watches)
    assert two.connection.receive() == [WatchEnded(9)]
    one.connection.close()
    rounds(loop, watches)
    assert asked[-1] == Unwatch(1)
    watches.take(WatchedRows(1, (b"{}",)))
    two.connection.close()
    watches.finish()


def test_a_relay_that_takes_nothing_is_sent_no_more_than_there_is_room_for(tmp_path: Path) -> None:
    registry, loop, asked = SessionRegistry(str(tmp_path)), PollLoop(), list[Message]()
    watches = SessionWatches(registry.listen("ab-1"), loop, asked.append, lambda fd: fd)
    relay = Relay(registry)
    relay.send(Watch(9, "attach", "ab-1"))
    rounds(loop, watches)
    row = b"x" * (1 << 20)
    for _ in range(30):
        watches.take(WatchedRows(1, (row,)))
        rounds(loop, watches, 1)
    taken = lost = 0
    for _ in range(200):
        for message in relay.connection.receive():
            assert isinstance(message, WatchedRows)
            taken, lost = taken + len(message.rows), lost + message.lost
        rounds(loop, watches, 1)
    assert 4 <= taken < 30
    watches.take(WatchedRows(1, (b"{}",)))
    rounds(loop, watches)
    (last,) = relay.connection.receive()
    assert isinstance(last, WatchedRows)
    assert taken + lost + last.lost == 30
    relay.connection.close()
    watches.finish()


def test_a_registry_lists_sessions_that_are_there(tmp_path: Path) -> None:
    registry = SessionRegistry(str(tmp_path))
    sockets = [registry.listen(f"ab-{number}") for number in (1, 2)]
    for number in (2, 1):
        registry.describe(SessionFacts(f"ab-{number}", "/bin/x", "here", number))
    assert [facts.id for facts in registry.sessions()[0]] == ["ab-1", "ab-2"]
    sockets[0].close()  # as the session's process does when it dies, however
    assert [facts.id for facts in registry.sessions()[0]] == ["ab-2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ab-2.json", "ab-2.sock"]
    (tmp_path / "zz.json").write_text("garbage")
    assert len(registry.sessions()[0]) == 1
    sockets[1].close()


@pytest.mark.parametrize(
    "name", ["", "..", "../ab-1", "ab-1/../ab-1", "/etc/passwd", "ab-1\0", "AB-1", "ab-1\n"]
)
def test_only_names_of_sessions_become_paths(tmp_path: Path, name: str) -> None:
    registry = SessionRegistry(str(tmp_path / "in"))
    (tmp_path / "in").mkdir()
    with registry.listen("ab-1"):
        assert registry.connect(name) is None


def test_no_socket_is_left_open_by_a_name_that_is_taken(tmp_path: Path) -> None:
    registry = SessionRegistry(str(tmp_path))
    with registry.listen("ab-1"), pytest.raises(OSError, match="in use"):
        registry.listen("ab-1")


def test_calls_are_put_into_snapshots() -> None:
    counts = CallCounts()
    base = Snapshot(
        title="t",
        pid=1,
        monotonic_ns=1,
        interval_ns=1,
        top=(GoroutineUse(4, site="main.main main.go:1", recent=Use(cpu_ns=9), total=Use(cpu_ns=90)),),
        sites=(SiteUse("main.main main.go:1", 1),),
        recent=Use(cpu_ns=9),
    )
    for _ in range(3):
        counts.event(CALL)
    counts.event(CALL._replace(goid=6, name="openat", value=-1, errno=2))
    first = counts.merge(base)
    four, six = first.top
    assert four.recent == Use(cpu_ns=9, calls=3, call_ns=21, read_bytes=24)
    assert (six.goid, six.recent.calls, six.recent.errors) == (6, 1, 1)
    assert first.calls == (CallUse("read", 3, 0, 21), CallUse("openat", 1, 1, 7))
    assert first.recent == Use(cpu_ns=9, calls=4, errors=1, call_ns=28, read_bytes=24)
    assert first.sites[0].recent.calls == 3
    counts.event(CALL)
    second = counts.merge(base)
    assert second.top[0].recent == Use(cpu_ns=9, calls=1, call_ns=7, read_bytes=8)
    assert second.top[0].total == Use(cpu_ns=90, calls=4, call_ns=28, read_bytes=32)
    assert len(second.top) == 1
    assert (second.sites[0].recent.calls, second.sites[0].total.calls) == (1, 4)
    assert counts.merge(base).calls == ()
