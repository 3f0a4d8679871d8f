"""Runs a thread on the processor, at its full speed, up to the next thing that stops it.

Breakpoints make it stop where it must. What cannot be told that way, so many instructions or blocks or leaving a
range of addresses, is left to single-stepping (`singlestep`).

Source: ptrace(2).
"""

from stepping.breakpoints import Breakpoints
from stepping.executor import AboutToCall, CountUsedUp, Execed, Exited, Reached, RunResult, Until
from stepping.singlestep import StepExecutor
from stepping.stop_results import result_of_stop
from stepping.tracee import Resume, Tracee
from stepping.tracee_group import TraceeGroup

_ONE = Until(instructions=1)


class NativeExecutor:
    """Runs threads of *group*. breakpoints: those in its memory, to which it adds its own while it runs."""

    def __init__(self, group: TraceeGroup, breakpoints: Breakpoints) -> None:
        self._group = group
        self._breakpoints = breakpoints
        self._stepper = StepExecutor(group, breakpoints)

    def run(self, tracee: Tracee, until: Until) -> RunResult:
        """See `executor.Executor.run`.

        Raises:
            stepping.errors.MemoryFaultError: one of the addresses of *until* is not mapped.
        """
        if until.is_counted or until.within is not None:
            return self._stepper.run(tracee, until)
        start = tracee.read_registers().pc
        if start in until.addresses or start in self._breakpoints:
            result = self._stepper.run(tracee, _ONE)
            if not isinstance(result, CountUsedUp):
                return result
            if result.pc in until.addresses:
                return Reached(result.pc)
            start = 0
        own = [address for address in until.addresses if address not in self._breakpoints]
        try:
            for address in own:
                self._breakpoints.insert(address)
            result = self._continue(tracee, start if until.syscalls else None)
            if isinstance(result, Execed | Exited):
                self._breakpoints.forget_all()
            return result
        finally:
            for address in own:
                self._breakpoints.remove(address)

    def _continue(self, tracee: Tracee, first_call: int | None) -> RunResult:
        """Run up to a result; first_call: stop at syscalls, but at that address only after it was left."""
        how = Resume.FREE if first_call is None else Resume.SYSCALL
        while True:
            tracee.resume(how)
            status = self._group.wait_for(tracee)
            result = result_of_stop(tracee, status, self._breakpoints)
            if isinstance(result, AboutToCall) and result.pc == first_call:
                first_call = 0
            elif result is not None:
                return result
