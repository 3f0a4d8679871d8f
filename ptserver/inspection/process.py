"""A running Go program, looked into. See `ptserver.inspection.inspector`.

It is stopped only while what is needed is copied: the records of its goroutines, and of each stack the part in use.
Decoding and unwinding come after it was let go. Very many goroutines are taken in several stops, so that none is
long and memory stays bounded: each goroutine is then seen as it was at one moment, but not all at the same one.

Signals to this process wait during a stop, so nothing leaves the other one stopped. Should this process be killed,
the kernel lets the other one go on.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence

from goabi.errors import RuntimeDataError
from goabi.memory import read_words
from goabi.unwind import Registers
from ptserver.inspection.find_process import InspectError, find_process
from ptserver.inspection.goroutine_capture import Capture, Capturer, RegistersOf
from ptserver.inspection.guest import Guest, GuestMemory, find_guest
from ptserver.inspection.inspector import Inspected, Sighting, open_binary
from ptserver.inspection.proc_status import thread_numbers
from ptserver.inspection.process_memory import ProcessMemory, read_load_bias
from ptserver.inspection.process_stop import explain_no_stop, stopped
from stepping.errors import PtraceRefusedError, SteppingError, TraceeGoneError
from stepping.ptrace_refusal import explain_refusal
from stepping.tracee_group import TraceeGroup
from stepping.tracee_memory import TraceeMemory

#: How many records are copied in one stop; and how many with labels and channels, which take longer.
STOP_RECORDS = 10_240
STOP_DETAILED_RECORDS = 2_560
#: How much of one stack is copied when all are listed; and when one is looked at.
LISTED_STACK_BYTES = 256 << 10
WHOLE_STACK_BYTES = 256 << 20

_TRIES = 3


class InspectedProcess(Inspected):
    """A process; see `inspection.inspect_process`.

    stop_records: how many records are copied in one stop. stops: how many there were; stopped_s: how long in all.
    """

    def __init__(
        self, pid: int, *, force: bool = False, stop: bool = True, stop_records: int = STOP_RECORDS
    ) -> None:
        found = find_process(pid)
        self.pid = found.pid
        self._stop = stop
        self._stop_records = stop_records
        self.stops = 0
        self.stopped_s = 0.0
        hint = f"; `ptserver trace {found.pid}` shows its system calls"
        self._guest = find_guest(found.pid)
        title = str(found)
        path = f"/proc/{found.pid}/exe"
        if self._guest is not None:
            path, title = self._guest.path, f"process {found.pid} (emulates {self._guest.path})"
        try:
            binary = open_binary(path, title, hint, force=force)
        except PermissionError as error:
            raise PtraceRefusedError(found.pid, explain_refusal(found.pid)) from error
        except (FileNotFoundError, ProcessLookupError) as error:
            raise InspectError(f"{found} has just exited") from error
        try:
            bias = self._guest.bias if self._guest is not None else read_load_bias(binary, found.pid)
            self._memory = _open_memory(found.pid, self._guest)
        except TraceeGoneError as error:
            binary.close()
            raise InspectError(f"{found} has just exited") from error
        except BaseException:
            binary.close()
            raise
        super().__init__(title, binary, ProcessMemory(self._memory), bias)
        self._capturer = Capturer(self.runtime, found.pid, self._memory)
        self._numbers: dict[int, int] = {}

    def iter_sightings(self, *, details: bool = False) -> Iterator[Sighting]:
        """See `Inspected.iter_sightings`."""
        self.skipped = 0
        start, most = 0, STOP_DETAILED_RECORDS if details else self._stop_records
        while True:
            with self._stopped() as registers_of:
                # The list may have moved since the last stop, but records keep their places in it.
                addresses, left = self._read_list(start, most)
                capture = self._capturer.capture(addresses, LISTED_STACK_BYTES, registers_of)
                if details:
                    self._capturer.read_details(capture)
            yield from self._iter_captured(capture)
            start += capture.count
            if left + len(addresses) == capture.count:
                return

    def find(self, goid: int) -> Sighting | None:
        """See `Inspected.find`."""
        # The record is looked for while the program runs, and may be another goroutine's when it has stopped.
        for _ in range(_TRIES):
            goroutine = self.runtime.find_goroutine(goid)
            if goroutine is None:
                return None
            with self._stopped() as registers_of:
                capture = self._capturer.capture([goroutine.addr], WHOLE_STACK_BYTES, registers_of)
                self._capturer.read_details(capture)
            for sighting in self._iter_captured(capture):
                if sighting.goroutine.goid == goid:
                    return sighting
        return None

    def close(self) -> None:
        """See `Inspected.close`."""
        self.binary.close()
        self._memory.close()

    @contextlib.contextmanager
    def _stopped(self) -> Iterator[RegistersOf | None]:
        """Stop the process inside, if it is to be stopped; yields what reads its threads' registers."""
        if self._guest is None:
            self._numbers = thread_numbers(self.pid)
        if not self._stop:
            self.now_ns = time.monotonic_ns()
            yield None
            return
        try:
            with stopped(self.pid) as stop:
                self.now_ns = time.monotonic_ns()
                yield self._registers_of(stop.group)
        except PtraceRefusedError as error:
            raise explain_no_stop(self.pid, error) from error
        except TraceeGoneError as error:
            raise InspectError(f"{self.title} exited while it was looked at") from error
        except SteppingError as error:
            raise SteppingError(f"{error}; --no-stop reads it as it runs") from error
        self.stops += 1
        self.stopped_s += stop.seconds
        self.longest_stop_s = max(self.longest_stop_s, stop.seconds)

    def _registers_of(self, group: TraceeGroup) -> RegistersOf | None:
        if self._guest is not None:  # they are the emulator's own
            return None

        def registers_of(procid: int) -> Registers | None:
            tracee = group.tracees.get(self._numbers.get(procid, procid))
            try:
                return None if tracee is None else tracee.read_registers().as_dict()
            except SteppingError:
                return None

        return registers_of

    def _read_list(self, start: int, most: int) -> tuple[Sequence[int], int]:
        """Return the addresses of at most *most* records from number *start* on, and how many more there are."""
        memory = self.runtime.memory
        at = self.binary.allgs_addr + self.runtime.bias
        pointer, length, capacity = read_words(memory, at, 3)
        if not start <= length <= capacity:
            raise RuntimeDataError(f"the list of goroutines says length {length}, capacity {capacity}")
        count = min(most, length - start)
        return (read_words(memory, pointer + 8 * start, count) if count else ()), length - start - count

    def _iter_captured(self, capture: Capture) -> Iterator[Sighting]:
        for sighting in capture.iter_sightings(self.runtime):
            sighting.tid = self._numbers.get(sighting.tid, sighting.tid)
            yield sighting
        self.skipped += capture.skipped


def _open_memory(pid: int, guest: Guest | None) -> TraceeMemory:
    try:
        return TraceeMemory(pid) if guest is None else GuestMemory(pid, guest.base)
    except PermissionError as error:
        raise PtraceRefusedError(pid, explain_refusal(pid)) from error
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TraceeGoneError(pid) from error
