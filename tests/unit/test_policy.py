"""Which calls are taken for which server."""

import errno

import pytest

from ptserver.hosts.policy import (
    HOST_CALLS,
    REACHES_SELF_ONLY,
    filter_rules,
    hypercall_rules,
    interest_in,
    serves_time,
)
from ptserver.server import OBSERVE, SERVE, RuntimeServer
from stepping.seccomp import Verdict
from stepping.syscalls import SYSCALLS


def taken(interest, default="ignore"):  # type: ignore[no-untyped-def]
    """Names of the calls for which there is a NOTIFY rule on amd64."""
    names = {row.numbers["amd64"]: name for name, row in SYSCALLS.items() if "amd64" in row.numbers}
    rules = filter_rules(interest, default, "amd64")
    return {names[rule.sysno] for rule in rules if rule.verdict is Verdict.NOTIFY}


def test_a_server_that_wants_nothing_here_takes_nothing() -> None:
    assert filter_rules({}, "ignore", "amd64") == []
    assert filter_rules({"openat": "ignore"}, "ignore", "amd64") == []


def test_a_method_takes_its_call_alone() -> None:
    class Opens(RuntimeServer):
        def openat(self, call):  # type: ignore[no-untyped-def]
            return call.proceed()

    assert taken(Opens.declared_interest()) == {"openat"}


def test_an_observed_call_is_taken_too() -> None:
    assert taken({"close": OBSERVE, "read": SERVE}) == {"close", "read"}


def test_a_call_that_the_architecture_lacks_has_no_rule() -> None:
    assert filter_rules({"open": SERVE}, "ignore", "arm64") == []


@pytest.mark.parametrize("name", ["openat", "read", "getdents64", "epoll_wait", "socket", "wait4", "uname"])
def test_resources_belong_to_a_server_that_provides_them(name: str) -> None:
    assert interest_in(SYSCALLS[name], {}, "serve") == "serve"


@pytest.mark.parametrize(
    "name",
    ["futex", "rt_sigprocmask", "clock_gettime", "nanosleep", "munmap", "madvise", "sched_yield", "gettid"],
)
def test_memory_threads_signals_and_clocks_stay(name: str) -> None:
    assert interest_in(SYSCALLS[name], {}, "serve") == "ignore"


def test_what_a_server_names_outweighs_the_default() -> None:
    assert interest_in(SYSCALLS["openat"], {"openat": "ignore"}, "serve") == "ignore"
    assert interest_in(SYSCALLS["clock_gettime"], {"clock_gettime": "serve"}, "ignore") == "serve"
    assert interest_in(SYSCALLS["getpid"], {"getpid": "observe"}, "serve") == "observe"


def test_mappings_are_taken_only_of_files_and_clones_only_of_processes() -> None:
    rules = {rule.sysno: rule for rule in filter_rules({}, "serve", "amd64")}
    for name in ("mmap", "clone"):
        row = SYSCALLS[name]
        assert rules[row.numbers["amd64"]].only_if == row.only_if
        assert row.only_if is not None
    named = filter_rules({"mmap": SERVE}, "ignore", "amd64")
    assert [rule.only_if for rule in named] == [None]


def test_where_resources_are_the_servers_the_host_watches_over_signals_to_processes() -> None:
    assert taken({}, "serve") >= REACHES_SELF_ONLY
    assert not taken({}, "ignore")


def test_the_host_s_own_calls_are_all_in_the_table() -> None:
    assert set(SYSCALLS) >= HOST_CALLS
    assert set(SYSCALLS) >= REACHES_SELF_ONLY


def test_clone3_is_refused_by_the_filter_where_the_server_has_no_processes() -> None:
    rules = [rule for rule in filter_rules({}, "serve", "amd64") if rule.sysno == 435]
    assert (rules[0].verdict, rules[0].errno) == (Verdict.DENY, errno.ENOSYS)
    taken = [rule for rule in filter_rules({}, "serve", "amd64", has_pid=True) if rule.sysno == 435]
    assert [rule.verdict for rule in taken] == [Verdict.NOTIFY]


def test_every_hypercall_is_taken() -> None:
    assert [rule.sysno for rule in hypercall_rules()] == list(range(0xFFF0, 0x10000))
    assert {rule.verdict for rule in hypercall_rules()} == {Verdict.NOTIFY}


def test_only_a_server_of_clocks_hides_the_vdso() -> None:
    assert serves_time({"clock_gettime": SERVE})
    assert not serves_time({"openat": SERVE})
