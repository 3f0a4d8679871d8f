"""Every goroutine state, against what the program itself says (runtime.Stack), on real stopped processes."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from goabi.binary import GoBinary
from goabi.errors import LayoutError, NotGoError
from goabi.goroutine import Goroutine, GoStatus, PStatus
from goabi.sched import GoRuntime
from goabi.unwind import Unwinder
from tests.gofixtures import DEFAULT_GO, GO_VERSIONS, build
from tests.process.goabi.live import StoppedProgram, needs, stopped

STRIPPED = ("-ldflags=-s -w",)
PIE = ("-buildmode=pie",)
# The channel that a goroutine waits for, by the variable's name.
CHANNELS = {
    "receive": {"neverSent"},
    "send": {"fullChan"},
    "select": {"neverSent", "fullChan"},
    "recursion": {"neverSent"},
    "method": {"neverSent"},
}


def for_versions(*flags: tuple[str, ...]) -> list[object]:
    """Each version with each set of flags; other toolchains than the default are a matrix of their own."""
    return [
        pytest.param(
            go, flag, id=f"{go}{''.join(flag)}", marks=[] if go == DEFAULT_GO else pytest.mark.goversions
        )
        for go in GO_VERSIONS
        for flag in flags
    ]


@dataclass
class Subject:
    program: StoppedProgram
    runtime: GoRuntime
    unwinder: Unwinder
    by_goid: dict[int, Goroutine]

    def named(self, name: str) -> Goroutine:
        return self.by_goid[self.program.names[name]]

    def source(self, goroutine: Goroutine) -> list[tuple[str, str, int]]:
        stack = self.unwinder.unwind_goroutine(goroutine)
        assert stack.is_complete, stack.problem
        return [(f.function, f.file, f.line) for f in self.unwinder.iter_source_frames(stack, wrappers=False)]


@contextmanager
def subject(path: Path) -> Iterator[Subject]:
    with stopped(path) as program:
        runtime = program.runtime(path)
        with runtime.binary:
            by_goid = {g.goid: g for g in runtime.iter_goroutines()}
            yield Subject(program, runtime, Unwinder(runtime), by_goid)


def user_frames(frames: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Go's traces leave out most of the runtime and what C calls first, and call gopanic by its language name."""
    return [
        frame for frame in frames if not frame[0].startswith(("runtime.", "_cgoexp_")) and frame[0] != "panic"
    ]


@pytest.mark.parametrize(("go", "flags"), for_versions((), STRIPPED, PIE))
def test_states_and_stacks_are_what_the_program_says(go: str, flags: tuple[str, ...]) -> None:
    path = build("goabi_states", go=go, flags=flags)
    with subject(path) as s:
        runtime = s.runtime
        assert (s.program.bias != 0) == (flags == PIE)
        assert runtime.layouts.source.startswith("table" if flags == STRIPPED else "DWARF")
        listed = {goid for goid, g in s.by_goid.items() if not runtime.is_system(g)}
        assert listed == set(s.program.dump)
        for name, goid in s.program.names.items():
            goroutine, said = s.by_goid[goid], s.program.dump[goid]
            assert goroutine.stack_lo < goroutine.sched_sp <= goroutine.stack_hi
            assert goroutine.parent_goid == said.creator, name
            if name == "main":
                continue  # it was running when it wrote the dump
            state = runtime.wait_reason(goroutine) or goroutine.status.name.lower()
            assert state == said.state, name
            assert user_frames(s.source(goroutine)) == user_frames(said.frames), name
            site = runtime.creation_site(goroutine)
            assert site is not None
            assert (site.function, site.file, site.line) == (said.created_by, *said.created_at), name
            entry = runtime.entry(goroutine)
            assert entry is not None
            assert entry.function == "main.spawn.func1"
        assert runtime.skipped == 0
        assert runtime.find_goroutine(s.program.names["send"]) == s.named("send")
        assert runtime.find_goroutine(1 << 40) is None
        assert runtime.goroutine_slots() == len(list(runtime.iter_goroutines(dead=True)))
        main = s.named("main")
        assert main.status is GoStatus.SYSCALL
        assert user_frames(s.source(main))[-1][0] == "main.main"
        assert runtime.labels(s.named("labels")) == {"kind": "test", "answer": "42", "long": "ä" * 100}
        assert runtime.labels(s.named("receive")) == {}
        assert s.named("locked").locked_m != 0
        # The inlined calls have no frames of their own, and are there nonetheless.
        assert "main.inlinedInner" in [frame[0] for frame in s.source(s.named("inlined"))]


@pytest.mark.parametrize(("go", "flags"), for_versions((), STRIPPED, PIE))
def test_ms_are_the_threads_and_ps_are_as_many_as_asked_for(
    go: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMAXPROCS", "3")
    path = build("goabi_states", go=go, flags=flags)
    with subject(path) as s:
        tids = {int(entry) for entry in os.listdir(f"/proc/{s.program.pid}/task")}
        ms = list(s.runtime.iter_ms())
        known = {m.procid for m in ms if m.procid}
        assert known <= tids
        # The rest have just been made, and have yet to say their numbers.
        assert len(tids - known) <= sum(1 for m in ms if not m.procid)
        assert sorted(m.id for m in ms) == sorted({m.id for m in ms})
        ps = s.runtime.read_ps()
        assert [p.id for p in ps] == [0, 1, 2]
        assert all(p.status in PStatus for p in ps)
        main = s.named("main")
        assert s.runtime.read_m(main.m).curg == main.addr
        found = s.runtime.find_m(s.program.pid)
        assert found is not None
        assert found.procid == s.program.pid


def test_channels_are_those_of_the_variables() -> None:
    with subject(build("goabi_states")) as s:
        dwarf = s.runtime.binary.dwarf
        assert dwarf is not None
        addresses = {}
        for name in ("neverSent", "fullChan"):
            variable = dwarf.find_variable(f"main.{name}")
            assert variable is not None
            addresses[int.from_bytes(s.program.memory.read(variable.addr, 8), "little")] = name
        for name, channels in CHANNELS.items():
            assert {addresses[addr] for addr in s.runtime.waiting_on(s.named(name))} == channels, name
        assert s.runtime.waiting_on(s.named("sleep")) == ()


def test_wait_times_begin_at_the_last_collection() -> None:
    with subject(build("goabi_states")) as s:
        now = time.monotonic_ns()
        waited = s.runtime.wait_ns(s.named("receive"), now)
        assert waited is not None
        assert 0 < waited < 300 * 10**9
        assert s.runtime.wait_ns(s.named("main"), now) is None


@needs("gcc")
@pytest.mark.parametrize(
    ("flags", "cgo"),
    [
        pytest.param(("-ldflags=-linkmode=external",), True, id="cgo"),
        pytest.param(("-ldflags=-linkmode=external", "-buildmode=pie"), True, id="cgo-pie"),
        pytest.param(("-ldflags=-linkmode=external -s -w", "-buildmode=pie"), True, id="cgo-pie-stripped"),
        pytest.param(("-gcflags=-N -l",), False, id="unoptimised"),
        pytest.param(("-race",), True, id="race", marks=pytest.mark.slow),
    ],
)
def test_other_ways_to_build(flags: tuple[str, ...], cgo: bool) -> None:
    with subject(build("goabi_states", cgo=cgo, flags=flags)) as s:
        assert s.runtime.binary.elf.header.is_dynamic is cgo
        for name, goid in s.program.names.items():
            if name != "main":
                assert user_frames(s.source(s.named(name))) == user_frames(s.program.dump[goid].frames), name
        assert {m.procid for m in s.runtime.iter_ms()} >= {s.program.pid}
        assert s.runtime.read_ps()


@needs("gcc")
@pytest.mark.parametrize(("go", "flags"), for_versions(()))
def test_goroutines_in_c_and_called_by_c(go: str, flags: tuple[str, ...]) -> None:
    with subject(build("goabi_cgo", go=go, flags=flags, cgo=True)) as s:
        for name in ("inC", "callback"):
            found = [(f[0], f[2]) for f in user_frames(s.source(s.named(name)))]
            said = [(f[0], f[2]) for f in user_frames(s.program.dump[s.program.names[name]].frames)]
            assert found == said, name
        assert s.named("inC").status is GoStatus.SYSCALL
        m = s.runtime.read_m(s.named("inC").m)
        assert m.in_cgo
        assert m.curg == s.named("inC").addr
        functions = [frame[0] for frame in s.source(s.named("callback"))]
        assert functions.index("runtime.cgocallback") < functions.index("main.throughC")


def test_sigpanic_is_crossed() -> None:
    with subject(build("goabi_panic")) as s:
        for name in ("nilmap", "nilpointer", "divide"):
            said = s.program.dump[s.program.names[name]]
            assert user_frames(s.source(s.named(name))) == user_frames(said.frames), name
        functions = [frame[0] for frame in s.source(s.named("nilpointer"))]
        assert "runtime.sigpanic" in functions
        assert functions.index("runtime.sigpanic") < functions.index("main.dereference")


def test_preempted_goroutine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that spin on one processor, one is always preempted, at an instruction that no call follows."""
    monkeypatch.setenv("GOMAXPROCS", "1")
    path = build("goabi_spin")
    with stopped(path, "2", stop=False) as program:
        runtime = program.runtime(path)
        unwinder = Unwinder(runtime)
        for _ in range(1000):
            os.kill(program.pid, signal.SIGSTOP)
            os.waitpid(program.pid, os.WUNTRACED)
            spinners = [g for g in runtime.iter_goroutines() if g.goid in program.names.values()]
            assert len(spinners) == 2
            preempted = [g for g in spinners if g.status in (GoStatus.RUNNABLE, GoStatus.PREEMPTED)]
            if preempted and preempted[0].sched_sp:
                break
            os.kill(program.pid, signal.SIGCONT)
        stack = unwinder.unwind_goroutine(preempted[0])
        frames = list(unwinder.iter_source_frames(stack))
        functions = [frame.function for frame in frames]
        assert stack.is_complete, stack.problem
        assert "runtime.asyncPreempt" in functions
        assert functions[-1] == "runtime.goexit"
        spin = frames[functions.index("main.spin")]
        assert "spins" in Path(spin.file).read_text().split("\n")[spin.line - 1]


def test_file_without_go_has_no_goroutines() -> None:
    with pytest.raises(NotGoError, match="not a Go program"):
        GoBinary.open("/bin/true")


def test_stripped_program_says_what_is_missing(tmp_path: Path) -> None:
    """A future Go, stripped: its version is named, and no structure is guessed."""
    path = build("goabi_states", flags=STRIPPED)
    image = path.read_bytes()
    version = re.search(rb"go1\.27\.\d", image)
    assert version
    newer = tmp_path / "newer"
    newer.write_bytes(image.replace(version[0], b"go1.99.0"))
    with GoBinary.open(newer, force=True) as binary, pytest.raises(LayoutError, match=r"go1\.99\.0"):
        _ = binary.layouts
