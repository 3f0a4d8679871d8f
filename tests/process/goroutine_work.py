"""The fixture `goroutine_work`, running: who its goroutines are, and what they say that they have done."""

import contextlib
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from tests.gofixtures import build


class Done(NamedTuple):
    """What the goroutines have done since the start: rounds of work, reads, bytes."""

    a: int
    b: int
    reads: int
    bytes: int


class Worker:
    """The program. goids: its goroutines by name."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.pid = process.pid
        self.goids: dict[str, int] = {}
        while not (line := self._line()).startswith("ready"):
            _, name, goid = line.split()
            self.goids[name] = int(goid)

    def report(self) -> Done:
        """Ask it what it has done."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return Done(*map(int, self._line().split()[1:]))

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it has ended"
        return line


@contextlib.contextmanager
def working(command: tuple[str, ...] = (), weight: int = 1) -> Iterator[Worker]:
    """Run it, by *command* before its name if given; at the end it must still be well. weight: how hard it works."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*command, build("goroutine_work"), str(weight)], stdin=pipe, stdout=pipe, text=True
    ) as process:
        try:
            yield Worker(process)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(30) == 0
        finally:
            process.kill()
