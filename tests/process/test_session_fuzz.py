"""Calls with arbitrary registers and buffers: a session answers each, or ends itself, and never crashes."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
from session_client import Client, Sessions, hello, sessions

from ptserver.errors import ConnectionLostError
from ptserver.messages import Result, StreamId, Syscall
from ptserver.servers.passthrough import PassThrough
from stepping.syscalls import SYSCALLS, ArgKind

#: These would change the machine that the tests run on, not only the test's folder.
HARMFUL = frozenset("sethostname setdomainname sync syncfs acct mq_open mq_unlink".split())

CALLS_PER_SESSION = 400
NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    5,
    8,
    64,
    4096,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63,
    2**64 - 100,
    2**64 - 1,
)
PATHS = (
    b"file",
    b"folder",
    b"folder/inner",
    b"missing",
    b"",
    b".",
    b"x" * 300,
    b"nul\0inside",
    b"\xff\xfe",
    b"link",
)


def folder(path: Path) -> None:
    (path / "folder").mkdir(parents=True)
    (path / "folder" / "inner").write_bytes(b"inner" * 100)
    (path / "file").write_bytes(b"file" * 1000)
    (path / "link").symlink_to("file")


def arbitrary_call(rng: random.Random, call_id: int) -> Syscall:
    name = rng.choice([name for name in SYSCALLS if name not in HARMFUL])
    row = SYSCALLS[name]
    args = [rng.choice(NUMBERS) if rng.random() < 0.7 else rng.getrandbits(64) for _ in range(6)]
    ins: dict[int, bytes] = {}
    outs: dict[int, int] = {}
    for index, arg in enumerate(row.args):
        if arg.kind in (ArgKind.FD, ArgKind.DIRFD):
            args[index] = rng.choice((*range(12), 2**32 - 100, 2**64 - 100, 19999, 2**31 - 1))
        elif arg.kind in (ArgKind.PATH, ArgKind.STR):
            ins[index] = rng.choice(PATHS)
        elif arg.kind.is_pointer:
            if rng.random() < 0.8:
                ins[index] = rng.randbytes(rng.choice((0, 1, 4, 8, 16, 32, 144, 5000)))
            if rng.random() < 0.8:
                outs[index] = rng.choice((0, 1, 8, 16, 144, 4096, 1 << 20))
        if arg.name == "timeout" and arg.kind is not ArgKind.INT:
            ins[index] = bytes(16)
        elif rng.random() < 0.05:
            ins.pop(index, None)
    registers: Any = tuple(args)
    return Syscall(call_id, 2, 1, name, registers, ins, outs)


def answers(client: Client, call: Syscall) -> Result | None:
    """Return the answer to *call*, cancelled if it waits; None if the session has ended."""
    try:
        client.send(call)
        client.cancel(call.id)
        return client.result(call.id)
    except ConnectionLostError:
        return None


@pytest.mark.parametrize("seed", range(6))
def test_arbitrary_calls(seed: int, tmp_path: Path) -> None:
    folder(tmp_path / "work")
    rng = random.Random(seed)
    streams: tuple[StreamId, ...] = (0, 1, 2)
    running: Sessions
    with sessions(PassThrough, str(tmp_path / "log")) as running:
        client = running.open(hello(streams=streams))
        client.give_credit(1, 2, size=1 << 30)
        assert client.call("chdir", 1, ins={0: os.fsencode(tmp_path / "work")}).errno == 0
        has_forked = False
        for call_id in range(1000, 1000 + CALLS_PER_SESSION):
            call = arbitrary_call(rng, call_id)
            result = answers(client, call)
            assert result is not None, f"{call} ended the session: {running.log()}"
            has_forked |= call.name in ("fork", "vfork", "clone", "clone3") and not result.errno
            assert all(len(data) <= call.outs.get(index, 0) for index, data in result.outs.items()), call
        if has_forked:
            client.close()  # processes that nobody tells to end would keep the session
        else:
            client.exit()
        assert os.waitstatus_to_exitcode(running.wait_ended()[1]) == 0
        assert "Traceback" not in running.log()
