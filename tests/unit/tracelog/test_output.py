"""Writing lines, also to where they do not fit."""

import os
import threading
from pathlib import Path

import pytest

from ptserver.tracelog.errors import TraceOutputError
from ptserver.tracelog.output import LineWriter, complain_on_stderr, wants_colour


@pytest.fixture
def complaints() -> list[str]:
    return []


def test_lines_are_written_when_asked_or_many(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    writer = LineWriter.open(str(path))
    writer.write(b"one\n")
    assert path.read_bytes() == b""
    writer.flush()
    assert path.read_bytes() == b"one\n"
    writer.write(b"x" * 70_000 + b"\n")
    assert path.stat().st_size == 70_005
    writer.write(b"last\n")
    writer.close()
    assert path.read_bytes().endswith(b"\nlast\n")
    writer.close()


def test_full_disk_is_told_once_and_disturbs_nobody(complaints: list[str]) -> None:
    writer = LineWriter(
        os.open("/dev/full", os.O_WRONLY), "trace.log", close_fd=True, complain=complaints.append
    )
    for _ in range(3):
        writer.write(b"line\n")
        writer.flush()
    writer.close()
    assert complaints == [
        "cannot write the trace to trace.log: No space left on device; the rest of it is lost"
    ]


def test_reader_that_goes_away_ends_the_trace_silently(complaints: list[str]) -> None:
    reader, fd = os.pipe()
    os.close(reader)
    writer = LineWriter(fd, "a pipe", close_fd=True, complain=complaints.append)
    writer.write(b"line\n")
    writer.close()
    assert complaints == []


def test_slow_reader_of_a_non_blocking_pipe_gets_everything() -> None:
    reader, fd = os.pipe()
    os.set_blocking(fd, False)
    received = bytearray()

    def read_all() -> None:
        while data := os.read(reader, 4096):
            received.extend(data)

    thread = threading.Thread(target=read_all)
    writer = LineWriter(fd, "a pipe", close_fd=True)
    writer.write(b"x" * 50_000)
    thread.start()
    writer.write(b"y" * 200_000)
    writer.close()
    thread.join()
    os.close(reader)
    assert bytes(received) == b"x" * 50_000 + b"y" * 200_000


def test_file_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(TraceOutputError, match=r"/nowhere/trace: No such file or directory$"):
        LineWriter.open(str(tmp_path / "nowhere/trace"))


def test_standard_streams_stay_open(capfd: pytest.CaptureFixture[str]) -> None:
    for path in (None, "-"):
        writer = LineWriter.open(path)
        writer.write(f"to {path}\n".encode())
        writer.close()
    complain_on_stderr("told")
    assert capfd.readouterr() == ("to -\n", "to None\nptserver: told\n")


def test_colour_needs_a_willing_terminal(tmp_path: Path) -> None:
    master, slave = os.openpty()
    terminal = LineWriter(slave, "a terminal", close_fd=True)
    file = LineWriter.open(str(tmp_path / "trace"))
    assert wants_colour(terminal, {"TERM": "xterm"})
    assert not wants_colour(terminal, {"TERM": "xterm", "NO_COLOR": "1"})
    assert not wants_colour(terminal, {"TERM": "dumb"})
    assert not wants_colour(terminal, {})
    assert not wants_colour(file, {"TERM": "xterm"})
    terminal.close()
    file.close()
    os.close(master)
