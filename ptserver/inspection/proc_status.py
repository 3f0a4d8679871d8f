"""What `/proc/PID/status` says, and the numbers that threads have in their own pid namespace."""

import contextlib
import os


def read_status(pid: int) -> dict[str, str]:
    """Return the fields of process or thread *pid* by name; empty if there is none."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in lines}


def inner_number(tid: int) -> int:
    """Return the number that thread *tid* has in its own pid namespace, which is what the program knows it by."""
    numbers = read_status(tid).get("NSpid", "").split()
    return int(numbers[-1]) if numbers else tid


def thread_numbers(pid: int) -> dict[int, int]:
    """Return the threads' numbers here by those that they have in their own pid namespace; empty if it is ours."""
    if len(read_status(pid).get("NSpid", "").split()) < 2:
        return {}
    numbers = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for entry in os.listdir(f"/proc/{pid}/task"):
            inner = read_status(int(entry)).get("NSpid", "").split()
            if inner:
                numbers[int(inner[-1])] = int(entry)
    return numbers


class ThreadNumbers:
    """Numbers of the threads of process *pid* here, by those that the program knows; false if they are the same."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._outer = thread_numbers(pid)

    def __bool__(self) -> bool:
        return bool(self._outer)

    def outer(self, inner: int) -> int:
        """Return the number here of the thread that the program knows as *inner*; that itself if it has ended."""
        number = self._outer.get(inner)
        if number is None and self._outer:
            self._outer = thread_numbers(self._pid) or {inner: inner}
            number = self._outer.setdefault(inner, inner)
        return inner if number is None else number


def find_inside(pid: int) -> int | None:
    """Return the process here that has the number *pid* in a pid namespace below ours."""
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            numbers = read_status(int(entry)).get("NSpid", "").split()
            if len(numbers) > 1 and numbers[-1] == str(pid):
                return int(entry)
    return None
