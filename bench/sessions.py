"""`python -m bench.sessions [--quick] [--json]`: what 500 sessions leave of a server that is still there.

Each session opens a file and a socket, starts a process, and ends. Ten are open at a time. The first figures are
taken after as many sessions as that, since those load what all need. Memory is what is resident of the processes of
the server.
"""

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from bench.figures import options
from bench.measure import serving_process
from ptserver.conformance.caller import Caller
from ptserver.conformance.client import HELLO
from ptserver.messages import Exited

_AT_A_TIME = 10
_TARGET = 1.05
_PATIENCE_SECONDS = 30.0
_SOCKET = (1, 1)  # AF_UNIX, SOCK_STREAM


class Held(NamedTuple):
    """What a server holds: resident memory in bytes, descriptors, and its processes."""

    memory_bytes: int
    descriptors: int
    processes: int


def held(pid: int) -> Held:
    """Return what process *pid* and all that come from it hold."""
    family, memory, descriptors = [pid], 0, 0
    for member in family:
        try:
            for task in Path(f"/proc/{member}/task").iterdir():
                family += [int(child) for child in (task / "children").read_text().split()]
            status = Path(f"/proc/{member}/status").read_text()
            memory += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
            descriptors += len(os.listdir(f"/proc/{member}/fd"))
        except OSError:
            pass  # it has ended meanwhile
    return Held(memory * 1024, descriptors, len(family))


def pass_by(address: str, count: int) -> None:
    """Let *count* sessions begin and end, `_AT_A_TIME` at once."""
    for _ in range(count // _AT_A_TIME):
        clients = [Caller(address, HELLO, _PATIENCE_SECONDS) for _ in range(_AT_A_TIME)]
        for client in clients:
            client.open(b"/etc/passwd")
            client.do("socket", *_SOCKET, 0)
            client.do("clone", 17)  # SIGCHLD
        for client in clients:
            client.send(Exited(0))
            client.goodbye()
            client.close()


def settled(pid: int, processes: int) -> Held:
    """Return what the server holds once it has no more than so many processes, or no patience is left."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while (found := held(pid)).processes > processes and time.monotonic() < until:
        time.sleep(0.1)
    return found


def measure(count: int) -> tuple[Held, Held, float]:
    """Return what a server holds before and after *count* sessions, and how many seconds those took."""
    with serving_process("passthrough", "127.0.0.1:0") as (address, process):
        idle = held(process.pid).processes
        pass_by(address, _AT_A_TIME)
        before = settled(process.pid, idle)
        began = time.perf_counter()
        pass_by(address, count)
        seconds = time.perf_counter() - began
        after = settled(process.pid, idle)
    return before, after, seconds


def main() -> None:
    """Print the figures."""
    given = options("sessions", __doc__ or "", rounds=1).parse_args()
    count = 50 if given.quick else 500
    before, after, seconds = measure(count)
    ratio = after.memory_bytes / before.memory_bytes
    if given.json:
        figures = {
            "before": before._asdict(),
            "after": after._asdict(),
            "sessions": count,
            "seconds": seconds,
        }
        print(json.dumps(figures, indent=2))
        return
    print(f"{'':20}{'memory':>10} {'descriptors':>12} {'processes':>10}")
    for name, at in (("before", before), (f"after {count} sessions", after)):
        print(f"{name:20}{at.memory_bytes / 1e6:7.1f} MB {at.descriptors:12} {at.processes:10}")
    is_met = ratio <= _TARGET and after[1:] == before[1:]
    print(f"{ratio:.3f} times the memory, {count / seconds:.0f} sessions/s")
    print(f"target: at most {_TARGET} times the memory, and nothing else: {'met' if is_met else 'MISSED'}")


if __name__ == "__main__":
    main()
