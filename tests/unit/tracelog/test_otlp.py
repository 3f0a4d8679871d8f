"""Calls as OpenTelemetry spans: to a file, and to a collector of the test's own on the loopback interface."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptserver.tracelog.errors import TraceOutputError
from ptserver.tracelog.events import ExitEvent, Frame, LossEvent, SyscallEvent, TraceStart
from ptserver.tracelog.otlp import OtlpSink, _Collector
from ptserver.tracelog.sinks import open_sink

START = TraceStart(("./main", "-v"), "amd64", 1_000, 5_000_001_000, 42)
OPEN = SyscallEvent(
    2_000, 500, 42, 43, "openat", (2**64 - 100, 1, 0, 0, 0, 0), {1: b"/nonexistent"}, {}, -1, 2, False, 7,
    (Frame("os.Open", "/go/os.go", 5),),
)  # fmt: skip
READ = SyscallEvent(9_000, 1_000, 42, 44, "read", (3, 1, 8, 0, 0, 0), {}, {1: b"12345678"}, 8, 0, False, 7)
POLL = SyscallEvent(9_500, None, 42, 44, "epoll_pwait", (5, 0, 1, 1000, 0, 0))


def spans(requests: list[bytes]) -> list[dict[str, Any]]:
    found = []
    for request in requests:
        (resource,) = json.loads(request)["resourceSpans"]
        keys = {each["key"]: each["value"] for each in resource["resource"]["attributes"]}
        assert keys["service.name"] == {"stringValue": "./main"}
        assert keys["process.pid"] == {"intValue": "42"}
        assert keys["process.command_args"]["arrayValue"]["values"][1] == {"stringValue": "-v"}
        (scope,) = resource["scopeSpans"]
        assert scope["scope"]["name"] == "ptserver"
        found += scope["spans"]
    return found


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in span["attributes"]}


def check(found: list[dict[str, Any]]) -> None:
    by_name = {span["name"]: span for span in found}
    assert set(by_name) == {"program", "goroutine 7", "thread 44", "openat", "read", "epoll_pwait"}
    assert len({span["traceId"] for span in found}) == 1
    assert len({span["spanId"] for span in found}) == len(found)
    assert all(len(span["traceId"]) == 32 and len(span["spanId"]) == 16 for span in found)
    program, goroutine, call = by_name["program"], by_name["goroutine 7"], by_name["openat"]
    assert "parentSpanId" not in program
    assert goroutine["parentSpanId"] == by_name["thread 44"]["parentSpanId"] == program["spanId"]
    assert call["parentSpanId"] == by_name["read"]["parentSpanId"] == goroutine["spanId"]
    assert (call["startTimeUnixNano"], call["endTimeUnixNano"]) == ("5000002000", "5000002500")
    assert (goroutine["startTimeUnixNano"], goroutine["endTimeUnixNano"]) == ("5000002000", "5000010000")
    assert call["status"] == {"code": 2, "message": "ENOENT"}
    assert "status" not in by_name["read"]
    said = attributes(call)
    assert said["syscall.name"] == "openat"
    assert said["syscall.args.path"] == "/nonexistent"
    assert said["syscall.args.flags"] == {"values": [{"stringValue": "O_RDONLY"}]}
    assert said["syscall.args.dirfd"] == "AT_FDCWD"
    assert (said["go.goroutine.id"], said["thread.id"], said["syscall.result"]) == ("7", "43", "-1")
    assert said["error.type"] == "ENOENT"
    assert said["code.stacktrace"] == "os.Open /go/os.go:5"
    assert attributes(program)["process.exit.code"] == "3"
    poll = by_name["epoll_pwait"]
    assert poll["startTimeUnixNano"] == poll["endTimeUnixNano"]
    assert "syscall.result" not in attributes(poll)


def feed(sink: Any) -> None:
    for event in (OPEN, READ, POLL, LossEvent(1, 2), ExitEvent(10_000, 42, 42, 3)):
        sink.event(event)
    sink.flush()
    sink.close()


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    feed(open_sink("otlp", str(path), START))
    check(spans(path.read_bytes().splitlines()))


class Stub(http.server.BaseHTTPRequestHandler):
    """Keeps what it is sent; answers with the server's `status`."""

    protocol_version = "HTTP/1.1"
    server: "Collector"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers["Content-Type"], body))
        self.server.may_answer.wait(30)
        self.send_response(self.server.status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Collector(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Stub)
        self.asked: list[tuple[str, str, bytes]] = []
        self.status = 200
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.may_answer.set()
        server.shutdown()
        thread.join()


def test_a_collector(collector: Collector) -> None:
    feed(open_sink("otlp", collector.url, START))
    assert {(path, kind) for path, kind, _ in collector.asked} == {("/v1/traces", "application/json")}
    check(spans([body for _, _, body in collector.asked]))


def test_a_path_of_ones_own(collector: Collector) -> None:
    feed(open_sink("otlp", collector.url + "/otlp/here", START))
    assert {path for path, _, _ in collector.asked} == {"/otlp/here"}


def test_many_spans_go_in_batches(collector: Collector) -> None:
    sink = OtlpSink.open(collector.url, START)
    for number in range(1300):
        sink.event(READ._replace(start_ns=10_000 * number))
    sink.close()
    sizes = [len(spans([body])) for _, _, body in collector.asked]
    assert sizes == [512, 512, 1300 - 1024 + 2]


def test_a_slow_collector_keeps_nobody_waiting_and_what_is_dropped_is_counted(collector: Collector) -> None:
    said: list[str] = []
    collector.may_answer.clear()
    exporter = _Collector(collector.url, said.append)
    for _ in range(100):
        exporter.export(b"{}", 10)  # returns at once
    assert exporter.dropped >= 10 * (100 - 64 - 1)
    collector.may_answer.set()
    exporter.close()
    assert len(collector.asked) * 10 + exporter.dropped == 1000
    assert said == [f"{exporter.dropped} spans were dropped: {collector.url} did not take them"]


def test_a_collector_that_refuses_is_named_once(collector: Collector) -> None:
    said: list[str] = []
    collector.status = 503
    exporter = _Collector(collector.url, said.append)
    for _ in range(3):
        exporter.export(b"{}", 2)
    exporter.close()
    assert said == [
        f"cannot send the trace to {collector.url}: it answers 503 Service Unavailable",
        f"6 spans were dropped: {collector.url} did not take them",
    ]


def test_nobody_there() -> None:
    said: list[str] = []
    exporter = _Collector("http://127.0.0.1:1", said.append)
    exporter.export(b"{}", 1)
    exporter.close()
    assert "Connection refused" in said[0]
    assert said[1].startswith("1 spans were dropped")


@pytest.mark.parametrize("url", ["http://", "http://:4318", "http://host:port/"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(TraceOutputError, match="is no address of a collector"):
        open_sink("otlp", url, START)
