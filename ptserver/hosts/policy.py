"""Which syscalls of a program are taken, from what its server wants of them. Pure.

A call is taken if the server names it, or if it reaches outside the program and the server provides the
program's resources. Calls on the program's own memory, threads, signals and clocks stay with it unless named.
"""

from collections.abc import Iterable, Mapping

from ptserver.messages import Interest, Welcome
from ptserver.stub.hypercalls import FIRST_HYPERCALL, LAST_HYPERCALL
from stepping.seccomp import Rule, Verdict
from stepping.syscalls import SYSCALLS, Arch, Syscall, SyscallClass, Sysno

#: Calls of resource classes that stay on the stub host, because they are about the process there, if the server
#: has none for it.
HOST_CALLS: frozenset[str] = frozenset(
    "getppid getpgid getpgrp getsid setpgid setsid kill rt_sigqueueinfo".split()  # its process is there
)

#: The calls that may be written behind.
WRITES: frozenset[str] = frozenset({"write", "writev", "sendto"})

#: Calls that a program can make itself, by a pass (`stepping.direct_calls`).
DIRECT_CALLS: frozenset[str] = frozenset({"read", "write", "lseek", "sendfile"})

#: Calls that name a process: allowed on the program itself, refused on others.
REACHES_SELF_ONLY: frozenset[str] = frozenset("kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo".split())

#: Calls that a host takes because the program has another process id than its process here.
ID_CALLS: frozenset[str] = frozenset({"getpid", "gettid"})

#: Calls about a process or thread by its number, and which argument that is.
BY_NUMBER: Mapping[str, int] = {
    **dict.fromkeys(("getpriority", "setpriority", "ioprio_get", "ioprio_set"), 1),
    **dict.fromkeys(("sched_setaffinity", "sched_getaffinity", "sched_setparam", "sched_getparam"), 0),
    **dict.fromkeys(("sched_setscheduler", "sched_getscheduler", "sched_setattr", "sched_getattr"), 0),
    "sched_rr_get_interval": 0,
}

#: Calls that a host takes for the same reason, and lets its server's shadow make when they concern it.
SHADOW_CALLS: frozenset[str] = frozenset({"prctl", *BY_NUMBER})

#: Of prctl's options, those about a process or its rights: PDEATHSIG, CHILD_SUBREAPER; KEEPCAPS, CAPBSET, SECUREBITS,
#: CAP_AMBIENT. Others are about the memory and the threads of the process that the host has. Source: <linux/prctl.h>.
OPTIONS_OF_PROCESSES: frozenset[int] = frozenset({1, 2, 36, 37, 7, 8, 23, 24, 27, 28, 47})

#: Calls that tell the time of day, or set it.
CLOCK_CALLS: frozenset[str] = frozenset(
    "clock_gettime clock_getres gettimeofday time clock_settime settimeofday".split()
)
#: Calls whose first argument names a clock.
ABOUT_CLOCKS: frozenset[str] = frozenset({"clock_gettime", "clock_getres", "clock_settime"})
#: Of the clocks, those of the day: CLOCK_REALTIME, REALTIME_COARSE, REALTIME_ALARM, TAI. Others only measure.
CLOCKS_OF_DAY: frozenset[int] = frozenset({0, 5, 8, 11})

FORKS: frozenset[str] = frozenset({"fork", "vfork", "clone", "clone3"})
EXECS: frozenset[str] = frozenset({"execve", "execveat"})

#: Calls that matter to mappings of files, which are kept right where the program executes.
MAPPING_CALLS: frozenset[str] = frozenset({"munmap", "msync"})

#: Calls that every new thread makes first, in Go's runtime and in C libraries, and the one that ends it.
THREAD_CALLS: frozenset[str] = frozenset("sigaltstack set_robust_list exit".split())

#: Refused without asking where the server has no processes: libraries fall back to the older call, whose flags a
#: filter sees.
_DENIED = ("clone3",)


def interest_in(
    row: Syscall, interest: Mapping[str, Interest], default: Interest, *, has_pid: bool = False
) -> Interest:
    """Return what a server that declares *interest* and *default* wants of *row*.

    has_pid: whether it has a process for the program, with an id of its own.
    """
    named = interest.get(row.name)
    if named is not None:
        return named
    if (row.name in HOST_CALLS and not has_pid) or row.concerns_host:
        return "ignore"
    return default


def observed_in(rows: Iterable[Syscall], welcome: Welcome) -> frozenset[str]:
    """Return the names of the calls that a server which says *welcome* only wants to see."""
    wanted, default = welcome.interest, welcome.default_interest
    return frozenset(
        row.name for row in rows if interest_in(row, wanted, default, has_pid=bool(welcome.pid)) == "observe"
    )


def filter_rules(
    interest: Mapping[str, Interest],
    default: Interest,
    arch: Arch,
    *,
    has_pid: bool = False,
    given_pass: int = 0,
) -> list[Rule]:
    """Return the rules of the filter that takes just what a server wants; empty if it wants nothing.

    has_pid: as of `interest_in`. given_pass: calls of `DIRECT_CALLS` that have it are not taken, unless it is 0.
    """
    # The host's own rules come first, because the first rule for a call decides.
    rules = _host_rules(arch, has_pid) if default != "ignore" else []
    for row in SYSCALLS.values():
        if arch not in row.numbers or interest_in(row, interest, default, has_pid=has_pid) == "ignore":
            continue
        named = row.name in interest
        passes = given_pass if row.name in DIRECT_CALLS else 0
        rules.append(
            Rule(row.numbers[arch], Verdict.NOTIFY, None if named else row.only_if, given_pass=passes)
        )
    return rules


def serves_time(interest: Mapping[str, Interest]) -> bool:
    """Whether a clock call is taken, which the vDSO must not answer then."""
    return any(SYSCALLS[name].klass is SyscallClass.TIME for name in interest)


def hypercall_rules() -> list[Rule]:
    """Return the rules that take the stub's hypercalls."""
    return [Rule(Sysno(number), Verdict.NOTIFY) for number in range(FIRST_HYPERCALL, LAST_HYPERCALL + 1)]


def thread_rules(arch: Arch) -> list[Rule]:
    """Return the rules that show when threads begin and end."""
    return [Rule(SYSCALLS[name].numbers[arch], Verdict.NOTIFY) for name in sorted(THREAD_CALLS)]


def _host_rules(arch: Arch, has_pid: bool) -> list[Rule]:
    taken = REACHES_SELF_ONLY | MAPPING_CALLS
    rules = []
    if has_pid:
        taken = taken | ID_CALLS | SHADOW_CALLS
    else:
        rules = [Rule(SYSCALLS[name].numbers[arch], Verdict.DENY) for name in _DENIED]
    return rules + [Rule(SYSCALLS[name].numbers[arch], Verdict.NOTIFY) for name in sorted(taken)]
