"""The one table of Linux syscalls. Grammar of a row: `stepping.syscalls.model`.

Source: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h, and each call's man page.
"""

from stepping.syscalls.model import Arch, Syscall, Sysno
from stepping.syscalls.parse import parse_table

_ROWS = """
read           0   63  file     wait  fd:fd buf:out[count;ret] count:size -> bytes
write          1   64  file     wait  fd:fd buf:in[count] count:size -> bytes
close          3   57  file     -     fd:fd -> none
mmap           9  222  memory   -     addr:ptr length:size prot:int/prot flags:int/mmap_flags fd:fd offset:long -> ptr only flags&0x20=0
openat       257   56  file     wait  dirfd:dirfd path:path flags:int/open_flags mode:uint/mode -> fd
epoll_wait   232    -  file     wait  epfd:fd events:out[maxevents*12;ret*12]/epoll_events maxevents:int timeout:int -> int
getsockname   51  204  net      -     fd:fd addr:out[*addrlen;*addrlen]/sockaddr addrlen:inout[4]/socklen -> none
clone         56  220  process  -     flags:size/clone_flags stack:ptr parent_tid:ptr child_tid:ptr tls:ptr -> int only flags&0x10000=0
"""

#: Every syscall that ptserver knows, by name.
SYSCALLS: dict[str, Syscall] = parse_table(_ROWS)


def by_number(arch: Arch) -> dict[Sysno, Syscall]:
    """Return the table by the numbers of *arch*."""
    return {call.numbers[arch]: call for call in SYSCALLS.values() if arch in call.numbers}
