"""What a program's fork asks for: whether a shadow can follow, and what is to be written into the program's memory.

Not trusted: the program. Thread rules: none.
"""

import contextlib
import errno
import struct

from ptserver.hosts.pending_call import PendingCall
from stepping.clone3 import decode_clone3
from stepping.clone_flags import (
    CLONE_CLEAR_SIGHAND,
    CLONE_FILES,
    CLONE_FS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_PARENT,
    CLONE_PARENT_SETTID,
    CLONE_PIDFD,
    CLONE_THREAD,
)
from stepping.errors import MemoryFaultError
from stepping.syscalls.marshal import Args, BadArgumentError

#: Another numbering of processes; descriptors or a folder shared with another process; another parent: no shadow has
#: that.
_REFUSED = CLONE_FS | CLONE_FILES | CLONE_NEWPID | CLONE_PARENT
#: Of clone3: threads, whose arguments the kernel would read again; and what no clone(2) can do. Libraries do without.
_UNKNOWN = CLONE_THREAD | CLONE_CLEAR_SIGHAND
_PARENT_TID = 2
_U32 = struct.Struct("=I")


def prepare_fork(call: PendingCall) -> int:
    """Ask for a descriptor of the new process, too, if *call* wants it; return why the call is refused, or 0."""
    name = call.row.name if call.row is not None else ""
    outs = call.gathered.outs
    if name == "clone":
        flags = call.args[0]
        if flags & (_REFUSED | CLONE_NEWTIME):  # for clone, the latter is part of a signal's number
            return errno.EINVAL
        if flags & CLONE_PIDFD and call.args[_PARENT_TID]:
            outs[_PARENT_TID] = _U32.size
    elif name == "clone3":
        try:
            asked = decode_clone3(call.gathered.ins.get(0, b""))
        except BadArgumentError as error:
            return error.errno
        if asked.flags & _UNKNOWN:
            return errno.ENOSYS
        if asked.flags & _REFUSED:
            return errno.EINVAL
        if asked.set_tid_size:
            return errno.EPERM
        if asked.flags & CLONE_PIDFD:
            outs[0] = _U32.size  # the struct says where
    return 0


def write_new_ids(call: PendingCall, clone: Args, shadow: int, outs: dict[int, bytes]) -> None:
    """Write what a fork tells by pointers, before either process can look.

    clone: the arguments of the clone(2) that does the same; shadow: the new process's id; outs: the descriptor of it.

    Raises:
        MemoryFaultError, OSError: there is no place for the descriptor.
    """
    view = call.process.view
    for index, data in outs.items():
        is_clone3 = call.row is not None and call.row.name == "clone3"
        view.write(decode_clone3(call.gathered.ins[0]).pidfd if is_clone3 else call.args[index], data)
    if clone[0] & CLONE_PARENT_SETTID:
        with contextlib.suppress(MemoryFaultError):  # the kernel does without, too
            view.write(clone[_PARENT_TID], _U32.pack(shadow))
