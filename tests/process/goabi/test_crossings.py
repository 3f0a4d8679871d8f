"""Threads stopped where no signal could stop them: in a signal handler, on the system stack, in a stack's growth.

gdb takes the program there by breakpoints and tells the registers; memory is read as ever.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from goabi.binary import GoBinary
from goabi.sched import GoRuntime
from goabi.unwind import Registers, Unwinder
from tests.gofixtures import build
from tests.process.goabi.live import ProcMemory, load_entry, needs
from tests.process.goabi.test_goroutines import for_versions

END = "registers end here"


@contextmanager
def held_at(path: Path, arguments: str, places: list[int]) -> Iterator[tuple[int, dict[int, Registers]]]:
    """Run a program under gdb from one place to the next, and hold it at the last: its pid, all registers by tid."""
    script = ["set pagination off", "set confirm off", "handle SIGURG nostop noprint pass"]
    for number, place in enumerate(places):
        script += [f"tbreak *{place:#x}", "continue" if number else f"run {arguments} </dev/zero >/dev/null"]
    script += ["info inferiors", "thread apply all info registers", f"echo {END}\\n", "shell cat", "kill"]
    gdb = subprocess.Popen(
        ["gdb", "-q", "-nx", "-batch", *(word for command in script for word in ("-ex", command)), path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.PIPE,
        text=True,
    )
    try:
        assert gdb.stdout is not None
        lines = []
        for line in gdb.stdout:
            if END in line:
                break
            lines.append(line)
        output = "".join(lines)
        pid = re.search(r"^\* 1 +process (\d+)", output, re.MULTILINE)
        assert pid, output
        registers: dict[int, dict[str, int]] = {}
        for line in lines:
            thread = re.match(r"Thread \d+ .*\b(?:LWP|process) (\d+)", line)
            register = re.match(r"(r\w+) +(0x[0-9a-f]+)", line)
            if thread:
                current = registers.setdefault(int(thread[1]), {})
            elif register:
                current[register[1]] = int(register[2], 16)
        yield int(pid[1]), dict(registers)
    finally:
        assert gdb.stdin is not None
        gdb.stdin.close()  # ends the cat, and so the program
        gdb.wait(timeout=60)
        if gdb.stdout is not None:
            gdb.stdout.close()


@needs("gdb")
@pytest.mark.parametrize(("go", "flags"), for_versions(()))
@pytest.mark.parametrize(
    ("arguments", "first", "stop_at", "crossed", "reached"),
    [
        ("1", "main.spin", "runtime.doSigPreempt", "runtime.sigtramp", "main."),
        ("0 collect", "main.collect", "runtime.stopTheWorldWithSema", "runtime.systemstack", "main.collect"),
        # Whichever goroutine it is whose stack grows, or that is asked to yield there.
        ("0 collect", "main.collect", "runtime.newstack", "runtime.morestack", "runtime.goexit"),
        ("0 collect", "main.collect", "runtime.park_m", "runtime.mcall", "runtime.gopark"),
    ],
)
def test_stack_goes_on_across(
    go: str,
    flags: tuple[str, ...],
    arguments: str,
    first: str,
    stop_at: str,
    crossed: str,
    reached: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOMAXPROCS", "2")
    path = build("goabi_spin", go=go, flags=flags)
    with GoBinary.open(path) as binary:
        entries = []
        for name in (first, stop_at):
            function = binary.functions.find_function_by_name(name)
            assert function is not None, name
            entries.append(function.entry)
        with held_at(path, arguments, entries) as (pid, registers):
            assert {int(entry) for entry in os.listdir(f"/proc/{pid}/task")} == set(registers)
            memory = ProcMemory(pid)
            try:
                runtime = GoRuntime(binary, memory, binary.elf.load_bias(load_entry(pid)))
                unwinder = Unwinder(runtime, registers.get)
                stacks = [
                    unwinder.unwind_thread(m, registers[m.procid])
                    for m in runtime.iter_ms()
                    if m.procid in registers and registers[m.procid]["rip"] == entries[1]
                ]
            finally:
                memory.close()
        assert stacks
        for stack in stacks:
            functions = [frame.function for frame in unwinder.iter_source_frames(stack)]
            assert functions[0] == stop_at
            assert stack.is_complete, (stack.problem, functions)
            assert crossed in functions
            beyond = functions[functions.index(crossed) :]
            assert any(name.startswith(reached) for name in beyond), functions
            assert functions[-1] in ("runtime.goexit", "runtime.mstart")
            # The frames say on whose stack they are: it changes where the crossing is.
            assert len({frame.goroutine for frame in stack.frames}) >= 2
