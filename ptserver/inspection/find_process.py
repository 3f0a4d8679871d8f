"""Finds a process to look into or to trace. Needs no knowledge of Go, so that a trace begins soon."""

from typing import NamedTuple

from ptserver.errors import PtServerError
from ptserver.inspection.proc_status import find_inside, read_status


class InspectError(PtServerError):
    """There is no such process, core or goroutine, or it is none of a Go program that is known."""

    exit_status = 66


class Found(NamedTuple):
    """A process that may be looked into. pid: the process, also if a thread's number was given; name: its command."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name})"


def find_process(pid: int) -> Found:
    """Return process *pid*, or that of thread *pid*.

    Raises:
        InspectError: there is none, it has exited, or it is a kernel thread.
    """
    fields = read_status(pid)
    if not fields:
        inside = find_inside(pid)
        hint = f"; in a container there is, which is process {inside} here" if inside else ""
        raise InspectError(f"there is no process {pid}{hint}")
    found = Found(int(fields.get("Tgid", pid)), fields.get("Name", "?"))
    if fields.get("State", "").startswith(("Z", "X")):
        parent = int(fields.get("PPid", 0))
        name = read_status(parent).get("Name", "?")
        raise InspectError(
            f"{found} has exited, and waits for its parent, process {parent} ({name}), to notice"
        )
    if fields.get("Kthread") == "1" or "VmSize" not in fields:
        raise InspectError(f"{found} is a kernel thread and runs no program")
    return found
