"""Flags of clone(2), clone3(2) and unshare(2) that more than one module needs. Source: <linux/sched.h>."""

CLONE_NEWTIME = 0x80
CLONE_VM = 0x100
CLONE_FS = 0x200
CLONE_FILES = 0x400
CLONE_SIGHAND = 0x800
CLONE_PIDFD = 0x1000
CLONE_VFORK = 0x4000
CLONE_PARENT = 0x8000
CLONE_THREAD = 0x10000
CLONE_PARENT_SETTID = 0x100000
CLONE_NEWPID = 0x20000000
#: Of clone3 alone.
CLONE_CLEAR_SIGHAND = 0x100000000
CLONE_INTO_CGROUP = 0x200000000
#: Namespaces of the child's own; without CLONE_NEWTIME, which clone(2) cannot have.
CLONE_NAMESPACES = 0x7E020000
