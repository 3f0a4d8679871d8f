"""What is run in every mode: a program, its input, what the test does meanwhile, what may differ in the output."""

import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.cfixtures import build_c
from tests.gofixtures import build
from tests.running import Running

Drive = Callable[[Running], None]
Normalise = Callable[[bytes], bytes]
#: Gives the executable, with the project's stub in it or without.
Program = Callable[[bool], Path]


def go(name: str) -> Program:
    return lambda stub: build(name, stub=stub)


def c(name: str, *flags: str) -> Program:
    return lambda stub: build_c(name, flags=flags)


def as_is(output: bytes) -> bytes:
    return output


def traceback(output: bytes) -> bytes:
    """A Go traceback without what the layout of memory decides."""
    output = re.sub(rb"0x[0-9a-f]+", b"0x?", output)
    return re.sub(rb"goroutine \d+( gp=\S+ m=\S+( mp=\S+)?)?", b"goroutine N", output)


def first_line(output: bytes) -> bytes:
    """Of a dump of registers and goroutines, what it is about."""
    return output.partition(b"\n")[0]


@dataclass(frozen=True)
class Case:
    """One program in one situation.

    local_only: needs what a server at an address does not provide yet (see docs/differences.md);
    remote_only: is about what is only done where a server is at an address; terminal: its standard streams are a new
    terminal.
    """

    name: str
    program: Program
    args: tuple[str, ...] = ()
    stdin: bytes = b""
    env: Mapping[str, str] = field(default_factory=dict)
    drive: Drive | None = None
    normalise: Normalise = as_is
    local_only: bool = False
    remote_only: bool = False
    terminal: bool = False
    heavy: bool = False


def notify(running: Running) -> None:
    running.expect("ready\n")
    for signo in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGUSR1):
        running.signal(signo)
        running.expect("got: ")
        running.expect("\n")
    running.signal(signal.SIGTERM)


def kill_program(signo: int) -> Drive:
    """Send the signal to the program itself, not to what runs it."""

    def drive(running: Running) -> None:
        import os

        running.expect("waiting\n")
        os.kill(running.pid_of_program(), signo)

    return drive


def terminate(running: Running) -> None:
    running.expect("waiting\n")
    running.signal(signal.SIGTERM)


def line_by_line(running: Running) -> None:
    running.expect("ready\n")
    for word in ("one", "two", "three"):
        running.send(f"{word}\n".encode())
        running.expect(f'line "{word}"\n')
    running.send(b"no newline")
    running.close_stdin()


def at_terminal(running: Running) -> None:
    running.expect("resize me\r\n")
    running.resize(100, 40)
    running.expect("now 100x40\r\n")
    running.expect("type a line\r\n")
    running.send(b"typed\n")
    running.expect("interrupt me\r\n")
    running.send(b"\x03")
    running.expect("interrupted\r\n")
    running.expect("interrupt me again\r\n")
    running.send(b"\x03")


def end_of_terminal_input(running: Running) -> None:
    running.expect("ready\r\n")
    running.send(b"first\n")
    running.expect('line "first"\r\n')
    running.send(b"\x04")


def _panics(kind: str) -> Case:
    normalise = first_line if kind == "overflow" else traceback
    return Case(f"panics-{kind}", go("panics"), (kind,), normalise=normalise)


def _kills_itself(signo: signal.Signals) -> Case:
    normalise = first_line if signo in (signal.SIGQUIT, signal.SIGABRT, signal.SIGSEGV) else as_is
    return Case(f"kills-itself-{signo.name}", go("sigkill"), (str(int(signo)),), normalise=normalise)


LARGE_INPUT = bytes(range(256)) * 20_000

CASES = (
    Case("hello", go("hello"), ("a", "b c", "")),
    Case("goroutines", go("goroutines")),
    Case("tree", go("tree")),
    Case("pipes", go("pipes")),
    Case("timers", go("timers")),
    Case(
        "environment",
        go("environment"),
        ("x", "-server", "--"),
        env={"GREETING": "hello", "EMPTY": "", "Ä": "ö"},
    ),
    Case("bigio", go("bigio"), heavy=True),
    Case("manyio", go("manyio"), heavy=True),
    Case("events", go("events")),
    Case("notify", go("notify"), drive=notify),
    *map(
        _panics,
        ("value", "error", "nil", "index", "goroutine", "again", "deadlock", "overflow", "map", "fatal"),
    ),
    Case("returns", go("panics"), ("nothing",)),
    Case("exit3", go("exit3")),
    Case("exit255", go("exit3"), ("255",)),
    *map(
        _kills_itself,
        (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGHUP, signal.SIGINT),
    ),
    Case("killed", go("sigkill"), drive=kill_program(signal.SIGKILL)),
    Case("terminated", go("sigkill"), drive=terminate),
    Case("stdin", go("stdin"), stdin=LARGE_INPUT),
    Case("stdin-empty", go("stdin")),
    Case("stdin-lines", go("stdin"), ("lines",), drive=line_by_line),
    Case("flood", go("flood")),
    Case("terminal", go("terminal"), terminal=True, drive=at_terminal),
    Case("terminal-eof", go("stdin"), ("lines",), terminal=True, drive=end_of_terminal_input),
    Case("no-terminal", go("terminal")),
    Case(
        "bigargs",
        go("bigargs"),
        tuple("a" * 100_000 for _ in range(8)) + tuple(map(str, range(5000))),
        env={f"VARIABLE_{i}": "v" * 1000 for i in range(300)},
    ),
    Case("deepdirs", go("deepdirs")),
    Case("fileops", go("fileops")),
    *(Case(f"ahead-{seed}", go("ahead"), (str(seed), "120"), remote_only=True) for seed in range(1, 25)),
    Case("behind", go("behind"), remote_only=True),
    Case("fifo", go("fifo")),
    Case("preempt", go("preempt"), heavy=True),
    Case("c-static", c("syscalls_c", "-static"), ("last",)),
    Case("c-dynamic", c("syscalls_c"), ("last",)),
    Case("c-static-pie", c("syscalls_c", "-static-pie"), ("last",)),
    Case("children", go("children")),
    Case("signals-c", c("signals_c", "-static"), remote_only=True),
    Case("processes-c-static", c("processes_c", "-static")),
    Case("processes-c-dynamic", c("processes_c")),
    Case("numbers-c", c("processes_c", "-static"), ("numbers",)),
    Case("replaced", c("processes_c", "-static"), ("replace",), stdin=b"input for the other\n"),
    Case("network", go("network")),
    Case("sockets", go("sockets")),
    Case("locks", go("locks")),
    Case("filefeatures", go("filefeatures")),
    Case("mapped-file", go("mappedfile")),
    Case("mappings", go("mappings")),
    Case("dynamic-program", lambda stub: Path("/bin/ls"), ("-a", "/")),
)
