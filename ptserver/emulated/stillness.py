"""Whether the processes that descend from this one, and threads that make calls for a program, have come to rest.

Where a run is to be repeatable, the program goes on only while nothing else does: all that its calls set going has
ended by then, or sleeps until the program does more. Two looks tell: a thread that slept in both and was not
switched in between slept all the time, and all such times have the moment between the looks in common.

A process that computes for longer than `_PATIENCE_SECONDS` is not waited for any more.

A look opens files while a call of the program's may be making a descriptor, so an `Onlooker` takes it.

Source: proc(5): /proc/PID/task/TID/stat (state, processor times), /proc/PID/task/TID/schedstat (time run, time
waited, times run), /proc/PID/task/TID/syscall, /proc/loadavg (the youngest process's number).
Thread rules: one thread; what an `Onlooker` is asked to do runs on its thread while that one waits.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from ptserver.emulated.onlooker import Onlooker
from ptserver.machine import native_arch
from stepping.syscalls import SYSCALLS

#: How much processor time a process may take before the program goes on without it, and how long it may be in
#: another state that is no sleep (that of a disk, say).
_PATIENCE_SECONDS, _MOST_SECONDS = 5.0, 30.0
#: How long sleepers may go on to wake now and then, of their own accord, before that counts as rest.
_RESTLESS_SECONDS = 2.0
_LOOK_SECONDS = 0.0005
_TICKS = os.sysconf("SC_CLK_TCK")
_ASLEEP, _GONE = frozenset(b"STtI"), frozenset(b"ZXx")

#: What sleeps until somebody else does something; and where the time limit of others is, by how "none" is said.
_ENDLESS = frozenset(
    "read readv write writev wait4 waitid flock fcntl open openat pause rt_sigsuspend splice tee futex".split()
)
_LIMIT_ADDRESSES: Mapping[str, int] = {
    "futex": 3,
    "ppoll": 2,
    "pselect6": 4,
    "select": 4,
    "epoll_pwait2": 3,
    "rt_sigtimedwait": 2,
}
_LIMIT_MILLISECONDS: Mapping[str, int] = {"poll": 2, "epoll_wait": 3, "epoll_pwait": 3}
_ON_DESCRIPTORS = frozenset("read readv write writev".split())

#: What a look tells of each thread: (thread, times run).
_Look = list[tuple[int, bytes]]


class Stillness:
    """Watches the descendants that it was told of, and theirs."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._tireless: set[int] = set()
        self._youngest = b""
        self._is_descendant = False
        self._onlooker = Onlooker()

    def __bool__(self) -> bool:
        """Whether there are descendants."""
        return bool(self._known)

    def born(self, pid: int) -> None:
        """Take note of a new child."""
        self._known.add(pid)

    def after_fork(self) -> None:
        """Be a descendant, which has none itself."""
        self._known.clear()
        self._is_descendant = True
        self._onlooker.after_fork()

    def close(self) -> None:
        """Look no more."""
        self._onlooker.close()

    def wait(self, workers: Callable[[], Iterable[int]]) -> None:
        """Wait until all descendants, and those of this process's threads *workers* that still work, are at rest."""
        self._onlooker.ask(lambda: self._wait(workers))

    def _wait(self, workers: Callable[[], Iterable[int]]) -> None:
        began = time.monotonic()
        ticks: dict[int, int] = {}
        before: _Look | None = None
        while True:
            busy: set[int] = set()
            now = self._look(busy)
            now += self._look_at(workers(), busy)
            waited = time.monotonic() - began
            if not busy and (now == before or waited > _RESTLESS_SECONDS):
                return
            before = None if busy else now
            if busy:
                self._be_patient(busy, ticks, waited)
                if waited > _MOST_SECONDS:
                    return
                self.pause()

    def pause(self) -> None:
        """Let others run for a moment. Who might be watched like this itself is not to look asleep."""
        if self._is_descendant:
            os.sched_yield()
        else:
            time.sleep(_LOOK_SECONDS)

    def may_act_alone(self) -> bool:
        """Whether one of the descendants, which are at rest, may do something without anybody else's doing."""
        return self._onlooker.ask(
            lambda: any(_wakes_alone(pid, tid) for pid in self._known for tid in _threads(pid))
        )

    def _look(self, busy: set[int]) -> _Look:
        """Return what there is to see of all descendants; add those to *busy* of which one is not at rest."""
        if not self._known:
            return []
        self._find_new()
        found: _Look = []
        for pid in sorted(self._known):
            lives = False
            for tid in _threads(pid):
                state, runs = _read_state(pid, tid)
                if state in _GONE:
                    continue
                lives = True
                found.append((tid, runs))
                if state not in _ASLEEP and pid not in self._tireless:
                    busy.add(pid)
            if not lives:
                self._known.discard(pid)
                self._tireless.discard(pid)
        return found

    def _find_new(self) -> None:
        """Add the children of those that are known, if there are new processes at all."""
        youngest = _read(b"/proc/loadavg").rpartition(b" ")[2]
        if youngest == self._youngest:
            return
        self._youngest = youngest
        parents = {int(name): _parent(name) for name in os.listdir("/proc") if name.isdigit()}
        found = set(self._known)
        while found:
            found = {pid for pid, parent in parents.items() if parent in found} - self._known
            self._known |= found

    def _look_at(self, workers: Iterable[int], busy: set[int]) -> _Look:
        """As `_look`, for threads of this process; one that waits for the interpreter is not at rest."""
        pid = os.getpid()
        found: _Look = []
        for tid in workers:
            state, runs = _read_state(pid, tid)
            call, _ = _sleeping_in(pid, tid)
            if state not in _ASLEEP or call in _NOT_IN_ITS_CALL:
                busy.add(pid)
            found.append((tid, runs))
        return found

    def _be_patient(self, busy: set[int], ticks: dict[int, int], waited: float) -> None:
        """Give up on who has computed for too long."""
        for pid in busy - {os.getpid()}:
            used = _ticks(pid)
            if used - ticks.setdefault(pid, used) > _PATIENCE_SECONDS * _TICKS or waited > _MOST_SECONDS:
                self._tireless.add(pid)


def _threads(pid: int) -> list[int]:
    try:
        return sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    except OSError:
        return []


def _read(path: bytes | str) -> bytes:
    """Return a file's content, or nothing if there is none, or no right to it."""
    with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
        return file.read()
    return b""


def _read_state(pid: int, tid: int) -> tuple[int, bytes]:
    """Return a thread's state and how often it has run."""
    fields = _read(f"/proc/{pid}/task/{tid}/stat").rpartition(b") ")[2]
    runs = _read(f"/proc/{pid}/task/{tid}/schedstat").rpartition(b" ")[2]
    return (fields[0], runs) if fields else (b"X"[0], b"")


def _parent(name: str) -> int:
    fields = _read(f"/proc/{name}/stat").rpartition(b") ")[2].split(b" ", 2)
    return int(fields[1]) if len(fields) > 1 else 0


def _ticks(pid: int) -> int:
    fields = _read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()
    return int(fields[11]) + int(fields[12]) if fields else 0


def _sleeping_in(pid: int, tid: int) -> tuple[bytes, list[int]]:
    """Return the number of the call that a thread sleeps in and its arguments; no number if nobody may know."""
    number, *words = _read(f"/proc/{pid}/task/{tid}/syscall").split()[:7] or [b""]
    return number, [int(word, 16) for word in words]


def _names() -> Iterator[tuple[bytes, str]]:
    arch = native_arch()
    for name in {*_ENDLESS, *_LIMIT_ADDRESSES, *_LIMIT_MILLISECONDS}:
        if (number := SYSCALLS[name].numbers.get(arch)) is not None:
            yield b"%d" % number, name


_NAMES = dict(_names())
#: Where a thread of this process is while it waits for the interpreter.
_NOT_IN_ITS_CALL = {b"", b"running", b"-1"} | {number for number, name in _NAMES.items() if name == "futex"}


def _wakes_alone(pid: int, tid: int) -> bool:
    if _read_state(pid, tid)[0] in _GONE:
        return False
    number, args = _sleeping_in(pid, tid)
    if (name := _NAMES.get(number)) is None:
        return True
    if (index := _LIMIT_ADDRESSES.get(name)) is not None:
        return args[index] != 0
    if (index := _LIMIT_MILLISECONDS.get(name)) is not None:
        return not args[index] >> 31 & 1
    if name in _ON_DESCRIPTORS:
        try:
            return os.readlink(f"/proc/{pid}/fd/{args[0]}").startswith("socket:")  # of a network, perhaps
        except OSError:
            return True
    return False
