"""The expressions that choose calls."""

import pytest

from ptserver.tracelog.errors import FilterError
from ptserver.tracelog.filters import SETS, parse_filter, parse_filters
from stepping.syscalls import SYSCALLS


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("openat", {"openat"}),
        ("trace=openat,read", {"openat", "read"}),
        ("t= openat , read ", {"openat", "read"}),
        ("?nosuch,read", {"read"}),
        ("none", set()),
        ("all", set(SYSCALLS)),
        ("!all", set()),
        ("!read,write", set(SYSCALLS) - {"read", "write"}),
        ("trace=!%file", set(SYSCALLS) - parse_filter("%file")),
        ("/^epoll_create", {"epoll_create", "epoll_create1"}),
        ("/^(read|write)$,close", {"read", "write", "close"}),
        ("/^p(read|write)v{1,1}$", {"preadv", "pwritev"}),
        ("%net", parse_filter("%network")),
    ],
)  # fmt: skip
def test_expression(expression: str, names: set[str]) -> None:
    assert parse_filter(expression) == names


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("file", "open openat stat execve unlinkat chdir mount", "read close dup socket"),
        ("desc", "read close dup mmap socket epoll_wait poll pipe2 openat", "stat getpid rename"),
        ("network", "socket connect sendto accept4 recvmmsg", "read openat"),
        ("process", "fork clone execve wait4 kill exit_group", "getpid read"),
        ("signal", "rt_sigaction kill tgkill signalfd4 pause", "ppoll read"),
        ("memory", "mmap munmap brk madvise", "read shmget"),
        ("ipc", "shmget semop msgsnd mq_open semtimedop", "read sendmsg mmap"),
        ("resource", "read socket mmap clone getuid", "futex munmap getpid nanosleep getrandom"),
        ("time", "nanosleep clock_gettime", "timerfd_create"),
    ],
)
def test_set(name: str, inside: str, outside: str) -> None:
    names = parse_filter(f"%{name}")
    assert names.issuperset(inside.split())
    assert not names & set(outside.split())


def test_every_set_has_calls() -> None:
    for name in SETS:
        assert 0 < len(parse_filter(f"%{name}")) < len(SYSCALLS)


def test_several_expressions_add_up_and_none_means_the_default() -> None:
    assert parse_filters(["read", "%network"]) == {"read"} | parse_filter("%network")
    assert parse_filters([]) == parse_filter("%resource")
    assert parse_filters([], default="all") == set(SYSCALLS)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("opennat", r"^-e opennat: no system call 'opennat'; did you mean openat.*\?$"),
        ("trace=%netwrok", r"no set %netwrok; did you mean %network"),
        ("%nosuch", r"no set %nosuch; known are %file, %desc"),
        ("qqqqqqqq", r"no system call 'qqqqqqqq'$"),
        ("read,", r"a name is missing"),
        ("", r"a name is missing"),
        ("/(", r"is no regular expression"),
        ("/^zzz", r"no system call's name matches /\^zzz"),
        ("signal=SIGURG", r"unknown qualifier 'signal'"),
    ],
)
def test_mistakes_are_told_in_one_line(expression: str, message: str) -> None:
    with pytest.raises(FilterError, match=message) as caught:
        parse_filter(expression)
    assert "\n" not in str(caught.value)
