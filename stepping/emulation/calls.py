"""Which syscalls the machine itself answers, by number: the union of the tables of the `calls_*` modules."""

from typing import TYPE_CHECKING

from stepping.emulation import calls_memory, calls_signal, calls_thread, calls_time
from stepping.emulation.threads import Result, Thread
from stepping.syscalls import SYSCALLS, Arch

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepping.emulation.machine import Machine


def handlers(machine: "Machine", arch: Arch) -> "dict[int, Callable[[Thread, list[int]], Result]]":
    """Return what answers each call of *arch* that is about the program itself, by its number."""
    by_name: dict[str, Callable[[Thread, list[int]], Result]] = {}
    for module in (calls_memory, calls_thread, calls_signal, calls_time):
        by_name |= module.handlers(machine)
    return {
        SYSCALLS[name].numbers[arch]: handler
        for name, handler in by_name.items()
        if arch in SYSCALLS[name].numbers
    }
