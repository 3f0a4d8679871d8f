"""What clone3 asks for, by the copy of its arguments: which are none, what a clone does of them, what is refused."""

import errno
import struct

import pytest

from ptserver.hosts.forks import prepare_fork
from ptserver.hosts.pending_call import PendingCall
from ptserver.shadow.birth import Birth, birth_of
from stepping.clone3 import decode_clone3
from stepping.listener import Notification
from stepping.syscalls import SYSCALLS
from stepping.syscalls.marshal import BadArgumentError, Gathered

SIGCHLD = 17
NEWTIME, FILES, PIDFD, PARENT, THREAD, NEWUTS, NEWPID = 0x80, 0x400, 0x1000, 0x8000, 0x10000, 1 << 26, 1 << 29
CLEAR_SIGHAND, INTO_CGROUP = 1 << 32, 1 << 33
FIELDS = (
    "flags pidfd child_tid parent_tid exit_signal stack stack_size tls set_tid set_tid_size cgroup".split()
)


def asks(**fields: int) -> bytes:
    given = {"exit_signal": SIGCHLD} | fields
    return struct.pack("=11Q", *(given.get(name, 0) for name in FIELDS))


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (asks()[:56], errno.EINVAL),
        (asks() + b"\0\1", errno.E2BIG),
        (asks() + bytes(5000), errno.E2BIG),
        (asks(flags=1 << 34), errno.EINVAL),
        (asks(flags=SIGCHLD), errno.EINVAL),
        (asks(exit_signal=65), errno.EINVAL),
        (asks(stack=4096), errno.EINVAL),
        (asks(stack_size=4096), errno.EINVAL),
        (asks(flags=PARENT), errno.EINVAL),
        (asks(flags=CLEAR_SIGHAND | 0x800), errno.EINVAL),
        (asks(set_tid=1), errno.EINVAL),
        (asks(flags=INTO_CGROUP, cgroup=1 << 31), errno.EINVAL),
        (asks(flags=INTO_CGROUP)[:80], errno.EINVAL),
    ],
)
def test_what_the_kernel_refuses_is_refused(data: bytes, number: int) -> None:
    with pytest.raises(BadArgumentError) as refused:
        decode_clone3(data)
    assert refused.value.errno == number


def test_what_a_clone_does_of_it() -> None:
    asked = decode_clone3(
        asks(
            flags=PIDFD | NEWUTS | NEWTIME | INTO_CGROUP,
            stack=0x1000,
            stack_size=0x800,
            parent_tid=1,
            child_tid=2,
            tls=3,
        )
    )
    assert asked.as_clone("amd64") == (PIDFD | NEWUTS | SIGCHLD, 0x1800, 1, 2, 3, 0)
    assert asked.as_clone("arm64") == (PIDFD | NEWUTS | SIGCHLD, 0x1800, 1, 3, 2, 0)
    assert decode_clone3(asks()[:64] + bytes(200)).as_clone("amd64") == (SIGCHLD, 0, 0, 0, 0, 0)


def test_what_the_shadow_does_of_it() -> None:
    assert birth_of("clone3", (8, 88, 0, 0, 0, 0), {0: asks(flags=NEWTIME | NEWUTS)}) == Birth(
        NEWTIME | NEWUTS
    )
    assert birth_of("clone3", (8, 88, 0, 0, 0, 0), {0: asks(flags=INTO_CGROUP, cgroup=5)}) == Birth(0, 5)
    assert birth_of("clone", (NEWUTS | NEWTIME, 0, 0, 0, 0, 0), {}) == Birth(NEWUTS)
    assert birth_of("vfork", (NEWUTS, 0, 0, 0, 0, 0), {}).is_plain
    with pytest.raises(BadArgumentError):
        birth_of("clone3", (8, 88, 0, 0, 0, 0), {0: asks(flags=NEWPID)})


def test_a_group_is_not_entered_by_a_descriptor_of_the_shadow_s_own() -> None:
    assert Birth(cgroup=100).take(100) == errno.EBADF
    assert Birth(cgroup=-1).take(100) == errno.EBADF


@pytest.mark.parametrize(
    ("name", "flags", "more", "outcome"),
    [
        ("clone3", PIDFD, {}, (0, {0: 4})),
        ("clone3", NEWTIME, {}, (0, {})),
        ("clone3", THREAD, {"exit_signal": 0}, (errno.ENOSYS, {})),
        ("clone3", CLEAR_SIGHAND, {}, (errno.ENOSYS, {})),
        ("clone3", FILES, {}, (errno.EINVAL, {})),
        ("clone3", NEWPID, {}, (errno.EINVAL, {})),
        ("clone3", PARENT, {"exit_signal": 0}, (errno.EINVAL, {})),
        ("clone3", 0, {"set_tid": 8, "set_tid_size": 1}, (errno.EPERM, {})),
        ("clone3", 1 << 40, {}, (errno.EINVAL, {})),
        ("clone", PIDFD, {}, (0, {2: 4})),
        ("clone", NEWTIME, {}, (errno.EINVAL, {})),
        ("clone", PARENT, {}, (errno.EINVAL, {})),
        ("fork", NEWPID, {}, (0, {})),
    ],
)
def test_what_no_shadow_can_follow_is_refused(
    name: str, flags: int, more: dict[str, int], outcome: tuple[int, dict[int, int]]
) -> None:
    args = (4096, 88, 8, 0, 0, 0) if name == "clone3" else (flags | SIGCHLD, 0, 8, 0, 0, 0)
    call = PendingCall(1, Notification(1, 1, 0, 0, 0, 0, *args), None, SYSCALLS[name])  # type: ignore[arg-type]
    call.gathered = Gathered(args, {0: asks(flags=flags, **more)} if name == "clone3" else {}, {}, {})
    assert (prepare_fork(call), call.gathered.outs) == outcome
