"""Core dumps that gdb made: the same code on memory that is no process any more, with threads that ran."""

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
from tests.process.goabi.live import needs, stopped
from tests.process.goabi.test_goroutines import for_versions, user_frames


@contextmanager
def opened(core: Path, path: Path) -> Iterator[tuple[CoreFile, GoRuntime, Unwinder]]:
    try:
        with CoreFile(core) as memory, GoBinary.open(path) as binary:
            runtime = GoRuntime(binary, memory, binary.elf.load_bias(memory.entry))
            yield memory, runtime, Unwinder(runtime, memory.registers_of)
    finally:
        core.unlink()  # gdb writes all that Go has reserved: a gigabyte


@needs("gcore")
@pytest.mark.parametrize(("go", "flags"), for_versions(()))
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
