"""Watching sessions of a server from elsewhere: what watchers are told, who may, and that nobody pays for it."""

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ptserver.attach.snapshot import GoroutineUse, Snapshot, decode
from ptserver.errors import ConnectionLostError, RefusedError
from ptserver.inspection.goroutine_list import GoroutineRow, SummaryRow, read_rows
from ptserver.messages import (
    SessionFacts,
    Watch,
    WatchedCalls,
    WatchedRows,
    WatchEnded,
    WatcherHello,
)
from ptserver.net.connection import watcher_handshake
from ptserver.net.transport import connect
from ptserver.net.wire import Codec
from ptserver.watching.watcher import NoSessionError, Watcher
from tests.gofixtures import build
from tests.process.commands import ptserver, refusal
from tests.process.goroutine_work import Worker

TOKEN, WATCH_TOKEN = "a secret of sixteen", "another, for watchers"


class Served:
    """A server, and programs that run under it."""

    def __init__(self, address: str, token: str | None, watch_token: str | None) -> None:
        self.address = address
        self._token = token
        self.to_watch = [
            "--server",
            address,
            *(["--token-file", watch_token or token or ""] if token else []),
        ]

    @contextlib.contextmanager
    def working(self, *words: str) -> Iterator[tuple[Worker, SessionFacts]]:
        token = ["--token-file", self._token] if self._token else []
        pipe = subprocess.PIPE
        command = ["ptserver", "run", "--server", self.address, *token, *words, build("goroutine_work")]
        before = {facts.id for facts in self.sessions()}
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
            try:
                worker = Worker(process)
                (facts,) = [each for each in self.sessions() if each.id not in before]
                yield worker, facts
                assert process.stdin is not None
                process.stdin.close()
                assert process.wait(30) == 0
            finally:
                process.kill()

    def sessions(self) -> list[SessionFacts]:
        status, out, err = ptserver("sessions", "--json", *self.to_watch)
        assert (status, err) == (0, "")
        return [msgspec.json.decode(line, type=SessionFacts) for line in out.splitlines()]

    def watcher(self) -> Watcher:
        return Watcher.connect(self.address, self.to_watch[-1] if self._token else None)


@contextlib.contextmanager
def serving(
    server: str = "passthrough", *, token: str | None = None, watch_token: str | None = None
) -> Iterator[Served]:
    tokens = ["--token-file", token] if token else []
    tokens += ["--watch-token-file", watch_token] if watch_token else []
    command = ["ptserver", "serve", server, "--listen", "localhost:0", *tokens]
    folder = str(Path(__file__).parent)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=folder) as process:
        try:
            assert process.stdout is not None
            yield Served(process.stdout.readline().split()[-1], token, watch_token)
        finally:
            process.terminate()
            _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in log, log


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def work(served: Served) -> Iterator[tuple[Worker, SessionFacts]]:
    with served.working() as running:
        yield running


def told(watcher: Watcher) -> list[WatchedCalls | WatchedRows | WatchEnded]:
    """Wait for what a watcher is told next."""
    select.select([watcher.fileno()], [], [], 30)
    return watcher.receive()


def test_sessions_are_listed(served: Served, work: tuple[Worker, SessionFacts]) -> None:
    _, facts = work
    assert facts.program == str(build("goroutine_work"))
    assert facts.hostname == os.uname().nodename
    status, out, _ = ptserver("sessions", *served.to_watch)
    assert status == 0
    assert facts.id in out
    with served.working() as (_, other):
        assert [each.id for each in served.sessions()] == [facts.id, other.id]
        watcher = served.watcher()
        assert watcher.find(other.id[-3:]).id == other.id
        with pytest.raises(NoSessionError, match="several sessions"):
            watcher.find(facts.id.partition("-")[0])
        watcher.close()
    assert [each.id for each in served.sessions()] == [facts.id]


def test_goroutines_and_stacks(served: Served, work: tuple[Worker, SessionFacts]) -> None:
    worker, facts = work
    status, out, err = ptserver("goroutines", "--json", *served.to_watch, facts.id)
    assert (status, err) == (0, "")
    *rows, summary = read_rows(out.encode().splitlines())
    assert isinstance(summary, SummaryRow)
    goids = {row.goid: row for row in rows if isinstance(row, GoroutineRow)}
    assert set(goids) == {1, *worker.goids.values()}
    assert goids[worker.goids["blocked"]].reason == "select (no cases)"
    status, out, _ = ptserver("goroutines", "-g", *served.to_watch, facts.id)
    assert out.startswith(f"goroutine profile: total {len(goids)}\n")
    _, out, _ = ptserver("goroutines", "--state", "select (no cases)", *served.to_watch, facts.id)
    assert out.count("\n") == 2
    status, out, err = ptserver("stack", *served.to_watch, facts.id, str(worker.goids["blocked"]))
    assert (status, err) == (0, "")
    assert "main.main.func1(...)" in out
    status, out, _ = ptserver("stack", *served.to_watch, facts.id)
    assert len(re.findall("^goroutine ", out, re.MULTILINE)) == len(goids)
    status, message = refusal("stack", *served.to_watch, facts.id, "99999")
    assert status == 66
    assert message.endswith("has no goroutine 99999")


def test_attach_shows_goroutines_and_the_hosts_own_counts(
    served: Served, work: tuple[Worker, SessionFacts]
) -> None:
    worker, facts = work
    before = worker.report()
    status, out, err = ptserver("attach", "--json", "--once", "-n", "0.4", *served.to_watch, facts.id)
    assert (status, err) == (0, "")
    after = worker.report()
    snapshot = decode(out.encode())
    assert snapshot.title.startswith(f"session {facts.id} on {facts.hostname}: ")
    uses = {use.goid: use for use in snapshot.top}
    reader = uses[worker.goids["reader"]]
    assert 0 < reader.recent.calls <= after.reads - before.reads
    assert reader.recent.read_bytes == 1000 * reader.recent.calls
    assert snapshot.recent.cpu_ns > 0
    assert sum(call.calls for call in snapshot.calls) == snapshot.recent.calls
    assert snapshot.goroutines == len(worker.goids) + 1
    (site,) = [site for site in snapshot.sites if site.site == reader.site]
    assert site.recent.calls == reader.recent.calls


def test_time_blocked_is_measured(served: Served, work: tuple[Worker, SessionFacts], tmp_path: Path) -> None:
    worker, facts = work
    status, out, err = ptserver("attach", "--json", "--exact", "--once", *served.to_watch, facts.id)
    assert (status, err) == (0, "")
    snapshot = decode(out.encode())
    assert 0 < uses_of(snapshot, worker, "reader").recent.blocked_ns <= snapshot.interval_ns
    path = tmp_path / "calls"
    command = [
        "trace",
        "--format",
        "recording",
        "--events=block,unblock,start,exit",
        "-e",
        "none",
        "-o",
        path,
    ]
    with subprocess.Popen(["ptserver", *command, *served.to_watch, facts.id]) as trace:
        while not path.exists() or path.stat().st_size < 10_000:
            worker.report()
        trace.send_signal(signal.SIGINT)
        assert trace.wait(30) == 0
    table = ptserver("trace", "--from", path, "-c", "--json", "--by", "goroutine", "--events=block")[1]
    (reader,) = [row for row in json.loads(table)["rows"] if row["goid"] == worker.goids["reader"]]
    assert reader["blocked_ns"] > 10_000_000  # it sleeps for 5 ms after each read
    assert reader["calls"] == 0


def uses_of(snapshot: Snapshot, worker: Worker, name: str) -> GoroutineUse:
    (use,) = [use for use in snapshot.top if use.goid == worker.goids[name]]
    return use


def test_calls_are_traced(served: Served, work: tuple[Worker, SessionFacts]) -> None:
    worker, facts = work
    command = [
        "ptserver",
        "trace",
        "--json",
        "-k",
        "-e",
        "read",
        "--events=block",
        *served.to_watch,
        facts.id,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as trace:
        assert trace.stderr is not None
        start = json.loads(trace.stderr.readline())
        assert (start["type"], start["program"]) == ("start", [facts.program])
        calls = [json.loads(trace.stderr.readline()) for _ in range(80)]
        trace.send_signal(signal.SIGINT)
        calls += [json.loads(line) for line in trace.stderr]
        assert trace.wait(30) == 0
    events = [call for call in calls if call["type"] == "goroutine"]
    calls = [call for call in calls if call["type"] == "syscall"]
    sleeps = [event for event in events if event["goid"] == worker.goids["reader"]]
    assert {(event["event"], event["reason"]) for event in sleeps} >= {("block", "sleep")}
    assert all("main.read" in [frame["function"] for frame in event["stack"]] for event in sleeps)
    assert {call["name"] for call in calls} == {"read"}
    ours = [call for call in calls if call.get("goid") == worker.goids["reader"]]
    assert len(ours) >= 10
    for call in ours:
        assert call["value"] == call["args"]["buf"]["size"] == 1000
        assert call["duration_ns"] > 0
        functions = [frame["function"] for frame in call["stack"]]
        assert functions[0] != "internal/runtime/syscall/linux.Syscall6"
        assert functions.index("syscall.Read") < functions.index("main.read")
        assert functions[-1] == "runtime.goexit"


def test_a_trace_ends_with_its_program(served: Served) -> None:
    with served.working() as (worker, facts):
        command = ["ptserver", "trace", "-e", "exit_group,read", *served.to_watch, facts.id]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as trace:
            assert trace.stderr is not None
            trace.stderr.readline()
            assert worker.process.stdin is not None
            worker.process.stdin.close()
            assert trace.stderr.read().splitlines()[-1].endswith("+++ exited with 0 +++")
            assert trace.wait(30) == 0


def test_several_watchers_at_once(served: Served, work: tuple[Worker, SessionFacts]) -> None:
    worker, facts = work
    watchers = [served.watcher() for _ in range(3)]
    for watcher in watchers:
        watcher.begin(Watch(1, "trace", facts.id, ("read",)))
        watcher.begin(Watch(1, "trace", facts.id, ("epoll_pwait",)))
    for watcher in watchers:
        seen: dict[int, set[str]] = {1: set(), 2: set()}
        while not all(seen.values()):
            for one in told(watcher):
                assert isinstance(one, WatchedCalls)
                seen[one.id] |= {call.name for call in one.calls}
        assert seen == {1: {"read"}, 2: {"epoll_pwait"}}
    watchers[0].close()
    watchers[1].end(1)
    last = None
    while not isinstance(last, WatchEnded):
        for one in told(watchers[1]):
            last = one if one.id == 1 else last
    assert (last.id, last.problem, last.gone) == (1, "", False)
    while not any(told.id == 2 for told in watchers[1].receive()):
        pass  # the other goes on
    while not told(watchers[2]):
        pass
    watchers[1].close()
    watchers[2].close()
    worker.report()


def test_a_watcher_that_reads_nothing_keeps_nobody_waiting(served: Served) -> None:
    pipe = subprocess.PIPE
    command = ["ptserver", "run", "--server", served.address, build("ring_speed")]
    before = {facts.id for facts in served.sessions()}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        slow = served.watcher()
        (facts,) = [each for each in slow.sessions if each.id not in before]
        slow.begin(Watch(1, "trace", facts.id, ("pread64",)))
        seen = 0
        while seen < 2000:  # what is made before the session knows of the watcher is not told
            process.stdin.write("1000 2\n")
            process.stdin.flush()
            process.stdout.readline()  # the program has its answers
            for one in told(slow):
                assert isinstance(one, WatchedCalls)
                seen += len(one.calls) + one.lost
        slow.close()
        process.stdin.close()
        assert process.wait(30) == 0


def test_what_a_host_cannot_tell_is_said(
    served: Served, work: tuple[Worker, SessionFacts], tmp_path: Path
) -> None:
    _, facts = work
    watcher = served.watcher()
    with pytest.raises(NoSessionError, match=r"there is no session .*passwd. any more"):
        list(watcher.rows(Watch(1, "goroutines", "../../etc/passwd")))
    with pytest.raises(NoSessionError, match="is no regular expression"):
        list(watcher.rows(Watch(1, "goroutines", facts.id, function="(")))
    watcher.close()
    # Other tests have had events of this program, without the runtime's calls.
    path = tmp_path / "events"
    with subprocess.Popen(
        ["ptserver", "trace", "--events=block", "-o", path, *served.to_watch, facts.id]
    ) as trace:
        while not path.exists() or not path.stat().st_size:
            select.select([], [], [], 0.01)
        status, message = refusal("trace", "-e", "runtime", *served.to_watch, facts.id)
        trace.send_signal(signal.SIGINT)
    assert status == 66
    assert "without the runtime's own calls" in message
    status, message = refusal("attach", "--once", *served.to_watch, "nonesuch")
    assert status == 66
    assert facts.id in message


def test_a_program_that_is_not_gos(served: Served, tmp_path: Path) -> None:
    source = tmp_path / "wait.c"
    source.write_text(
        '#include <unistd.h>\nint main() { char c; write(1, "r\\n", 2); return read(0, &c, 1); }\n'
    )
    program = tmp_path / "wait"
    subprocess.run(["gcc", "-static", "-o", program, source], check=True)
    pipe = subprocess.PIPE
    before = {facts.id for facts in served.sessions()}
    with subprocess.Popen(
        ["ptserver", "run", "--server", served.address, program], stdin=pipe, stdout=pipe
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (facts,) = [each for each in served.sessions() if each.id not in before]
        status, message = refusal("goroutines", *served.to_watch, facts.id)
        assert status == 66
        assert "is not a Go program" in message
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


def test_tokens(tmp_path: Path) -> None:
    """A watchers' token lets watch, and not run; the server's lets both; none lets neither."""
    token, watch_token, wrong = (tmp_path / name for name in ("token", "watch", "wrong"))
    for path, text in ((token, TOKEN), (watch_token, WATCH_TOKEN), (wrong, "an invention of mine")):
        path.write_text(f"{text}\n")
    with serving(token=str(token), watch_token=str(watch_token)) as served, served.working() as (_, facts):
        for path in (token, watch_token):
            status, out, err = ptserver("sessions", "--server", served.address, "--token-file", str(path))
            assert (status, err) == (0, "")
            assert facts.id in out
        for words in ((), ("--token-file", str(wrong))):
            status, message = refusal("sessions", "--server", served.address, *words)
            assert (status, "token is wrong or missing" in message) == (77, True)
        status, out, err = ptserver(
            "run", "--server", served.address, "--token-file", str(watch_token), build("hello")
        )
        assert (status, out) == (77, "")
        assert "token is wrong or missing" in err


def test_a_watcher_may_only_watch(served: Served, work: tuple[Worker, SessionFacts]) -> None:
    worker, facts = work
    for message in (
        {"type": "syscall", "id": 1, "tid": 1, "pid": 1, "name": "getpid", "args": [0] * 6},
        {"type": "exited", "status": 0},
        {"type": "watcherhello", "versions": [1], "codecs": ["json"], "software": "again"},
        {"type": "watch", "id": 1, "what": "signal", "session": facts.id},
        {"type": "watch", "id": 0, "what": "trace", "session": facts.id},
    ):
        sock = connect(served.address)
        _, connection = watcher_handshake(sock, WatcherHello((1,), ("json",), "test"))
        payload = msgspec.json.encode(message)
        sock.setblocking(True)
        sock.sendall(len(payload).to_bytes(4, "big") + payload)
        sock.settimeout(30)
        while sock.recv(65536):
            pass  # a refusal, and the end
        connection.close()
    worker.report()


def test_a_host_with_the_watchers_hello_is_refused_where_there_is_nothing_to_watch() -> None:
    from ptserver.net.connection import server_handshake

    ours, theirs = socket.socketpair()
    theirs.sendall(bytes(Codec("json").encode(WatcherHello((1,), ("json",), "test"))))
    with pytest.raises(RefusedError, match="can be watched"):
        server_handshake(ours, 5.0, lambda hello, version, codec: pytest.fail("no"))
    theirs.close()


def test_statistics_reach_a_server_that_wants_them(tmp_path: Path) -> None:
    """Both where it runs behind a connection and in the host's process."""
    for where in ("remote", "local"):
        log = tmp_path / where
        os.environ["STATISTICS_LOG"] = str(log)
        try:
            if where == "remote":
                with serving("statistics_server:Statistics") as served, served.working() as (worker, _):
                    check_statistics(worker, log, sees_results=True)
            else:
                command = [
                    "ptserver",
                    "run",
                    "--server",
                    "statistics_server:Statistics",
                    build("goroutine_work"),
                ]
                pipe = subprocess.PIPE
                with subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parent
                ) as process:
                    check_statistics(Worker(process), log, sees_results=False)
                    assert process.stdin is not None
                    process.stdin.close()
                    assert process.wait(30) == 0
        finally:
            del os.environ["STATISTICS_LOG"]


def check_statistics(worker: Worker, log: Path, *, sees_results: bool) -> None:
    start = worker.report()
    while worker.report().reads < start.reads + 200:
        pass
    last = json.loads(log.read_text().splitlines()[-1])
    uses = {each["goid"]: each for each in last["goroutines"]}
    done = worker.report()
    reader = uses[worker.goids["reader"]]
    # The runtime makes a call of its own now and then on a goroutine's thread.
    assert 0 < reader["use"]["calls"] <= done.reads + 10
    if sees_results:
        assert 0 <= 1000 * reader["use"]["calls"] - reader["use"]["read_bytes"] <= 10_000
    assert reader["site"].startswith("main.main main.go:")
    assert sum(each["use"].get("cpu_ns", 0) for each in uses.values()) > 0


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Give an empty folder whose name leaves room for that of a Unix socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_nothing_is_left_of_a_server(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(short_folder))
    with serving() as served:
        (folder,) = short_folder.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        with served.working() as (_, facts):
            assert {path.name for path in folder.iterdir()} == {
                "lock",
                f"{facts.id}.json",
                f"{facts.id}.sock",
            }
            watcher = served.watcher()
            watcher.begin(Watch(1, "attach", watcher.sessions[0].id, interval_ms=100))
            while not any(isinstance(one, WatchedRows) for one in told(watcher)):
                pass
        with contextlib.suppress(ConnectionLostError):
            while not any(isinstance(one, WatchEnded) and one.gone for one in told(watcher)):
                pass
        watcher.close()
        assert served.sessions() == []
        assert [path.name for path in folder.iterdir()] == ["lock"]
    assert not folder.exists()
