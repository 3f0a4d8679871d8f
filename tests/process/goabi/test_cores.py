"""Core dumps that gdb made: the same code on memory that is no process any more, with threads that ran.

gdb also stops programs where no signal could: in a signal handler, on the system stack, in the growth of a stack.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from goabi.binary import GoBinary
from goabi.core import CoreFile
from goabi.errors import MemoryFaultError
from goabi.goroutine import GoStatus
from goabi.sched import GoRuntime
from goabi.unwind import Unwinder
from tests.gofixtures import build
from tests.process.goabi.live import stopped
from tests.process.goabi.test_goroutines import PIE, STRIPPED, for_versions, user_frames


@contextmanager
def opened(core: Path, path: Path) -> Iterator[tuple[CoreFile, GoRuntime, Unwinder]]:
    with CoreFile(core) as memory, GoBinary.open(path) as binary:
        runtime = GoRuntime(binary, memory, binary.elf.load_bias(memory.entry))
        yield memory, runtime, Unwinder(runtime, memory.registers_of)


def dump_at(path: Path, arguments: str, places: list[int], core: Path) -> None:
    """Run a program under gdb from one place to the next, each reached for the first time, and dump it
    at the last.
    """
    script = ["set pagination off", "set confirm off", "handle SIGURG nostop noprint pass"]
    for number, place in enumerate(places):
        script += [f"tbreak *{place:#x}", "continue" if number else f"run {arguments} </dev/zero >/dev/null"]
    script += [f"generate-core-file {core}", "kill"]
    done = subprocess.run(
        ["gdb", "-q", "-nx", "-batch", *(word for command in script for word in ("-ex", command)), path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=120,
    )
    assert core.exists(), done.stdout


@pytest.mark.parametrize(("go", "flags"), for_versions((), STRIPPED, PIE))
def test_core_of_every_state(go: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    path = build("goabi_states", go=go, flags=flags)
    with stopped(path, "spin", stop=False) as program:
        subprocess.run(
            ["gcore", "-o", tmp_path / "core", str(program.pid)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    core = tmp_path / f"core.{program.pid}"
    with opened(core, path) as (memory, runtime, unwinder):
        assert memory.executable == str(path)
        by_goid = {g.goid: g for g in runtime.iter_goroutines()}
        for name, goid in program.names.items():
            said = program.dump[goid]
            stack = unwinder.unwind_goroutine(by_goid[goid])
            assert stack.is_complete, (name, stack.problem)
            frames = [
                (f.function, f.file, f.line) for f in unwinder.iter_source_frames(stack, wrappers=False)
            ]
            if name not in ("main", "spin"):
                assert user_frames(frames) == user_frames(said.frames), name
        # One ran all along: its stack comes from its thread's registers, exact to the instruction.
        spin = by_goid[program.names["spin"]]
        assert spin.status is GoStatus.RUNNING
        stack = unwinder.unwind_goroutine(spin)
        assert stack.frames[0].exact
        inner = next(f for f in unwinder.iter_source_frames(stack) if f.function.startswith("main."))
        lines = Path(inner.file).read_text().split("\n")
        assert "stop.Load" in lines[inner.line - 1] or "sink++" in lines[inner.line - 1]
        # Every thread's stack ends where a stack begins.
        for m in runtime.iter_ms():
            registers = memory.registers_of(m.procid)
            if registers is not None:
                stack = unwinder.unwind_thread(m, registers)
                assert stack.is_complete, (stack, [f.function.name for f in stack.frames if f.function])
        with pytest.raises(MemoryFaultError, match="0x10"):
            memory.read(0x10, 8)


@pytest.mark.parametrize(("go", "flags"), for_versions(()))
@pytest.mark.parametrize(
    ("stop_at", "crossed", "reached"),
    [
        ("runtime.doSigPreempt", "runtime.sigtramp", "main.spin"),
        ("runtime.stopTheWorldWithSema", "runtime.systemstack", "main.collect"),
        ("runtime.newstack", "runtime.morestack", "main.grow"),
        ("runtime.park_m", "runtime.mcall", "main.collect"),
    ],
)
def test_crossings(
    go: str,
    flags: tuple[str, ...],
    stop_at: str,
    crossed: str,
    reached: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread stopped on another stack is followed to the goroutine's own, and that to its end."""
    monkeypatch.setenv("GOMAXPROCS", "2")
    path = build("goabi_spin", go=go, flags=flags)
    core = tmp_path / "core"
    with GoBinary.open(path) as binary:
        start = binary.functions.find_function_by_name("main.collect")
        function = binary.functions.find_function_by_name(stop_at)
        assert start is not None
        assert function is not None
    dump_at(path, "1 collect", [start.entry, function.entry], core)
    with opened(core, path) as (memory, runtime, unwinder):
        complete = []
        for m in runtime.iter_ms():
            registers = memory.registers_of(m.procid)
            if registers is None:
                continue
            stack = unwinder.unwind_thread(m, registers)
            functions = [f.function for f in unwinder.iter_source_frames(stack)]
            if functions[0] == stop_at:
                complete.append((stack, functions))
        ((stack, functions),) = complete
        assert stack.is_complete, (stack.problem, functions)
        assert crossed in functions
        assert any(name.startswith(reached) for name in functions[functions.index(crossed) :]), functions
        assert functions[-1] in ("runtime.goexit", "runtime.mstart")
        # The frames say on whose stack they are: it changes where the crossing is.
        owners = [frame.goroutine for frame in stack.frames]
        assert len(set(owners)) == 2
