"""A call with a time limit of its socket, which a stop of ours has ended, is made again."""

import errno
from pathlib import Path

import pytest

from stepping.ptrace_api import Option
from stepping.timed_call import make_again
from stepping.tracee import Tracee
from stepping.wait_status import Event
from tests.process.tracees import python

_ACCEPTS = """
import ctypes, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
listener = socket.create_server(("127.0.0.1", 0))
listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 300_000))
print("ready", flush=True)
input()
print(libc.accept(listener.fileno(), None, None), ctypes.get_errno(), flush=True)
input()
"""
_ACCEPT = 43


@pytest.mark.parametrize(("again", "error"), [(False, errno.EINTR), (True, errno.EAGAIN)])
def test_only_a_call_that_is_made_again_has_its_time(again: bool, error: int) -> None:
    with python(_ACCEPTS) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        tracee = Tracee.seize(child.pid, child.pid, Option.SYSGOOD)
        child.stdin.write("\n")
        child.stdin.flush()
        while not Path(f"/proc/{child.pid}/syscall").read_text().startswith(f"{_ACCEPT} "):
            pass
        tracee.interrupt()
        status = tracee.wait()
        assert status is not None
        assert status.event is Event.STOP
        if again:
            assert make_again(tracee)
            assert not make_again(tracee)
        tracee.resume()
        assert child.stdout.readline() == f"-1 {error}\n"
