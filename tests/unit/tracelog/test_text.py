"""The trace as text."""

import os
import struct
from pathlib import Path

from ptserver.tracelog.events import (
    Event,
    ExitEvent,
    Frame,
    LossEvent,
    SignalEvent,
    StopEvent,
    SyscallEvent,
    ThreadEvent,
    TraceStart,
)
from ptserver.tracelog.output import LineWriter
from ptserver.tracelog.text import TextOptions, TextSink

#: The trace begins at 1000 s of the monotonic clock, which is 1.5 s after the epoch.
START = TraceStart(("./main",), "amd64", 1000 * 10**9, 1_500_000_000)

READ = SyscallEvent(
    1001 * 10**9, 18_400, 7, 7, "read", (3, 0x1000, 4096, 0, 0, 0), outs={1: b"127.0.0.1"}, value=9
)
CLOSE = SyscallEvent(1001_250_000_000, 900, 7, 8, "close", (9, 0, 0, 0, 0, 0), value=-1, errno=9)


def written(tmp_path: Path, *events: Event, options: TextOptions = TextOptions(column=0)) -> list[str]:  # noqa: B008
    path = tmp_path / "trace"
    sink = TextSink(LineWriter.open(str(path)), START, options)
    for event in events:
        sink.event(event)
    sink.close()
    return path.read_text().splitlines()


def test_call(tmp_path: Path) -> None:
    assert written(tmp_path, READ) == ['read(3, "127.0.0.1", 4096) = 9']


def test_results_are_aligned_as_strace_does(tmp_path: Path) -> None:
    (line,) = written(tmp_path, CLOSE._replace(value=0, errno=0), options=TextOptions())
    assert line == "close(9)                                = 0"


def test_threads_are_named_once_there_are_several(tmp_path: Path) -> None:
    lines = written(tmp_path, READ, READ, CLOSE, READ)
    assert [line.split("(")[0] for line in lines] == ["read", "read", "[8] close", "[7] read"]


def test_goroutine_is_named_if_it_is_known(tmp_path: Path) -> None:
    (line,) = written(tmp_path, READ._replace(goid=34))
    assert line.startswith("[7 g34] read(")


def test_durations(tmp_path: Path) -> None:
    lines = written(
        tmp_path,
        READ,
        READ._replace(duration_ns=None),
        READ._replace(duration_ns=12 * 10**9 + 5_000),
        options=TextOptions(durations=True, column=0),
    )
    assert [line.rpartition("= ")[2] for line in lines] == ["9 <0.000018>", "9", "9 <12.000005>"]


def test_relative_times(tmp_path: Path) -> None:
    lines = written(tmp_path, READ, CLOSE, options=TextOptions("relative", column=0))
    assert [line.split()[0] for line in lines] == ["0.000000", "0.250000"]


def test_times_since_the_start(tmp_path: Path) -> None:
    lines = written(tmp_path, READ, CLOSE, options=TextOptions("elapsed", column=0))
    assert [line.split()[0] for line in lines] == ["1.000000", "1.250000"]


def test_times_since_the_epoch(tmp_path: Path) -> None:
    lines = written(tmp_path, READ, CLOSE, options=TextOptions("epoch", column=0))
    assert [line.split()[0] for line in lines] == ["2.500000", "2.750000"]


def test_times_of_the_day(tmp_path: Path) -> None:
    (line,) = written(tmp_path, CLOSE, options=TextOptions("clock", column=0))
    assert line.split()[0][3:] == "00:02.750000"  # the hour depends on the zone


def test_unfinished_call(tmp_path: Path) -> None:
    lines = written(tmp_path, READ._replace(outs={}, value=None, duration_ns=None, unfinished=True))
    assert lines == ["read(3, 0x1000, 4096 <unfinished ...> = ?"]


def test_stack(tmp_path: Path) -> None:
    stack = (Frame("main.load", "/src/main.go", 12, 0x4A3B2C), Frame("main.\x1b[31mevil"))
    event = READ._replace(stack=stack)
    assert len(written(tmp_path, event)) == 1
    lines = written(tmp_path, event, options=TextOptions(stacks=True, column=0))
    assert lines[1:] == [" > main.load() /src/main.go:12 [0x4a3b2c]", " > main.\\x1b[31mevil() [0x0]"]


def test_other_events(tmp_path: Path) -> None:
    info = struct.pack("<iiiiiI", 23, 0, -6, 0, 7, 0).ljust(128, b"\0")
    assert written(
        tmp_path,
        SignalEvent(0, 7, 7, 23, info),
        SignalEvent(0, 7, 7, 40),
        StopEvent(0, 7, 7, 20),
        ThreadEvent(0, 7, 9, "created"),
        LossEvent(0, 12),
        ExitEvent(0, 7, 7, 3),
        ExitEvent(0, 7, 7, None, 11, core=True),
        ExitEvent(0, 7, 7, None, 9),
    ) == [
        "--- SIGURG {si_signo=SIGURG, si_code=SI_TKILL, si_pid=7, si_uid=0} ---",
        "--- SIGRT_8 ---",
        "--- stopped by SIGTSTP ---",
        "+++ thread 9 created +++",
        "*** 12 events lost ***",
        "+++ exited with 3 +++",
        "+++ killed by SIGSEGV (core dumped) +++",
        "+++ killed by SIGKILL +++",
    ]


def test_call_that_the_table_lacks(tmp_path: Path) -> None:
    (line,) = written(tmp_path, CLOSE._replace(name="syscall_0x1f5", args=(1, 255, 0, 0, 0, 0)))
    assert line == "syscall_0x1f5(0x1, 0xff, 0, 0, 0, 0) = -1 EBADF (Bad file descriptor)"


def test_colours_surround_what_is_written_without_them(tmp_path: Path) -> None:
    plain = written(tmp_path, READ, CLOSE, options=TextOptions(durations=True))
    coloured = written(tmp_path, READ, CLOSE, options=TextOptions(durations=True, colour=True))
    assert coloured != plain
    assert [without_colour(line) for line in coloured] == plain


def without_colour(line: str) -> str:
    while "\x1b[" in line:
        before, _, rest = line.partition("\x1b[")
        line = before + rest.partition("m")[2]
    return line


def test_nothing_is_kept_back_after_a_flush(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    sink = TextSink(LineWriter(writer, "a pipe", close_fd=True), START)
    sink.event(READ)
    sink.flush()
    assert os.read(reader, 4096).endswith(b"= 9\n")
    sink.close()
    os.close(reader)
