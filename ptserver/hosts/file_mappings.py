"""Mappings of files (mmap(2)) of a program whose files are a server's.

A thread that maps a file is stopped at its call. The server keeps a descriptor of the file, the part that is mapped
is fetched into a memfd (`ptserver.hosts.mapped_file`), and the memfd is put at the very number that the call names,
where the program's own process has nothing of worth. Then the thread makes its call itself, with its own registers.

Between that and the thread's making it, another thread may put another file at that number only if the program
closes a descriptor that it is mapping: then it maps the one or the other, as natively.

What keeps a shared mapping right:

    a call changes the file       the change is made here too, once the server has made it
    a call may read the file      what the program has changed in memory is written back first
    msync, munmap, exit           likewise

Not seen: changes that other processes make to a file while it is mapped.

Each piece of work is a generator, which yields calls that the server is to make and is sent their results, so that
the host's loop never waits.

Not trusted: the server: its answers fill memfds and nothing else; the program: its numbers are its own.
Thread rules: the host's thread.
"""

import contextlib
import errno
import mmap
import os
import resource
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial

from ptserver.hosts.file_calls import (
    SOME_ADDRESS,
    ZERO_DEVICE,
    Ask,
    Asked,
    Work,
    ask_chunk,
    ask_close,
    ask_facts,
    facts_of,
    refusal_to_map,
)
from ptserver.hosts.mapped_file import CHUNK_BYTES, FileFacts, MappedFile
from ptserver.hosts.pending_call import PendingCall, Process
from ptserver.hosts.policy import EXECS, MAPPING_CALLS
from ptserver.messages import Result
from stepping.errors import NotificationGoneError, SteppingError
from stepping.listener import Listener
from stepping.maps import read_maps
from stepping.syscalls import ArgKind, Syscall
from stepping.syscalls.marshal import Args

_MAP_TYPE, _MAP_PRIVATE = 0x0F, 0x02
_SEEK_CUR, _F_GETFL = 1, 3
#: How long fetching may take before the user hears of it.
_QUIET_SECONDS = 1.0
#: Chunks that are fetched at the same time.
_WINDOW = 16
#: So much may be kept of files of which nobody knows whether they are still mapped.
_MANY_FILES, _MANY_BYTES = 64, 256 << 20

#: Where the offset of calls that write at one is.
_WRITES_AT = {"pwrite64": 3, "pwritev": 3, "pwritev2": 3}
_WRITES = frozenset({"write", "writev"})
_SIZES = frozenset({"ftruncate", "fallocate"})
_CHANGES_NOTHING = frozenset(
    "read pread64 readv preadv preadv2 lseek fstat newfstatat statx fsync fdatasync sync_file_range flock fcntl dup "
    "fadvise64 readahead getdents64 epoll_ctl fchmod fchown fsetxattr fgetxattr flistxattr fremovexattr "
    "fstatfs".split()
)
#: Stands for a file of which nothing is known: no inode has the number 0.
_UNKNOWN = (0, 0)
_CLOSES = frozenset({"close", "dup2", "dup3", "close_range"})
_CHANGES_BY_NAME = frozenset({"open", "openat", "openat2", "creat", "truncate"})


class FileMappings:
    """See the module's text.

    ask, proceed, answer: what the host does with calls; say: tells the user a line; unmaps: hears before a process
    gives memory up, or puts something else there.
    """

    def __init__(
        self,
        listener: Listener,
        ask: Ask,
        proceed: Callable[[PendingCall], None],
        answer: Callable[[PendingCall, int, int, dict[int, bytes]], None],
        say: Callable[[str], None],
    ) -> None:
        self._listener = listener
        self._ask = ask
        self._proceed = proceed
        self._answer = answer
        self._say = say
        self.unmaps: Callable[[], None] = lambda: None
        self._files: dict[tuple[int, int], MappedFile] = {}
        self._known: dict[tuple[int, int], tuple[int, int] | None] = {}
        self._indexes: dict[str, list[int]] = {}
        self._installed: set[tuple[int, int]] = set()
        self._null = -1
        self._works = 0
        self._enough = (_MANY_FILES, _MANY_BYTES)
        self._watches = self._has_written = False

    @property
    def is_working(self) -> bool:
        """Whether some work is under way."""
        return self._works > 0

    def serve(self, call: PendingCall) -> bool:
        """Take *call* if it is about a mapping or a file that is mapped; return whether that is so."""
        row = call.row
        assert row is not None
        name = row.name
        if name == "mmap" or name in MAPPING_CALLS:
            self.unmaps()
        if name == "mmap":
            self._run(self._map(call))
        elif name in MAPPING_CALLS:
            self._run(self._proceed_written(call))
        else:
            if self._installed and name == "close":
                self._uninstall(call)
            if not self._watches:
                return False
            if name in EXECS and self._has_written:
                self._run(self._write_back(self._files.values()))  # which goes first: the program may read it
                return False
            if name not in _CLOSES and name not in _CHANGES_BY_NAME and not self._may_concern(row, call):
                return False
            self._run(self._around(call, row))
        return True

    def _may_concern(self, row: Syscall, call: PendingCall) -> bool:
        """Whether the call names a descriptor of a file that is mapped, or one that is not known."""
        pid = call.process.pid
        for fd in self._descriptors(row, call):
            key = self._known.get((pid, fd), _UNKNOWN)
            if key is not None and (key == _UNKNOWN or key in self._files):
                return True
        return False

    def map_own(self, call: PendingCall, number: int, fd: int) -> None:
        """Let the thread map a file of this machine, which the host has at *fd* and the program calls *number*."""
        try:
            self._install(call, number, fd)
        except NotificationGoneError:
            return  # the thread begins anew
        except OSError as error:
            self._answer(call, 0, error.errno or errno.ENOMEM, {})
            return
        self._proceed(call)

    def finish(self) -> None:
        """Begin to write back what the program, which is gone, has changed in memory."""
        if self._has_written:
            self._run(self._write_back(self._files.values()))

    def forget(self, process: Process) -> None:
        """Hear that a process is gone: with it went its descriptors of the server, and what it did not write back."""
        for key, file in list(self._files.items()):
            if file.process is process and not file.users:
                del self._files[key]
                file.close()
        for places in (self._known.keys(), self._installed):
            for place in [place for place in places if place[0] == process.pid]:
                self._known.pop(place, None)
                self._installed.discard(place)

    def close(self) -> None:
        """Give up everything here."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._null >= 0:
            os.close(self._null)
            self._null = -1

    def _run(self, work: Work) -> None:
        self._works += 1
        self._advance(work, None)

    def _advance(self, work: Work, results: list[Result] | None) -> None:
        try:
            asked = next(work) if results is None else work.send(results)
        except StopIteration:
            self._works -= 1
            return
        got: dict[int, Result] = {}

        def take(index: int, result: Result) -> None:
            got[index] = result
            if len(got) == len(asked):
                self._advance(work, [got[index] for index in range(len(asked))])

        for index, each in enumerate(asked):
            self._ask(each, partial(take, index))

    # mmap.

    def _map(self, call: PendingCall) -> Work:
        _, length, prot, flags, fd, offset = call.args
        fd &= 0xFFFFFFFF
        process = call.process
        kept, told, status = yield [
            Asked(process, "mmap", call.args, {}, {}, call),
            ask_facts(process, fd),
            Asked(process, "fcntl", (fd, _F_GETFL, 0, 0, 0, 0), {}, {}),
        ]
        facts = facts_of(told)
        if kept.errno or facts is None or status.errno:
            self._answer(call, 0, kept.errno or told.errno or status.errno or errno.ENODEV, {})
            return
        is_private = flags & _MAP_TYPE == _MAP_PRIVATE
        writes = not is_private and bool(prot & mmap.PROT_WRITE)
        failure = refusal_to_map(facts, status.value, writes)
        try:
            if failure:
                pass
            elif facts.rdev == ZERO_DEVICE:
                self._install_zero(call, fd)
            else:
                file = yield from self._find(call, facts)
                file.users += 1
                try:
                    yield from self._fetch(file, call, kept.value, offset, length, writes)
                    grows = status.value & os.O_ACCMODE == os.O_RDWR and offset + length > facts.size
                    file.is_watched = file.is_watched or not is_private or grows
                    self._watches = self._watches or file.is_watched
                    if writes or file.is_written:
                        file.begin_writing()
                        self._has_written = True
                    if self._watches:  # else nobody hears of it when the number is closed
                        self._known[process.pid, fd] = facts.key
                    self._install(call, fd, file.fd_to_map(writable=writes))
                finally:
                    file.users -= 1
        except NotificationGoneError:
            pass  # the thread begins anew, and finds everything here
        except OSError as error:
            failure = error.errno or errno.ENOMEM
        if failure:
            self._answer(call, 0, failure, {})
        else:
            self._proceed(call)
        if not any(file.handle == kept.value and file.process is process for file in self._files.values()):
            yield [ask_close(process, kept.value)]

    def _find(
        self, call: PendingCall, facts: FileFacts
    ) -> Generator[Sequence[Asked], list[Result], MappedFile]:
        """Return the file, of which as much is right as is here."""
        file = self._files.get(facts.key)
        if file is None:
            closes = self._forget_unmapped(call.process.pid)
            if closes:
                yield closes
            file = self._files.get(facts.key)  # another thread may map it as well
            if file is None:
                file = self._files[facts.key] = MappedFile(facts)
        elif file.facts != facts:
            yield from self._write_back([file])
            yield from self._refetch(file, facts)
        return file

    def _fetch(
        self, file: MappedFile, call: PendingCall, handle: int, offset: int, length: int, writes: bool
    ) -> Work:
        """Bring that range of the file here. Raises: OSError, if that cannot be done."""
        old, owner = file.handle, file.process
        if owner is None or writes:
            file.handle, file.process = handle, call.process
        missing = file.missing(offset, length)
        begun, is_told = time.monotonic(), False
        for start in range(0, len(missing), _WINDOW):
            window = missing[start : start + _WINDOW]
            results = yield [ask_chunk(call.process, handle, number) for number in window]
            for number, result in zip(window, results, strict=True):
                if result.errno:
                    raise OSError(result.errno, "the server cannot read the file")
                file.fill(number, result.outs.get(1, b""))
            if not is_told and time.monotonic() > begun + _QUIET_SECONDS:
                is_told = True
                megabytes = [count * CHUNK_BYTES >> 20 for count in (start + len(window), len(missing))]
                self._say(
                    f"fetching a file that the program maps: {megabytes[0]} of {megabytes[1]} MB so far"
                )
        if owner is not None and file.handle == handle:
            yield [ask_close(owner, old)]

    def _install(self, call: PendingCall, number: int, fd: int) -> None:
        """Put *fd* at that number of the program's own process."""
        try:
            self._listener.put_fd(call.notification_id, fd, number)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            # The program's limit is the server's business, this process's own only in the way.
            hard = resource.prlimit(call.process.pid, resource.RLIMIT_NOFILE)[1]
            resource.prlimit(call.process.pid, resource.RLIMIT_NOFILE, (hard, hard))
            self._listener.put_fd(call.notification_id, fd, number)
        self._installed.add((call.process.pid, number))

    def _install_zero(self, call: PendingCall, number: int) -> None:
        zero = os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC)
        try:
            self._install(call, number, zero)
        finally:
            os.close(zero)

    def _uninstall(self, call: PendingCall) -> None:
        """Let go of the memfd at a number that the program closes."""
        place = call.process.pid, call.args[0] & 0xFFFFFFFF
        if place in self._installed:
            if self._null < 0:
                self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            with contextlib.suppress(NotificationGoneError, OSError):
                self._listener.put_fd(call.notification_id, self._null, place[1])
                self._installed.discard(place)

    def _forget_unmapped(self, pid: int) -> list[Asked]:
        """Give up files that no process maps any more, once there are many; return what closes them at the server."""
        total = sum(file.size_bytes for file in self._files.values())
        if len(self._files) < self._enough[0] and total < self._enough[1]:
            return []
        try:
            pids = {pid, *(place[0] for place in self._installed)}
            mapped = " ".join({vma.path for each in pids for vma in read_maps(each)})
        except (OSError, SteppingError):
            return []
        closes = []
        for key, file in list(self._files.items()):
            if not file.users and not file.is_written and file.name not in mapped:
                del self._files[key]
                file.close()
                if file.process is not None:
                    closes.append(ask_close(file.process, file.handle))
        total = sum(file.size_bytes for file in self._files.values())
        self._enough = max(_MANY_FILES, 2 * len(self._files)), max(_MANY_BYTES, 2 * total)
        return closes

    # Files that are mapped.

    def _proceed_written(self, call: PendingCall) -> Work:
        """Let a thread unmap or synchronise what it has written, once that is at the server."""
        if self._has_written:
            yield from self._write_back(self._files.values())
        self._proceed(call)

    def _write_back(self, files: Iterable[MappedFile]) -> Work:
        for file in list(files):
            if not file.is_written:
                continue
            changes = list(file.take_changes())
            process = file.process
            assert process is not None
            asked = [
                Asked(process, "pwrite64", (file.handle, SOME_ADDRESS, len(data), at, 0, 0), {1: data}, {})
                for at, data in changes
            ]
            if not asked:
                continue
            results: list[Result] = yield [*asked, ask_facts(process, file.handle)]
            failures = {result.errno for result in results[:-1]} - {0}
            if failures:
                self._say(f"what the program wrote to a mapped file is lost: {os.strerror(min(failures))}")
            facts = facts_of(results[-1])
            if facts is not None:
                file.take_own_change(facts)

    def _around(self, call: PendingCall, row: Syscall) -> Work:
        """Have the server make a call that may be about a mapped file, with what has to come before and after."""
        process, name = call.process, row.name
        descriptors = self._descriptors(row, call)
        unknown = [fd for fd in descriptors if (process.pid, fd) not in self._known]
        if unknown:
            told = yield [ask_facts(process, fd) for fd in unknown]
            for fd, each in zip(unknown, told, strict=True):
                facts = facts_of(each)
                self._known[process.pid, fd] = None if facts is None else facts.key
        files = {}
        for fd in descriptors:
            key = self._known.get((process.pid, fd))
            file = self._files.get(key) if key is not None else None
            if file is not None and file.is_watched:
                files[fd] = file
        if self._has_written and files:
            yield from self._write_back(files.values())
        if name in _CLOSES:
            self._close_numbers(process, name, call.args)
        args, ins, outs, *_ = call.gathered
        extra = [ask_facts(process, fd) for fd in files] if name not in _CHANGES_NOTHING | _CLOSES else []
        if extra and (name in _WRITES or (name in _WRITES_AT and args[_WRITES_AT[name]] >> 63)):
            extra.append(Asked(process, "lseek", (args[0], 0, _SEEK_CUR, 0, 0, 0), {}, {}))
        made = yield [Asked(process, name, args, ins, outs, call), *extra]
        result, after = made[0], made[1:]
        if extra and not result.errno:
            for file, each in zip(files.values(), after, strict=False):
                changed = facts_of(each)
                if changed is not None and not self._repeat(file, name, call, result, changed, after[-1]):
                    yield from self._refetch(file, changed)
        elif name in _CHANGES_BY_NAME and not result.errno:
            yield from self._check_sizes()
        self._answer(call, result.value, result.errno, result.outs)

    def _repeat(
        self, file: MappedFile, name: str, call: PendingCall, result: Result, facts: FileFacts, last: Result
    ) -> bool:
        """Make the change of a call that the server has made here too; return whether that was possible."""
        if name in _SIZES and (name == "ftruncate" or not call.args[1]):
            file.take_own_change(facts)
            return True
        if name not in _WRITES and name not in _WRITES_AT:
            return False
        offset = call.args[_WRITES_AT[name]] if name in _WRITES_AT else 1 << 63
        if offset >> 63:
            offset = last.value - result.value
        with contextlib.suppress(OSError):
            file.write(offset, call.gathered.ins.get(1, b"")[: result.value])
            file.take_own_change(facts)
            return True
        return False

    def _refetch(self, file: MappedFile, facts: FileFacts) -> Work:
        """Fetch what is here of a file anew."""
        had = file.present()
        file.take_facts(facts)
        process = file.process
        assert process is not None
        for start in range(0, len(had), _WINDOW):
            window = had[start : start + _WINDOW]
            results = yield [ask_chunk(process, file.handle, number) for number in window]
            for number, result in zip(window, results, strict=True):
                if not result.errno:
                    with contextlib.suppress(OSError):
                        file.fill(number, result.outs.get(1, b""))
        if file.is_written:
            file.begin_writing()

    def _check_sizes(self) -> Work:
        """See whether a file that was opened or truncated by name is one of those that are mapped."""
        files = [file for file in self._files.values() if file.is_watched]
        told = yield [ask_facts(file.process, file.handle) for file in files if file.process is not None]
        for file, each in zip(files, told, strict=True):
            facts = facts_of(each)
            if facts is not None and facts.size != file.facts.size:
                yield from self._refetch(file, facts)

    def _close_numbers(self, process: Process, name: str, args: Args) -> None:
        first = last = args[name != "close"] & 0xFFFFFFFF
        if name == "close_range":
            first, last = args[0] & 0xFFFFFFFF, args[1] & 0xFFFFFFFF
        for place in [
            place for place in self._known if place[0] == process.pid and first <= place[1] <= last
        ]:
            del self._known[place]

    def _descriptors(self, row: Syscall, call: PendingCall) -> list[int]:
        indexes = self._indexes.get(row.name)
        if indexes is None:
            indexes = [index for index, arg in enumerate(row.args) if arg.kind is ArgKind.FD]
            self._indexes[row.name] = indexes
        return [call.args[index] & 0xFFFFFFFF for index in indexes]
