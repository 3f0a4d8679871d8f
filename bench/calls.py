"""`python -m bench.calls [--json] [--quick] [--repeat N] [--only TEXT]`: what running programs costs.

Served, observed and ignored calls, HTTP requests, starts and memory, against the program alone, strace and gVisor;
`apt-get install strace runsc` brings those two.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence

from bench.figures import Figure, Target, measure, options, show
from bench.measure import (
    PTSERVER,
    peak_memory_bytes,
    seconds_per_call,
    seconds_to_run,
    serving,
    tool,
)
from bench.web import caddy, caddy_requests_per_second, requests_per_second
from ptserver.keys import make_keys


def figures(tcp: str, unix: str, secure: Sequence[str], *, scale: float) -> list[Figure]:
    """Return all figures.

    tcp, unix: addresses of servers; secure: runs a program under one with TLS; scale: 1 for full counts of calls.
    """

    def in_process(name: str) -> list[str]:
        return [PTSERVER, "run", "--server", f"bench.servers:{name}"]

    def calls(
        prefix: Sequence[str] | None, kind: str, count: float, *more: str
    ) -> Callable[[], float] | None:
        number = str(max(1, round(count * scale)))
        return None if prefix is None else lambda: seconds_per_call(prefix, kind, number, *more)

    def rate(prefix: Sequence[str], count: float) -> Callable[[], float]:
        number = str(max(1, round(count * scale)))
        return lambda: 1 / seconds_per_call(prefix, "pread", number, "32")

    def web(prefix: Sequence[str], count: float) -> Callable[[], float]:
        return lambda: requests_per_second(prefix, round(count * scale))

    def files(prefix: Sequence[str], count: float) -> Callable[[], float] | None:
        executable = caddy()
        if executable is None:
            return None
        return lambda: caddy_requests_per_second(prefix, executable, round(count * scale))

    def start(prefix: Sequence[str]) -> Callable[[], float]:
        return lambda: seconds_to_run(prefix, "nothing")

    def memory(prefix: Sequence[str]) -> Callable[[], float]:
        return lambda: float(peak_memory_bytes(prefix, round(20_000 * scale)))

    run, remote, local = [PTSERVER, "run"], [PTSERVER, "run", "--server", tcp], in_process("Answers")
    strace = tool("strace", "-f", "-o", os.devnull)
    runsc = tool("runsc", "--platform=ptrace", "--network=none", "do")
    within_1_percent = Target(1.01, ratio=True)
    return [
        Figure("arithmetic", "native", "ns", calls([], "cpu", 5e8)),
        Figure("arithmetic", "ptserver run", "ns", calls(run, "cpu", 5e8), within_1_percent),
        Figure("pread of 100 bytes", "native", "µs", calls([], "pread", 500_000)),
        Figure("pread of 100 bytes", "ptserver run", "µs", calls(run, "pread", 500_000), within_1_percent),
        Figure(
            "pread of 100 bytes",
            "listener on, call not served",
            "µs",
            calls(in_process("Elsewhere"), "pread", 500_000),
            Target(1.3, ratio=True),
        ),
        Figure(
            "pread of 100 bytes",
            "observed in process",
            "µs",
            calls(in_process("Observes"), "pread", 50_000),
            Target(15),
        ),
        Figure("pread of 100 bytes", "served in process", "µs", calls(local, "pread", 50_000), Target(25)),
        Figure("pread of 100 bytes", "served over TCP", "µs", calls(remote, "pread", 10_000), Target(150)),
        Figure("pread of 100 bytes", "served over TLS", "µs", calls(secure, "pread", 10_000)),
        Figure(
            "pread of 100 bytes",
            "served over a Unix socket",
            "µs",
            calls([PTSERVER, "run", "--server", unix], "pread", 10_000),
        ),
        Figure("pread of 100 bytes", "strace -f", "µs", calls(strace, "pread", 10_000)),
        Figure("pread of 100 bytes", "runsc --platform=ptrace do", "µs", calls(runsc, "pread", 10_000)),
        Figure("32 goroutines", "native", "calls/s", rate([], 1_000_000)),
        Figure("32 goroutines", "served in process", "calls/s", rate(local, 100_000)),
        Figure(
            "32 goroutines", "served over TCP", "calls/s", rate(remote, 40_000), Target(15_000, at_least=True)
        ),
        Figure("32 goroutines", "served over TLS", "calls/s", rate(secure, 40_000)),
        Figure("HTTP requests", "native", "calls/s", web([], 40_000)),
        Figure(
            "HTTP requests",
            "served over TCP",
            "calls/s",
            web(remote, 10_000),
            Target(0.25, ratio=True, at_least=True),
        ),
        Figure("HTTP requests to caddy", "native", "calls/s", files([], 20_000)),
        Figure("HTTP requests to caddy", "served over TCP", "calls/s", files(remote, 4_000)),
        Figure("start to end of nothing", "native", "ms", start([])),
        Figure("start to end of nothing", "ptserver run", "ms", start(run), Target(150)),
        Figure("start to end of nothing", "served in process", "ms", start(local)),
        Figure("start to end of nothing", "served over TCP", "ms", start(remote)),
        Figure("start to end of nothing", "served over TLS", "ms", start(secure)),
        Figure("memory of the stub host", "served in process", "MB", memory(local), Target(60)),
        Figure("memory of the stub host", "served over TCP", "MB", memory(remote), Target(60)),
    ]


def main() -> None:
    """Measure and print."""
    parser = options("calls", "Measure what running programs costs.")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="only figures whose group or way contains TEXT"
    )
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        tcp = stack.enter_context(serving("passthrough", "127.0.0.1:0"))
        unix = stack.enter_context(serving("passthrough", f"unix:{folder}/server"))
        make_keys(f"{folder}/keys", ["localhost"], days=1, token=False)
        tls = stack.enter_context(serving("passthrough", "127.0.0.1:0", "--keys", f"{folder}/keys/server"))
        secure = [PTSERVER, "run", "--server", tls, "--keys", f"{folder}/keys/client"]
        wanted = figures(tcp, unix, secure, scale=0.1 if given.quick else 1)
        chosen = [f for f in wanted if given.only in f.group or given.only in f.way or f.way == "native"]
        rows = measure(chosen, 1 if given.quick else given.repeat)
    show(rows, as_json=given.json)


if __name__ == "__main__":
    main()
