"""What is different about the calls of a program whose run is to be repeatable.

Processes have other numbers, and timers run by the program's clock. A child that has been given something to do gets
a moment in earnest for it before the program is told that there is nothing to be read yet.
"""

import errno
import select
from collections.abc import Callable

from ptserver.emulated.background import Background
from ptserver.emulated.child_numbers import ChildNumbers
from ptserver.emulated.readiness import EPOLLS, READERS
from ptserver.emulated.repeatable_timers import TIMERS, RepeatableTimers
from ptserver.shadow.execute import Executed
from stepping.syscalls import Syscall
from stepping.syscalls.marshal import Args

_INT = 0xFFFFFFFF
#: What waits for others, on its first argument, and does nothing for them.
_WAITS = READERS | EPOLLS
Execute = Callable[[Syscall, Args, dict[int, bytes], dict[int, int]], Executed]


class Repeatable:
    """Makes calls so that they come to the same each time. timers: None where descriptors are not this process's."""

    def __init__(
        self, numbers: ChildNumbers, background: Background, timers: RepeatableTimers | None
    ) -> None:
        self.numbers = numbers
        self._background = background
        self._timers = timers

    def execute(
        self, make: Execute, row: Syscall, args: Args, ins: dict[int, bytes], outs: dict[int, int]
    ) -> Executed:
        """Make a call by *make*, whose arguments and results are the kernel's."""
        name, timers = row.name, self._timers
        if timers is not None and name in TIMERS:
            return timers.execute(name, args, ins)
        host_args = self.numbers.to_host(name, args)
        value, error, filled = make(row, host_args, ins, outs)
        if name not in _WAITS:
            self._background.acted()
        elif error == errno.EAGAIN or (name in EPOLLS and not value and not error):
            poll = select.poll()
            poll.register(args[0] & _INT, select.POLLIN)
            if self._background.linger(poll):
                value, error, filled = make(row, host_args, ins, outs)
        if error:
            return value, error, filled
        if timers is not None:
            if name == "close":
                timers.closed(args[0] & _INT, args[0] & _INT)
            elif name == "close_range":
                timers.closed(args[0] & _INT, args[1] & _INT)
            elif name in ("dup2", "dup3") and args[0] & _INT != args[1] & _INT:
                timers.closed(args[1] & _INT, args[1] & _INT)
        value, filled = self.numbers.to_program(name, value, filled)
        return value, 0, filled
