"""Syscalls whose buffers are remote: the kernel gets other buffers, and what it does to them is carried over.

The filter of `remote_filter` stops a thread before such a call. What the call reads is copied into a buffer, the
registers that lead to remote memory are made to lead there, and where the call returns, what it filled is copied back
and the registers are restored. The syscall table says which arguments are buffers, and how long.

Where they are named by vectors and messages (readv, sendmsg), the kernel gets a copy of those (`remote_vectors`).

A call that is interrupted and restarted by the kernel begins anew, with its own registers.

A futex on remote memory (`FUTEX_WAIT`) cannot sleep on a word that is elsewhere: if the word has the value that the
caller expects, it returns after a moment as if woken, which every user of futexes must expect; `FUTEX_WAKE` finds
nobody asleep. So locks that sleep on futexes work between processes, by looking again and again.

Thread rules: the tracer's thread.
Source: seccomp(2), ptrace(2), futex(2).
"""

import contextlib
import errno
from collections.abc import Sequence
from typing import NamedTuple

from stepping.errors import MemoryFaultError
from stepping.registers import Registers
from stepping.remote_memory import RemoteMap
from stepping.remote_vectors import INDIRECT, NoRoomError, Room, Staged, stage, touches
from stepping.syscalls import Sysno, by_number
from stepping.syscalls.marshal import Args, BadArgumentError, Gathered, gather
from stepping.syscalls.model import RESULT, ArgKind, Syscall
from stepping.tracee import Resume, Tracee

#: How many bytes of the process's memory the buffers need.
BUFFERS_BYTES = 1 << 20

_SLOTS = 16
_SLOT_BYTES = BUFFERS_BYTES // _SLOTS
_U64 = 0xFFFF_FFFF_FFFF_FFFF
_FUTEX_COMMAND = 0x7F
_FUTEX_WAIT, _FUTEX_WAKE, _FUTEX_WAIT_BITSET, _FUTEX_WAKE_BITSET = 0, 1, 9, 10


_STRINGS = frozenset({ArgKind.PATH, ArgKind.STR})
_BUFFERS = _STRINGS | {ArgKind.IN, ArgKind.OUT, ArgKind.INOUT, ArgKind.REQUEST_ARG}


class _Pending(NamedTuple):
    """A call that is under way: its own registers by index, and where the buffers for some of them are."""

    row: Syscall
    call: Gathered
    originals: tuple[int, ...]
    buffers: dict[int, int]
    slot: int
    staged: Sequence[Staged] = ()


class RemoteCalls:
    """Carries the calls of one process whose buffers are in *remote*. buffers: `BUFFERS_BYTES` of it for our use."""

    def __init__(self, remote: RemoteMap, buffers: int) -> None:
        self._remote = remote
        self._buffers = buffers
        self._free = list(range(_SLOTS))
        self._pending: dict[int, _Pending] = {}
        self._rows = by_number("amd64")

    def enter(self, tracee: Tracee) -> bool:
        """Deal with a thread in its seccomp-stop and resume it; False: it waits on a futex, and shall a moment.

        Raises:
            TraceeGoneError: it was killed. Whatever the store raises.
        """
        registers = tracee.read_registers()
        row = self._rows.get(Sysno(registers["orig_rax"]))
        if row is None:
            tracee.resume()
            return True
        args = tuple(registers[name] for name in registers.layout.args)
        if row.name == "futex" and self._remote.touches(args[0], 4):
            return self._futex(tracee, registers, args)
        a0, a1, a2, a3, a4, a5 = args
        if any(arg.kind in INDIRECT for arg in row.args):
            self._stage(tracee, registers, row, (a0, a1, a2, a3, a4, a5))
            return True
        try:
            call = gather(row, (a0, a1, a2, a3, a4, a5), self._remote)
        except BadArgumentError as error:
            _skip(tracee, registers, -error.errno)
            return True
        sizes = {
            index: max(len(call.ins.get(index, b"")) + (arg.kind in _STRINGS), call.outs.get(index, 0), 1)
            for index, arg in enumerate(row.args)
            if arg.kind in _BUFFERS and (index in call.ins or index in call.outs)
        }
        wanted = {index: size for index, size in sizes.items() if self._remote.touches(args[index], size)}
        if not wanted:
            tracee.resume()
            return True
        self._redirect(tracee, registers, _Pending(row, call, args, {}, -1), wanted)
        return True

    def leave(self, tracee: Tracee) -> None:
        """Deal with a thread in its syscall-exit-stop after a redirected call; the caller resumes it.

        Raises:
            TraceeGoneError: it was killed. Whatever the store raises.
        """
        pending = self._pending.pop(tracee.tid, None)
        if pending is None:
            return
        registers = tracee.read_registers()
        for index, address in pending.buffers.items():
            size = _filled_bytes(pending, index, registers.result)
            if size:
                data = self._remote.memory.read(address, size)
                if data != pending.call.ins.get(index):
                    self._remote.write(pending.originals[index], data)
            registers[registers.layout.args[index]] = pending.originals[index]
        for staged in pending.staged:
            with contextlib.suppress(MemoryFaultError):
                staged.finish(self._remote, registers.result)
            registers[registers.layout.args[staged.argument]] = pending.originals[staged.argument]
        tracee.write_registers(registers)
        self._free.append(pending.slot)

    def forget(self, tid: int) -> None:
        """Hear that thread *tid* is gone."""
        pending = self._pending.pop(tid, None)
        if pending is not None:
            self._free.append(pending.slot)

    def _redirect(
        self, tracee: Tracee, registers: Registers, pending: _Pending, wanted: dict[int, int]
    ) -> None:
        """Give the call buffers of the process's own; a longer transfer becomes a short one, as it may."""
        if not self._free:
            _skip(tracee, registers, -errno.EAGAIN)
            return
        slot = self._free.pop()
        at = self._buffers + slot * _SLOT_BYTES
        room = _SLOT_BYTES // len(wanted) & -64
        buffers = {}
        for index, size in wanted.items():
            if size > room and not self._shorten(registers, pending, index, room):
                self._free.append(slot)
                _skip(tracee, registers, -errno.EFAULT)
                return
            buffers[index] = at
            self._remote.memory.write(at, pending.call.ins.get(index, b"").ljust(size, b"\0")[:room])
            registers[registers.layout.args[index]] = at
            at += room
        tracee.write_registers(registers)
        self._pending[tracee.tid] = pending._replace(buffers=buffers, slot=slot)
        tracee.resume(Resume.SYSCALL)

    def _stage(self, tracee: Tracee, registers: Registers, row: Syscall, args: Args) -> None:
        """Deal with a call that names its buffers by vectors or messages."""
        try:
            remote = [
                index
                for index, arg in enumerate(row.args)
                if arg.kind in INDIRECT and args[index] and touches(row, index, args, self._remote)
            ]
        except MemoryFaultError:
            remote = []  # the kernel says so, too
        if not remote:
            tracee.resume()
            return
        if not self._free:
            _skip(tracee, registers, -errno.EAGAIN)
            return
        slot = self._free.pop()
        room = Room(self._buffers + slot * _SLOT_BYTES, _SLOT_BYTES)
        try:
            staged = [stage(row, index, args, self._remote, room) for index in remote]
        except (NoRoomError, MemoryFaultError) as error:
            self._free.append(slot)
            _skip(tracee, registers, -(errno.ENOBUFS if isinstance(error, NoRoomError) else errno.EFAULT))
            return
        for one in staged:
            registers[registers.layout.args[one.argument]] = one.address
        tracee.write_registers(registers)
        self._pending[tracee.tid] = _Pending(row, Gathered(args, {}, {}, {}), args, {}, slot, staged)
        tracee.resume(Resume.SYSCALL)

    def _shorten(self, registers: Registers, pending: _Pending, index: int, room: int) -> bool:
        """Cut the register that says how long the buffer is, if the call may do less than it was asked for."""
        row = pending.row
        length = row.args[index].length
        if (
            length is None
            or length.arg is None
            or length.indirect
            or row.args[length.arg].kind is not ArgKind.SIZE
        ):
            return False
        registers[registers.layout.args[length.arg]] = room
        return row.result.value == "bytes"

    def _futex(self, tracee: Tracee, registers: Registers, args: tuple[int, ...]) -> bool:
        command = args[1] & _FUTEX_COMMAND
        if command in (_FUTEX_WAKE, _FUTEX_WAKE_BITSET):
            _skip(tracee, registers, 0)
            return True
        if command not in (_FUTEX_WAIT, _FUTEX_WAIT_BITSET):
            _skip(tracee, registers, -errno.ENOSYS)
            return True
        value = int.from_bytes(self._remote.read(args[0], 4), "little")
        if value != args[2] & 0xFFFFFFFF:
            _skip(tracee, registers, -errno.EAGAIN)
            return True
        _set_result(tracee, registers, 0)
        return False


def _skip(tracee: Tracee, registers: Registers, result: int) -> None:
    """Let the thread's call return *result* without being made."""
    _set_result(tracee, registers, result)
    tracee.resume()


def _set_result(tracee: Tracee, registers: Registers, result: int) -> None:
    registers["orig_rax"] = _U64
    registers[registers.layout.result] = result
    tracee.write_registers(registers)


def _filled_bytes(pending: _Pending, index: int, result: int) -> int:
    """Return how much of the buffer of argument *index* the call has filled, given its *result*."""
    room = min(pending.call.outs.get(index, 0), _SLOT_BYTES)
    arg = pending.row.args[index]
    if not room or (result < 0 and arg.kind is ArgKind.OUT):
        return 0
    if arg.valid is not None and arg.valid.arg == RESULT:
        return min(room, arg.valid.of(result))
    return room
