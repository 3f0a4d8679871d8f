"""Runs a program spread over several hosts: the home, with host 0, in this process."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ptserver.hosts.signals import HostSignals
from ptserver.net.keepalive import DEFAULT_SECONDS
from ptserver.spread.adaptations import find_adaptations
from ptserver.spread.agents import LOCAL, Agents, HostAddress
from ptserver.spread.control import Control
from ptserver.spread.deciders import HearingPlacement, ServerDecider
from ptserver.spread.fault_log import FaultLog
from ptserver.spread.hearing import Hearing
from ptserver.spread.links import Straight
from ptserver.spread.placement import Placement
from ptserver.spread.processors import check, without
from ptserver.spread.registry import registered
from ptserver.spread.server_link import ServerLink
from ptserver.spread.session import SpreadSession
from ptserver.stub.hypercalls import FIRST_HYPERCALL, LAST_HYPERCALL
from stepping.instance import Instance, instance_filter
from stepping.launch import Program
from stepping.seccomp import Rule, Verdict
from stepping.syscalls import SYSCALLS, Sysno

#: Calls of host 0's own threads that the home decides; it makes all others itself. The last the host only notes.
_CALLS = "mmap munmap mprotect madvise brk mremap mincore rseq futex tgkill tkill rt_sigaction clone3".split()
_NOTED = "sigaltstack"


@dataclass(frozen=True)
class SpreadOptions:
    """What to run. hosts: the others; keepalive_seconds: how long one may say nothing, 0 for ever.

    check_seconds: how often to check that the hosts' memory is the same, 0 for never. common_cpu: have the program
    use only what all hosts' processors can do, instead of refusing a host that cannot do all that this one's can.
    adapt: the adaptations to make; fault_log: the file for a log of the faults, if there is to be one. server: makes,
    from the program's pid, who hears of its goroutines. straight: between which hosts pages go straight.
    """

    path: str
    argv: list[bytes]
    env: Sequence[bytes]
    hosts: Sequence[HostAddress]
    placement: Placement
    keepalive_seconds: float = DEFAULT_SECONDS
    check_seconds: float = 0.0
    common_cpu: bool = False
    adapt: tuple[str, ...] = ()
    fault_log: str = ""
    server: Callable[[int], ServerDecider | ServerLink] | None = None
    straight: Straight = Straight.FAR


def run_spread(options: SpreadOptions) -> int:
    """Run the program; return its raw wait status.

    Raises:
        LaunchError, ProcessorError: a host cannot execute it.
        NoEventsError: somebody wants to hear of its goroutines, which is not possible.
        ServerMistakeError: the server has failed; the program has been killed.
        OSError: the fault log cannot be written.
        MemoryDiffersError: a check failed; the program has been killed.
        HostLostError: a host was lost; the program has been killed.
        SteppingError: the kernel refuses what is needed.
    """
    with contextlib.ExitStack() as stack:
        agents = Agents(options.path)
        stack.callback(agents.close)
        inner = []
        for number, where in enumerate(options.hosts, 1):
            if where.address == LOCAL:
                inner.append(number)
            else:
                agents.add(number, agents.reach(where))
        unused: frozenset[str] = frozenset()
        for agent in map(agents.__getitem__, agents):
            if options.common_cpu:
                unused |= agent.lacks
            else:
                check(agent.where.address, agent.lacks)
        signals = HostSignals()
        stack.callback(signals.close)
        instance = Instance(
            Program(
                path=options.path,
                argv=options.argv,
                env=without(options.env, unused),
                bpf=_filter(),
                blocked=signals.original_mask,
            )
        )
        stack.callback(instance.close)
        hearing = None
        if options.server is not None or isinstance(options.placement, HearingPlacement):
            server = options.server(instance.pid) if options.server is not None else None
            hearing = Hearing.of(instance, options.path, server)
            stack.callback(hearing.close)
        session = SpreadSession(
            options.placement,
            instance,
            signals,
            agents,
            inner,
            options.path,
            options.keepalive_seconds,
            options.check_seconds,
            unused,
            find_adaptations(
                options.path,
                options.adapt,
                max((agents[each].round_trip_ns for each in agents), default=0),
                instance.pid,
            ),
            stack.enter_context(FaultLog(options.fault_log)) if options.fault_log else None,
            hearing,
            options.straight,
            _traced(),
        )
        stack.callback(session.close)
        stack.callback(session.children.serve_the_rest)
        registry, name = stack.enter_context(registered(options.path))
        control = Control(session, registry.listen(name), options.path)
        stack.callback(control.close)
        return session.run()


def _traced() -> list[Sysno]:
    return [SYSCALLS[name].numbers["amd64"] for name in (*_CALLS, _NOTED)]


def _filter() -> bytes:
    numbers = _traced()
    numbers += map(Sysno, range(FIRST_HYPERCALL, LAST_HYPERCALL + 1))
    return instance_filter([Rule(number, Verdict.TRACE) for number in numbers], "amd64")
