"""What a runtime server's method sees of a call, and what it may change."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from ptserver.call import Call
from ptserver.messages import Machine, Program
from ptserver.outcomes import Fail, OpenBytes, Proceed, Return
from ptserver.session import Session
from stepping.syscalls.parse import parse_row

SESSION = Session(
    "s1",
    Program("/bin/x", ("x",)),
    Machine("amd64", "6.1", "here"),
    "server",
    log=lambda text: None,
    send_signal=lambda signo: None,
    keep_descriptor=lambda fd: fd,
)
OPENAT = "openat 257 56 file wait dirfd:dirfd path:path flags:int/open_flags mode:uint/mode -> fd"
WRITE = "write 1 64 file wait fd:fd buf:in[count] count:size -> bytes"
READ = "read 0 63 file wait fd:fd buf:out[count;ret] count:size -> bytes"
WRITEV = "writev 20 66 file wait fd:fd iov:iovin[iovcnt] iovcnt:int -> bytes"
IOCTL = "ioctl 16 29 file - fd:fd request:uint arg:reqarg -> int"
LSEEK = "lseek 8 62 file - fd:fd offset:long whence:int -> int"
KILL = "kill 62 129 process - pid:int sig:int -> none"
EXECVE = "execve 59 221 process - path:path argv:strv envp:strv -> none"


def make(
    row: str, *args: int, ins: dict[int, bytes] | None = None, outs: dict[int, int] | None = None
) -> Call:
    a: Any = tuple(arg % 2**64 for arg in args) + (0,) * (6 - len(args))
    return Call(SESSION, 1, 100, 99, parse_row(row), a, ins or {}, outs or {})


def test_arguments_are_attributes_with_the_type_that_the_table_gives_them() -> None:
    call = make(OPENAT, -100, 0x7000, os.O_RDWR, 0o600, ins={1: b"/etc/\xffhosts"})
    assert (call.name, call.tid, call.pid, call.session) == ("openat", 100, 99, SESSION)
    assert (call.dirfd, call.flags, call.mode) == (-100, os.O_RDWR, 0o600)
    assert call.path == os.fsdecode(b"/etc/\xffhosts")
    assert make(LSEEK, 3, -5, 1).offset == -5
    assert make(READ, 3, 0x7000, 20, outs={1: 20}).buf == 20
    assert make(READ, 3, 0x7000, -1).count == 2**64 - 1
    assert make(WRITE, 3, 0x7000, 2, ins={1: b"hi"}).buf == b"hi"
    assert make(WRITEV, 3, 0x7000, 2, ins={1: b"hi"}).iov == b"hi"
    call = make(EXECVE, 1, 1, 0, ins={0: b"/bin/ls", 1: b"ls\0-l"})
    assert (call.path, call.argv, call.envp) == ("/bin/ls", ["ls", "-l"], None)
    assert make(EXECVE, 1, 1, 1, ins={0: b"x", 1: b""}).argv == []


def test_high_halves_of_registers_do_not_matter_for_32_bit_arguments() -> None:
    call = make(OPENAT, 0xFFFFFFFF_FFFFFF9C, 0x7000, 0xABCD_0000_0001, 0xABCD_0000_01FF, ins={1: b"x"})
    assert (call.dirfd, call.flags, call.mode) == (-100, 1, 0o777)
    assert make(OPENAT, 0xFFFFFF9C, 0).dirfd == -100
    assert make(OPENAT, -100, 0).path is None


def test_the_argument_of_ioctl_is_what_its_request_makes_it() -> None:
    assert make(IOCTL, 1, 0x5413, 0x7000, outs={2: 8}).arg == 8
    assert make(IOCTL, 1, 0x5414, 0x7000, ins={2: b"12345678"}).arg == b"12345678"
    assert make(IOCTL, 1, 0x5409, 7).arg == 7


def test_an_argument_that_call_hides_is_still_to_be_had() -> None:
    call = make(KILL, 42, 9)
    assert (call.pid, call.argument("pid")) == (99, 42)
    with pytest.raises(AttributeError, match="kill has no argument 'path'"):
        _ = call.path
    with pytest.raises(KeyError):
        call.argument("path")


def test_shorthands_make_outcomes() -> None:
    call = make(OPENAT, -100, 0x7000, os.O_CLOEXEC, 0, ins={1: b"x"})
    assert call.fail(errno.EIO) == Fail(errno.EIO)
    assert call.answer(3, buf=b"abc") == Return(3, {"buf": b"abc"})
    assert call.proceed(path="/y") == Proceed({"path": "/y"})
    assert call.open_bytes(b"abc") == OpenBytes(b"abc", os.O_CLOEXEC)
    assert make(READ, 3, 1, 1).open_bytes(b"") == OpenBytes(b"", 0)


def test_changes_reach_registers_buffers_and_their_counts() -> None:
    call = make(OPENAT, -100, 0x7000, 0, 0, ins={1: b"x"})
    assert call.changed({"path": "/y", "flags": -1}) == (
        (2**64 - 100, 0x7000, 2**64 - 1, 0, 0, 0),
        {1: b"/y"},
    )
    assert call.ins == {1: b"x"}
    call = make(WRITE, 3, 0x7000, 2, ins={1: b"hi"})
    assert call.changed({"buf": b"longer"}) == ((3, 0x7000, 6, 0, 0, 0), {1: b"longer"})
    call = make(WRITEV, 3, 0x7000, 5, ins={1: b"hi"})
    assert call.changed({"iov": b"longer"}) == ((3, 0x7000, 1, 0, 0, 0), {1: b"longer"})
    assert make(WRITE, 3, 0, 0).changed({"buf": b"x"})[0][1] != 0


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        (OPENAT, {"fd": 3}, "no argument 'fd'"),
        (OPENAT, {"path": 3}, "by str or bytes"),
        (OPENAT, {"flags": "3"}, "by a number"),
        (READ, {"buf": b"3"}, "by a number"),
    ],
)
def test_changes_that_make_no_sense_are_a_mistake_of_the_server(
    row: str, changes: dict[str, int | str | bytes], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        make(row, 1, 1).changed(changes)


def test_answers_fill_only_what_the_program_offers() -> None:
    call = make(READ, 3, 0x7000, 4, outs={1: 4})
    assert call.outs_by_index({"buf": b"123456"}) == {1: b"1234"}
    assert call.outs_by_name({1: b"12"}) == {"buf": b"12"}
    assert make(READ, 3, 0, 0).outs_by_index({"buf": b"12"}) == {}
    with pytest.raises(TypeError, match="read fills no buffer 'fd'"):
        call.outs_by_index({"fd": b"1"})


def test_repr_tells_the_decoded_arguments() -> None:
    text = repr(make(OPENAT, -100, 0x7000, 2, 0, ins={1: b"/x"}))
    assert text == "<openat(dirfd=-100, path='/x', flags=2, mode=0) by thread 100>"


def test_path_of_tells_where_a_descriptor_leads(tmp_path: Path) -> None:
    call = make(READ, 3, 1, 1)
    reading, writing = os.pipe()
    with open(tmp_path / "file", "w") as file:
        assert call.path_of(file.fileno()) == str(tmp_path / "file")
        assert call.path_of(reading).startswith("pipe:[")
    os.close(reading)
    os.close(writing)
    assert call.path_of(reading) == ""
