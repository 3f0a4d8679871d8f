"""What the ring says of goroutines and of the runtime's own calls, against what the program says."""

import os
import select
import signal
import subprocess
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from goabi.binary import GoBinary
from ptserver.tracelog.batch import CallBatch
from ptserver.tracelog.events import Event, GcEvent, GoEvent, SyscallEvent
from ptserver.tracelog.filters import RUNTIME_CALLS
from ptserver.tracelog.frame_names import FrameNames
from ptserver.tracelog.go_events import KINDS, GoEvents, RuntimeWanted
from stepping.ring import Ring
from stepping.ring_inject import find_pages, remove_leftovers
from stepping.ring_probes import Moment, Probes, decode_patches
from stepping.ring_site import find_site
from stepping.syscalls.table import SYSCALLS
from stepping.tracee_memory import TraceeMemory
from tests.gofixtures import ROOT
from tests.process.test_ring_program import OLD_MIDDLE_NEW, Program, rows, running, traces_of

#: What attaching may change besides: the functions that have probes.
PROBED = ("runtime.casgstatus", "runtime.futex", "runtime.usleep", "runtime.gcSweep", "runtime.madvise")


class Watched:
    """A program with probes, and the events so far."""

    def __init__(
        self, program: Program, kinds: Collection[str] = KINDS, calls: frozenset[str] = frozenset()
    ) -> None:
        wanted = RuntimeWanted(calls, frozenset(kinds))
        probes = wanted.find_probes(str(program.path))
        assert probes is not None
        self.probes: Probes = probes
        site = find_site(program.pid, with_c_code=True)
        self.ring = Ring.attach(program.pid, rows("write"), site=site, probes=probes)
        names = FrameNames(str(program.path))
        names.load_bias = self.ring.site.load_bias
        self._go = GoEvents(kinds, probes.wait_reasons, names)

    def read(self) -> list[Event]:
        events: list[Event] = []
        while (batch := self.ring.read_batch()) is not None:
            events += self._go.merge(batch, CallBatch(batch.calls())).all_events()
        assert self.ring.lost == 0
        return events

    def close(self) -> None:
        assert self.ring.detach()
        self.ring.close()
        self._go.close()


def answers(program: Program) -> Iterator[list[str]]:
    while (line := program.answer()) != "done":
        yield line.split()


WITH_C = "-ldflags=-linkmode=external"


@pytest.mark.parametrize(
    "flags", [("-ldflags=-s -w",), ("-buildmode=pie",), (WITH_C,), ("-buildmode=pie", WITH_C)]
)
def test_stripped_and_position_independent_programs_and_those_with_c_code_have_probes_too(
    flags: tuple[str, ...],
) -> None:
    with running("go_events", flags=flags, cgo=WITH_C in flags) as program:
        before = program_state(program)
        watched = Watched(program, KINDS, RUNTIME_CALLS)
        program.send("work 2")
        facts = list(answers(program))
        events = watched.read()
        watched.close()
        assert program_state(program) == before
    exits = {event.goid for event in events if isinstance(event, GoEvent) and event.what == "exit"}
    assert {int(fact[1]) for fact in facts if fact[0] == "worker"} <= exits
    calls = [event for event in events if isinstance(event, SyscallEvent)]
    assert "futex" in {call.name for call in calls}
    assert any(call.goid is not None for call in calls if call.name != "write")


@pytest.mark.parametrize("go", OLD_MIDDLE_NEW)
def test_events_are_what_the_program_says(go: str) -> None:
    with running("go_events", go=go) as program:
        before = program_state(program)
        watched = Watched(program)
        program.send("work 20")
        facts = list(answers(program))
        events = watched.read()
        watched.close()
        assert program_state(program) == before
    go_events = [event for event in events if isinstance(event, GoEvent)]
    (main,) = (int(fact[1]) for fact in facts if fact[0] == "main")
    workers = {int(fact[1]): int(fact[2], 16) for fact in facts if fact[0] == "worker"}
    others = {fact[0]: int(fact[1]) for fact in facts if fact[0] in ("mutex", "sleeper", "selector")}
    assert len(workers) == 20

    def of(goid: int, what: str) -> list[GoEvent]:
        return [event for event in go_events if event.goid == goid and event.what == what]

    for goid, channel in workers.items():
        (created,) = of(goid, "create")
        assert created.by == main
        assert created.function.startswith("main.work")  # the function, or the closure of the go statement
        assert "main.work" in [frame.function for frame in created.stack]
        (blocked,) = (event for event in of(goid, "block") if event.reason.startswith("chan receive"))
        assert blocked.channel == channel
        assert "main.worker" in [frame.function for frame in blocked.stack]
        (unblocked,) = (event for event in of(goid, "unblock") if event.start_ns > blocked.start_ns)
        assert unblocked.by == main
        assert "main.work" in [frame.function for frame in unblocked.stack]
        (ended,) = of(goid, "exit")
        assert created.start_ns < blocked.start_ns < unblocked.start_ns < ended.start_ns
        states = [event.what for event in go_events if event.goid == goid]
        assert states[:2] == ["create", "start"]
        assert all(
            after == "unblock" for what, after in pairwise(states) if what == "block" and after != "start"
        )
        assert of(goid, "start")[-1].start_ns > unblocked.start_ns
    reasons = {name: {event.reason for event in of(goid, "block")} for name, goid in others.items()}
    assert reasons["selector"] & {"select"}
    assert reasons["sleeper"] & {"sleep"}
    assert any("utex" in reason or "semacquire" in reason for reason in reasons["mutex"])
    # All channels of a select that waits.
    (chosen,) = ({int(word, 16) for word in fact[2:]} for fact in facts if fact[0] == "selector")
    (blocked,) = (event for event in of(others["selector"], "block") if event.reason == "select")
    assert len(blocked.channels) == 3
    assert set(blocked.channels) == chosen
    # The lines that the goroutines stand at.
    lines = {
        frame.line
        for event in of(others["selector"], "block")
        for frame in event.stack
        if frame.function == "main.selector"
    }
    source = (ROOT / "fixtures/go_events/main.go").read_text().splitlines()
    assert any(source[line - 1].strip().startswith("select {") for line in lines)

    phases = Counter(event.phase for event in events if isinstance(event, GcEvent))
    (collections,) = (int(fact[1]) for fact in facts if fact[0] == "collections")
    assert phases["start"] == phases["mark termination"] == phases["sweep"] == collections >= 1
    assert phases["stop the world"] == phases["start the world"] >= 2 * collections
    # The order in which records lie is the order of time, but for threads that were interrupted.
    assert "write" in {event.name for event in events if isinstance(event, SyscallEvent)}


@pytest.mark.parametrize("go", OLD_MIDDLE_NEW)
def test_the_runtimes_own_calls_are_recorded(go: str) -> None:
    with running("go_events", go=go) as program:
        before = program_state(program)
        watched = Watched(program, (), RUNTIME_CALLS)
        covered = {place.number for place in watched.probes.raw}
        wanted = (
            "futex",
            "nanosleep",
            "mmap",
            "munmap",
            "madvise",
            "sched_yield",
            "tgkill",
            "getpid",
            "rt_sigprocmask",
        )
        assert {SYSCALLS[name].numbers["amd64"] for name in wanted} <= covered
        assert {"runtime.clone", "runtime.exit"} <= set(watched.probes.uncovered)
        program.send("work 20")
        list(answers(program))
        calls = [event for event in watched.read() if isinstance(event, SyscallEvent)]
        futexes = [call for call in calls if call.name == "futex"]
        assert futexes
        assert {call.tid for call in calls} <= set(map(int, os.listdir(f"/proc/{program.pid}/task")))
        assert all(call.value is not None and call.value >= -1 for call in futexes)
        assert {call.args[1] & 0x7F for call in futexes} <= {0, 1}  # wait and wake
        # Threads wait for futexes in the area now, and have to be brought out of it.
        watched.close()
        assert program_state(program) == before
        program.send("work 3")
        assert len([fact for fact in answers(program) if fact[0] == "worker"]) == 3


def test_stacks_of_the_runtimes_calls_lead_to_their_callers() -> None:
    with running("go_events") as program, GoBinary.open(str(program.path)) as binary:
        watched = Watched(program, (), RUNTIME_CALLS)
        program.send("work 20")
        list(answers(program))
        stacks = {}
        while (batch := watched.ring.read_batch()) is not None:
            for number, stack in zip(batch.numbers, batch.stacks, strict=True):
                pcs = memoryview(stack).cast("Q").tolist()
                frames = [
                    frame.function
                    for pc in pcs
                    for frame in binary.functions.frames_at(pc, is_return_address=True)
                ]
                stacks.setdefault(number, set()).add(tuple(frames))
        watched.close()
    futex = stacks[SYSCALLS["futex"].numbers["amd64"]]
    assert all(stack[0] == "runtime.futex" for stack in futex)
    assert any("runtime.futexsleep" in stack and "runtime.notesleep" in stack for stack in futex)
    assert any(
        "runtime.mstart1" in stack or "runtime.mcall" in stack or "runtime.schedule" in stack
        for stack in futex
    )


def test_attached_again_and_again_while_goroutines_come_and_go() -> None:
    with running("go_events") as program:
        before = program_state(program)
        assert program.ask("spin") == "done"
        for _ in range(40):
            watched = Watched(program, KINDS, RUNTIME_CALLS)
            batch = watched.ring.read_batch()
            assert batch is None or batch.size
            assert watched.ring.detach()
            watched.ring.close()
        assert program.ask("") == "done"
        program.send("work 4")
        assert len([fact for fact in answers(program) if fact[0] == "worker"]) == 4
        assert program_state(program)["code"] == before["code"]
        assert find_pages(program.pid) == []


def test_a_killed_tracer_leaves_a_program_that_goes_on_and_the_next_one_cleans_up() -> None:
    with running("go_events") as program:
        before = program_state(program)
        assert program.ask("spin") == "done"
        command = ["ptserver", "trace", "-q", "-e", "runtime", "--events=all", "-o", "/dev/null"]
        tracer = subprocess.Popen([*command, str(program.pid)], stderr=subprocess.PIPE)
        # Traced, and let go again. (While it is stopped a killed tracer leaves it in the middle of things.)
        while not find_pages(program.pid) or "TracerPid:\t0\n" not in status_of(program.pid):
            assert tracer.poll() is None, tracer.communicate()
        tracer.send_signal(signal.SIGKILL)
        tracer.communicate()
        assert program.ask("") == "done"
        program.send("work 4")
        assert len([fact for fact in answers(program) if fact[0] == "worker"]) == 4
        ((page, parameters),) = find_pages(program.pid)
        memory = TraceeMemory(program.pid)
        patches = decode_patches(memory.read(page + 4096, parameters.probe_bytes))
        memory.close()
        assert len(patches) > 20
        assert remove_leftovers(program.pid) == 1
        assert program_state(program) == before
        program.send("work 4")
        assert len([fact for fact in answers(program) if fact[0] == "worker"]) == 4


def status_of(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


def program_state(program: Program) -> dict[str, object]:
    """What attaching might change, the functions with probes included; after the runtime has opened what it opens."""
    program.send("work 1")
    list(answers(program))
    site = find_site(program.pid, with_c_code=True)
    state = traces_of(program.pid, site)
    memory = TraceeMemory(program.pid)
    with GoBinary.open(str(program.path), prefer_table=True) as binary:
        code = [
            memory.read(function.entry + site.load_bias, function.end - function.entry)
            for function in binary.functions.iter_functions()
            if function.name in PROBED
        ]
    memory.close()
    return state | {"probed": code}


@pytest.mark.parametrize(
    ("go", "flags"),
    [
        *(pytest.param(*version.values, (), marks=version.marks) for version in OLD_MIDDLE_NEW),
        pytest.param("1.27", (WITH_C,), marks=pytest.mark.slow),
        pytest.param("1.21", (WITH_C,), marks=pytest.mark.slow),
    ],
)
def test_conditions_that_are_hard_on_probes(go: str, flags: tuple[str, ...]) -> None:
    """Profiles, growing stacks, collections, preemption, children, signals, threads that end: nothing may break."""
    commands = ("efault", "profile", "churn", "children", "signals", "locked")
    with running("ring_hard", go=go, flags=flags, cgo=bool(flags)) as program:
        natively = [program.ask(command) for command in commands]
        wanted = RuntimeWanted(RUNTIME_CALLS, frozenset(KINDS))
        probes = wanted.find_probes(str(program.path))
        site = find_site(program.pid, with_c_code=True)
        ring = Ring.attach(program.pid, rows("write", "read"), site=site, probes=probes)
        seen: Counter[int] = Counter()
        for command, expected in zip(commands, natively, strict=True):
            program.send(command)
            while not select.select([program.process.stdout], [], [], 0.005)[0]:
                while (batch := ring.read_batch()) is not None:
                    seen.update(batch.numbers)
            answer = program.answer()
            assert answer.split()[0] == expected.split()[0], command
        while (batch := ring.read_batch()) is not None:
            seen.update(batch.numbers)
        assert ring.detach()
        ring.close()
        assert seen[Moment.STATUS] > 1000
        assert seen[Moment.GC_START] > 0
        assert seen[SYSCALLS["futex"].numbers["amd64"]] > 0
        assert program.ask("churn").split()[0] == natively[commands.index("churn")].split()[0]
