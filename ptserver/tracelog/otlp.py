"""Writes calls as OpenTelemetry spans, to a collector by OTLP/HTTP or to a file, both in OTLP's JSON encoding.

A trace has one span for the program; below it one for each goroutine (or thread, where no goroutine is known), from
its first call in the trace to its last; and below that one for each call. A file has one ExportTraceServiceRequest a
line, as collectors' file receivers read it; what is sent is the same object. No library is needed for it.

A collector is sent to by a thread of its own, so the source never waits for one. What is too much for it is dropped,
and counted in a line at the end.

Source: opentelemetry-proto 1.5 (trace.proto; OTLP/JSON), its semantic conventions for processes, threads, errors.
Thread rules: the sink's methods as `TraceSink`; `_Collector._work` runs on its own thread.
"""

import http.client
import json
import queue
import secrets
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, Protocol

from ptserver import __version__
from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.errors import TraceOutputError
from ptserver.tracelog.events import Event, ExitEvent, SyscallEvent, TraceStart, row_of
from ptserver.tracelog.output import LineWriter, complain_on_stderr
from stepping.syscalls.decode import DEFAULT_LIMIT, decode_call

#: How many spans go into one request, and how long one may wait for others.
_SPANS_AT_ONCE = 512
_WAIT_SECONDS = 1.0
#: How many requests may wait for the collector; how long it may take for one, and for all that are left at the end.
_MOST_WAITING = 64
_REQUEST_SECONDS = 10.0
_LAST_SECONDS = 10.0
#: How many goroutines have spans of their own.
_MOST_GOROUTINES = 1 << 16
_INTERNAL, _FAILED = 1, 2

Span = dict[str, Any]


class _Exporter(Protocol):
    def export(self, request: bytes, spans: int) -> None:
        """Take a request with so many spans."""

    def close(self) -> None:
        """Deliver what is left, as far as that is possible."""


def is_collector(path: str | None) -> bool:
    """Whether `-o` names a collector and not a file."""
    return path is not None and path.startswith(("http://", "https://"))


class OtlpSink:
    """A `TraceSink` of spans. limit: how many bytes of a buffer are written."""

    def __init__(self, exporter: _Exporter, start: TraceStart, *, limit: int = DEFAULT_LIMIT) -> None:
        self._exporter = exporter
        self._arch = start.arch
        self._limit = limit
        self._since_1970_ns = start.realtime_ns - start.monotonic_ns
        self._trace_id = secrets.token_hex(16)
        self._resource = {
            "attributes": [
                _attribute("service.name", start.program[0] if start.program else "(unknown)"),
                *([_attribute("process.pid", start.pid)] if start.pid else []),
                _attribute("process.command_args", list(start.program)),
            ]
        }
        self._program = self._span("program", start.monotonic_ns, "", [])
        self._goroutines: dict[tuple[str, int], Span] = {}
        self._spans: list[Span] = []
        self._next = 0.0
        self._last_ns = start.monotonic_ns

    @classmethod
    def open(cls, path: str | None, start: TraceStart, *, limit: int = DEFAULT_LIMIT) -> "OtlpSink":
        """Return a sink that writes to the file *path*, or sends to the collector at that URL.

        Raises:
            TraceOutputError: the file cannot be made, or the URL is none.
        """
        if path is not None and is_collector(path):
            return cls(_Collector(path), start, limit=limit)
        return cls(_File(LineWriter.open(path)), start, limit=limit)

    def event(self, event: Event) -> None:
        """Make a span of a call."""
        if type(event) is SyscallEvent:
            self._call(event)
        elif type(event) is ExitEvent:
            self._last_ns = event.start_ns
            self._program["attributes"].append(_attribute("process.exit.code", event.status or 0))

    def calls(self, batch: CallBatch) -> None:
        """Make spans of many calls."""
        for event in batch.events():
            self._call(event)

    def flush(self) -> None:
        """Hand on what has waited long enough."""
        if self._spans and time.monotonic() >= self._next:
            self._export()

    def close(self) -> None:
        """Hand on what is left, with the spans of goroutines and of the program."""
        for goroutine in self._goroutines.values():
            self._add(goroutine)
        self._end(self._program, self._last_ns)
        self._add(self._program)
        self._export()
        self._exporter.close()

    def _call(self, event: SyscallEvent) -> None:
        row = row_of(event.name)
        decoded = decode_call(
            row,
            event.args,
            event.ins,
            event.outs,
            event.value,
            event.errno,
            limit=self._limit,
            arch=self._arch,
        )
        end_ns = event.start_ns + (event.duration_ns or 0)
        self._last_ns = max(self._last_ns, end_ns)
        attributes = [
            _attribute("syscall.name", event.name),
            _attribute("thread.id", event.tid),
            *(_attribute(f"syscall.args.{name}", value) for name, value in decoded["args"].items()),
        ]
        if event.goid is not None:
            attributes.append(_attribute("go.goroutine.id", event.goid))
        if event.value is not None:
            attributes.append(_attribute("syscall.result", event.value))
        if event.stack:
            places = [f"{frame.function} {frame.file}:{frame.line}" for frame in event.stack]
            attributes.append(_attribute("code.stacktrace", "\n".join(places)))
        span = self._span(event.name, event.start_ns, self._parent(event, end_ns), attributes)
        self._end(span, end_ns)
        if event.errno:
            span["status"] = {"code": _FAILED, "message": decoded.get("errno", "")}
            attributes.append(_attribute("error.type", decoded.get("errno", "")))
        self._add(span)

    def _parent(self, event: SyscallEvent, end_ns: int) -> str:
        """Return the id of the span of the goroutine that made a call, which lasts at least to its end."""
        key = ("thread", event.tid) if event.goid is None else ("goroutine", event.goid)
        span = self._goroutines.get(key)
        if span is None:
            if len(self._goroutines) >= _MOST_GOROUTINES:
                return str(self._program["spanId"])
            kind, number = key
            name = "go.goroutine.id" if kind == "goroutine" else "thread.id"
            program = str(self._program["spanId"])
            span = self._span(f"{kind} {number}", event.start_ns, program, [_attribute(name, number)])
            self._goroutines[key] = span
        self._end(span, end_ns)
        return str(span["spanId"])

    def _span(self, name: str, start_ns: int, parent: str, attributes: list[dict[str, Any]]) -> Span:
        return {
            "traceId": self._trace_id,
            "spanId": secrets.token_hex(8),
            **({"parentSpanId": parent} if parent else {}),
            "name": name,
            "kind": _INTERNAL,
            "startTimeUnixNano": str(start_ns + self._since_1970_ns),
            "attributes": attributes,
        }

    def _end(self, span: Span, end_ns: int) -> None:
        span["endTimeUnixNano"] = str(end_ns + self._since_1970_ns)

    def _add(self, span: Span) -> None:
        if not self._spans:
            self._next = time.monotonic() + _WAIT_SECONDS
        self._spans.append(span)
        if len(self._spans) >= _SPANS_AT_ONCE:
            self._export()

    def _export(self) -> None:
        spans, self._spans = self._spans, []
        if not spans:
            return
        scope = {"scope": {"name": "ptserver", "version": __version__}, "spans": spans}
        request = {"resourceSpans": [{"resource": self._resource, "scopeSpans": [scope]}]}
        self._exporter.export(json.dumps(request, separators=(",", ":")).encode(), len(spans))


def _attribute(key: str, value: object) -> dict[str, Any]:
    """Return a KeyValue. What is no number, text or list of them is written as JSON."""
    return {"key": key, "value": _any_value(value)}


def _any_value(value: object) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int() if -(1 << 63) <= value < 1 << 63:
            return {"intValue": str(value)}
        case str():
            return {"stringValue": value.encode(errors="backslashreplace").decode()}
        case list() | tuple():
            return {"arrayValue": {"values": [_any_value(item) for item in value]}}
    return {"stringValue": json.dumps(value)}


class _File:
    """Writes requests as lines."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def export(self, request: bytes, spans: int) -> None:
        """Write a request."""
        self._writer.write(request + b"\n")
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class _Collector:
    """Sends requests to the collector at *url*; a path is added if there is none."""

    def __init__(self, url: str, complain: Callable[[str], None] = complain_on_stderr) -> None:
        parts = urllib.parse.urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise TraceOutputError(f"{url} is no address of a collector: {error}") from error
        if not parts.hostname:
            raise TraceOutputError(f"{url} is no address of a collector: it names no host")
        self._url = url
        self._path = parts.path if parts.path not in ("", "/") else "/v1/traces"
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, port or 4318, timeout=_REQUEST_SECONDS)
        self._complain = complain
        self._waiting: queue.Queue[tuple[bytes, int] | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._failed = False
        self.dropped = 0

    def export(self, request: bytes, spans: int) -> None:
        """Have a request sent, unless too many wait."""
        if self._thread is None:
            # Not before there is something to send: signals are blocked by then, in this thread and in that.
            self._thread = threading.Thread(target=self._work, name="otlp", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait((request, spans))
        except queue.Full:
            self.dropped += spans

    def close(self) -> None:
        """Wait for a while until all is sent; say what could not be."""
        if self._thread is not None:
            try:
                self._waiting.put(None, timeout=_LAST_SECONDS)
                self._thread.join(_LAST_SECONDS)
            except queue.Full:
                pass
            if self._thread.is_alive():
                self.dropped += sum(entry[1] for entry in list(self._waiting.queue) if entry is not None)
        if self.dropped:
            self._complain(f"{self.dropped} spans were dropped: {self._url} did not take them")

    def _work(self) -> None:
        while (entry := self._waiting.get()) is not None:
            request, spans = entry
            problem = self._send(request)
            if problem:
                self.dropped += spans
                if not self._failed:
                    self._failed = True
                    self._complain(f"cannot send the trace to {self._url}: {problem}")
        self._connection.close()

    def _send(self, request: bytes) -> str:
        """Send a request; return why it failed, or ""."""
        headers = {"Content-Type": "application/json", "User-Agent": f"ptserver/{__version__}"}
        try:
            self._connection.request("POST", self._path, request, headers)
            answer = self._connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()  # the next one connects again
            return str(error) or type(error).__name__
        return "" if answer.status == 200 else f"it answers {answer.status} {answer.reason}"
