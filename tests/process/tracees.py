"""Programs for tests to trace: small Python and shell ones that say when they are ready."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

from stepping import ptrace_api
from stepping.errors import TraceeGoneError
from stepping.tracee_group import TraceeGroup

THREADS = """
import sys, threading, time
stop = threading.Event()
def work():
    n = 0
    while not stop.is_set():
        n += 1
        time.sleep(0.0005) if n % 50 == 0 else None
for _ in range({count}):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    print(line, end="", flush=True)
stop.set()
print("bye", flush=True)
"""


@contextlib.contextmanager
def python(source: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program with pipes at its standard streams, after it has printed its first line."""
    command = [sys.executable, "-S", "-c", source]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()
        child.send_signal(signal.SIGKILL)
        child.wait()


def end(group: TraceeGroup) -> None:
    """Kill what *group* traces and wait for just that: this thread may have other tracees and children."""
    for pid in {group.pid, *(tracee.pid for tracee in group)}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for tid in sorted({group.pid, *(tracee.tid for tracee in group)}, reverse=True):
        with contextlib.suppress(TraceeGoneError):
            while ptrace_api.wait(tid) is not None:
                pass


def ask(child: subprocess.Popen[str], line: str) -> str:
    """Send a line to a program that echoes; return what comes back."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()
    return child.stdout.readline().rstrip("\n")
