"""Flags of clone(2) and unshare(2) that more than one module needs. Source: <linux/sched.h>."""

CLONE_VM = 0x100
CLONE_PIDFD = 0x1000
CLONE_VFORK = 0x4000
CLONE_NEWPID = 0x20000000
#: Namespaces of the child's own; without CLONE_NEWTIME, which clone(2) cannot have.
CLONE_NAMESPACES = 0x7E020000
