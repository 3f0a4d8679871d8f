"""Looks into a Go program from outside, be it a process or a core dump: one way to get at goroutines and stacks.

`inspect_process` and `inspect_core` give an `Inspected`. Its goroutines come as `Sighting`s, each whole by itself:
nothing of the program is needed any more to unwind its stack, so a process can go on meanwhile.

Not trusted: the program and its memory. An `Inspected` is used from one thread, the one that opened it (the kernel
ties tracees to threads).
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from goabi.binary import GoBinary
from goabi.errors import (
    BuildInfoError,
    GoAbiError,
    GoVersionError,
    LayoutError,
    MemoryFaultError,
    NotGoError,
)
from goabi.goroutine import Goroutine, GoStatus
from goabi.memory import MemoryReader
from goabi.sched import GoRuntime
from goabi.unwind import DEFAULT_MAX_FRAMES, Stack, Unwinder
from ptserver.inspection.find_process import InspectError

if TYPE_CHECKING:
    from ptserver.inspection.core import InspectedCore
    from ptserver.inspection.process import InspectedProcess

Wanted = Callable[[Goroutine], bool]


@dataclass(slots=True)
class Sighting:
    """A goroutine as it was at one moment.

    tid: the thread that it has (or 0): of this machine's numbers for a process, of the core's for a core.
    labels: its profiler labels, and channels: the addresses of those it waits for; both only if asked for.
    """

    goroutine: Goroutine
    tid: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    channels: tuple[int, ...] = ()
    #: The stack, where it had to be unwound at once; else its copy and where that begins.
    stack: Stack | None = None
    stack_copy: bytes = b""
    stack_start: int = 0


class Inspected(ABC):
    """A Go program that is looked into. Use as a context manager, or `close()` it.

    title: what it is, for people. now_ns: the program's monotonic clock when it was last looked at, None if unknown.
    skipped: how many records made no sense in the last listing. longest_stop_s: of all stops so far.
    """

    def __init__(self, title: str, binary: GoBinary, memory: MemoryReader, bias: int) -> None:
        self.title = title
        self.binary = binary
        self.runtime = GoRuntime(binary, memory, bias)
        self.now_ns: int | None = None
        self.skipped = 0
        self.longest_stop_s = 0.0
        self._copied = _CopiedStack()
        self._unwinder = Unwinder(GoRuntime(binary, self._copied, bias))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def iter_sightings(self, *, details: bool = False) -> Iterator[Sighting]:
        """Yield all live goroutines. details: with labels and channels, which takes some time for each.

        Raises:
            GoAbiError: the program's list of goroutines cannot be read.
            SteppingError: a process cannot be stopped, or has exited.
        """

    @abstractmethod
    def find(self, goid: int) -> Sighting | None:
        """Return a goroutine with its details and its stack to the end; None if there is none of that number."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything."""

    def unwind(self, sighting: Sighting, max_frames: int = DEFAULT_MAX_FRAMES) -> Stack:
        """Return its stack, innermost frame first."""
        if sighting.stack is not None:
            return sighting.stack
        self._copied.start, self._copied.data = sighting.stack_start, sighting.stack_copy
        return self._unwinder.unwind_goroutine(sighting.goroutine, max_frames)

    def read_details(self, sighting: Sighting) -> None:
        """Read the labels and channels now; what makes no sense is left out."""
        try:
            sighting.labels = self.runtime.labels(sighting.goroutine)
            if sighting.goroutine.status is GoStatus.WAITING:
                sighting.channels = self.runtime.waiting_on(sighting.goroutine)
        except GoAbiError:
            pass  # they decorate, and the program may have been stopped in the middle of changing them


class _CopiedStack:
    """The copy of one stack, as memory."""

    def __init__(self) -> None:
        self.start = 0
        self.data = b""

    def read(self, addr: int, size: int, /) -> bytes:
        """See `MemoryReader.read`."""
        offset = addr - self.start
        if not 0 <= offset <= len(self.data) - size:
            raise MemoryFaultError(addr, size, "beyond what was copied of the stack")
        return self.data[offset : offset + size]


def open_binary(path: str | os.PathLike[str], what: str, hint: str, *, force: bool) -> GoBinary:
    """Open the program *path* of *what*, and check that its runtime is known.

    hint: what to do if it is no Go program. force: try the DWARF of versions that were never tested.

    Raises:
        InspectError: it is not Go's, or of a version whose runtime is not known.
        OSError: it cannot be opened.
    """
    try:
        binary = GoBinary.open(path, force=force, prefer_table=True)
    except GoVersionError as error:
        raise InspectError(f"{what}: {_reason(error, path)}{hint}") from error
    except NotGoError as error:
        raise InspectError(f"{what} is {_reason(error, path)}{hint}") from error
    except GoAbiError as error:
        raise InspectError(
            f"{what} is not a Go program that can be read ({_reason(error, path)}){hint}"
        ) from error
    try:
        binary.check_supported()
        _ = binary.layouts, binary.allgs_addr
    except (BuildInfoError, GoVersionError, LayoutError) as error:
        binary.close()
        advice = "" if force else "; --force tries by its debugging information"
        raise InspectError(f"{what}: {_reason(error, path)}{advice}{hint}") from error
    except BaseException:
        binary.close()
        raise
    return binary


def _reason(error: GoAbiError, path: str | os.PathLike[str]) -> str:
    return str(error).removeprefix(f"{os.fspath(path)}: ")


def inspect_target(
    target: str, exe: str | None = None, *, force: bool = False, stop: bool = True
) -> "InspectedProcess | InspectedCore":
    """Look into what a user named: a process by its number, else a core dump by its path.

    Raises:
        InspectError, PtraceRefusedError: see `inspect_process` and `inspect_core`.
    """
    if not target.isdecimal():
        return inspect_core(target, exe, force=force)
    if exe is not None:
        raise InspectError(f"process {target} says itself what it executes; --exe is for cores")
    return inspect_process(int(target), force=force, stop=stop)


def inspect_process(pid: int, *, force: bool = False, stop: bool = True) -> "InspectedProcess":
    """Look into process *pid*. Without *stop* it runs on meanwhile: records that change may then make no sense.

    Raises:
        InspectError: there is no such process, or it runs no Go program that is known.
        PtraceRefusedError: the kernel does not allow it.
    """
    from ptserver.inspection.process import InspectedProcess

    return InspectedProcess(pid, force=force, stop=stop)


def inspect_core(path: str, exe: str | None = None, *, force: bool = False) -> "InspectedCore":
    """Look into the core dump *path* of the program *exe*, by default the one that the core names.

    Raises:
        InspectError: it is no core, its program is not here, or is another, or no Go program that is known.
    """
    from ptserver.inspection.core import InspectedCore

    return InspectedCore(path, exe, force=force)
