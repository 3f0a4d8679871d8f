"""Looks at a running Go program without stopping it: the processor time of its threads, and its goroutines.

Nothing is traced, and the program does not notice. What changes while it is read may make no sense; that is left
out. A sample costs this process some 20 microseconds a thread that runs, a listing about 5 microseconds a goroutine.

Source: proc(5), /proc/PID/task/TID/schedstat: time on the processor in nanoseconds. The kernel brings it up to date
at each switch and each tick of its clock, so of a thread that runs it is up to a tick (1 to 10 ms) late. Whether it
runs, its `stat` says; it is read only of threads that have run since the last sample.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Self

from goabi.binary import GoBinary
from goabi.errors import GoAbiError
from goabi.goroutine import GoStatus
from ptserver.inspection.goids import GoroutineIds
from ptserver.inspection.goroutine_stats import NO_GOROUTINE, Listed, ThreadSample, format_site
from stepping.errors import TraceeGoneError
from stepping.tracee_memory import TraceeMemory

_SCHEDSTAT_BYTES = 128
#: Files that are kept open from one sample to the next, which saves two thirds of their time.
_KEPT_FILES = 256
_FIRST_GOID = 1
_START = "the program's start"


class Sampler:
    """Samples process *pid*, a Go program. Use from one thread; close it."""

    def __init__(self, pid: int, binary: GoBinary, memory: TraceeMemory) -> None:
        self.pid = pid
        self._binary = binary
        self._memory = memory
        self._goids = GoroutineIds(binary, pid, memory)
        self._files: dict[int, int] = {}
        self._cpu: dict[int, int] = {}
        self._sites: dict[int, str] = {}

    @classmethod
    def open(cls, pid: int) -> Self | None:
        """Return a sampler of process *pid*; None if it is no Go program, or cannot be read."""
        with contextlib.ExitStack() as on_error:
            try:
                binary = on_error.enter_context(GoBinary.open(f"/proc/{pid}/exe", prefer_table=True))
                binary.check_supported()
                memory = TraceeMemory(pid)
                on_error.callback(memory.close)
                sampler = cls(pid, binary, memory)
            except (GoAbiError, OSError, TraceeGoneError):
                return None
            on_error.pop_all()
            return sampler

    def threads(self) -> list[ThreadSample]:
        """Return all threads as they are now; none if the process is gone."""
        try:
            tids = [int(name) for name in os.listdir(f"/proc/{self.pid}/task")]
        except OSError:
            return []
        for tid in self._files.keys() - set(tids):
            os.close(self._files.pop(tid))
        samples = []
        before, self._cpu = self._cpu, {}
        for tid in tids:
            cpu_ns = self._cpu_ns(tid)
            if cpu_ns is None:
                continue
            self._cpu[tid] = cpu_ns
            runs = before.get(tid) != cpu_ns and self._runs(tid)
            samples.append(ThreadSample(tid, cpu_ns, runs, self._goids.of(tid) if runs else NO_GOROUTINE))
        return samples

    def goroutines(self) -> Iterator[Listed]:
        """Yield all goroutines that are there, as far as can be read."""
        try:
            for goroutine in self._goids.runtime.iter_goroutines():
                yield Listed(goroutine.goid, goroutine.status is GoStatus.WAITING, self._site(goroutine.gopc))
        except GoAbiError:
            return

    def close(self) -> None:
        """Give up all descriptors."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
        self._memory.close()
        self._binary.close()

    def _cpu_ns(self, tid: int) -> int | None:
        fd = self._files.get(tid)
        try:
            if fd is None:
                fd = os.open(f"/proc/{self.pid}/task/{tid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
                if len(self._files) < _KEPT_FILES:
                    self._files[tid] = fd
            text = os.pread(fd, _SCHEDSTAT_BYTES, 0)
        except OSError:
            return None  # it has just ended
        if tid not in self._files:
            os.close(fd)
        return int(text.split(None, 1)[0])

    def _runs(self, tid: int) -> bool:
        try:
            with open(f"/proc/{self.pid}/task/{tid}/stat", "rb") as file:
                return file.read().rpartition(b") ")[2][:1] == b"R"
        except OSError:
            return False

    def _site(self, gopc: int) -> str:
        site = self._sites.get(gopc)
        if site is None:
            site = self._sites[gopc] = self._name_site(gopc)
        return site

    def _name_site(self, gopc: int) -> str:
        try:
            frames = self._goids.runtime.frames_at(gopc, is_return_address=True) if gopc else ()
        except GoAbiError:
            frames = ()
        return format_site(frames[0].function, frames[0].file, frames[0].line) if frames else _START
