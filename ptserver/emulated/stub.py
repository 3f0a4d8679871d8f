"""The hypercalls of an emulated program that has the stub; their numbers and layouts are `ptserver.stub.hypercalls`.

They are answered here, as a stub host would, or by the stub host whose program the emulator is. That finds the
program's buffers in this process's memory, where the emulator has them.

Thread rules: the machine's thread, but for the call that waits for the loss of the connection.
"""

import errno
from typing import Protocol

from ptserver.emulated.background import Background
from ptserver.hosts.stub_calls import StubCalls
from ptserver.shadow.raw_calls import raw_call
from ptserver.stub.hypercalls import Hypercall
from stepping.emulation.address_space import PROT_READ, PROT_WRITE
from stepping.emulation.machine import Machine
from stepping.emulation.threads import Result, Thread, Wait


class EmulatedStub(Protocol):
    """Whoever answers the stub."""

    def call(self, machine: Machine, thread: Thread, number: int, args: list[int]) -> Result:
        """Make the call *number* of *thread*, which no table knows."""


class StubHere:
    """Answers by *calls*, until the program ends: there is no connection that could be lost."""

    def __init__(self, calls: StubCalls) -> None:
        self._calls = calls

    def call(self, machine: Machine, thread: Thread, number: int, args: list[int]) -> Result:
        """See `EmulatedStub`."""
        if number == Hypercall.WATCH:
            return machine.scheduler.block(thread, Wait(restarts=True))
        answer = self._calls.answer_from(machine.space, number, args)
        return -answer.errno if answer.errno else answer.value


class StubAway:
    """Has the stub host of this process answer. background: makes the call that waits."""

    def __init__(self, background: Background) -> None:
        self._background = background

    def call(self, machine: Machine, thread: Thread, number: int, args: list[int]) -> Result:
        """See `EmulatedStub`."""
        space = machine.space
        buffers: tuple[tuple[int, int], ...]
        match number:
            case Hypercall.HELLO:
                buffers = ((0, PROT_READ), (2, PROT_WRITE))
            case Hypercall.WATCH | Hypercall.INFO:
                buffers = ((0, PROT_WRITE),)
            case _:
                return -errno.ENOSYS
        passed = list(args)
        for index, protection in buffers:
            if passed[index + 1] and not space.allows(passed[index], passed[index + 1], protection):
                return -errno.EFAULT
            passed[index] += space.base
        if number != Hypercall.WATCH:
            return raw_call(number, *passed)
        if self._background.settles:  # it would be waited for at each call
            return machine.scheduler.block(thread, Wait(restarts=True))

        def watch() -> tuple[int, int, dict[int, bytes]]:
            value = raw_call(number, *passed)
            return max(value, 0), max(-value, 0), {}

        def finish(wait: Wait, done: tuple[int, int, dict[int, bytes]]) -> None:
            if thread.wait is wait:
                machine.scheduler.wake(thread, -done[1] or done[0])

        return self._background.start(machine.scheduler, thread, watch, finish, restarts=True)
