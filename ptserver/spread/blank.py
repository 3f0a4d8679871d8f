"""A blank instance of a spread program, which every host but the first begins with: the same code, and no data."""

import os
from typing import NamedTuple

from ptserver.spread.messages import Begin
from ptserver.stub.hypercalls import FIRST_HYPERCALL, LAST_HYPERCALL
from stepping.instance import Image, Instance, instance_filter
from stepping.instance_ring import put_ring
from stepping.launch import Program
from stepping.ring import Ring
from stepping.seccomp import Rule, Verdict
from stepping.syscalls import SYSCALLS, Sysno

#: What a thread away from host 0 does by itself; all else is for the home to decide.
_LOCAL = frozenset(
    "arch_prctl clock_gettime nanosleep sched_yield getrandom rt_sigprocmask rt_sigreturn getcpu".split()
)
_LAST_NUMBER = 1023


class Blank(NamedTuple):
    """ring: what its routines record of goroutines, if somebody wants to hear of them."""

    instance: Instance
    ring: Ring | None


def make_blank(path: str, begin: Begin) -> Blank:
    """Start a process of the program *path* that is as *begin* says. It inherits nothing and has no terminal.

    Raises:
        SteppingError: the kernel refuses, or this process has its memory elsewhere.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        instance = Instance(
            Program(
                path=path,
                argv=[os.fsencode(path)],
                env=[],
                bpf=_blank_filter(),
                stdio=(null, null, null),
                new_session=True,
            )
        )
    finally:
        os.close(null)
    try:
        instance.be_blank(Image(begin.regions))
        for patch in begin.patches:
            instance.change_code(patch.address, patch.old, patch.new)
        ring = None
        if begin.recorder is not None:
            ring = put_ring(instance, begin.recorder.address, begin.recorder.code)
    except BaseException:
        instance.close()
        raise
    return Blank(instance, ring)


def _blank_filter() -> bytes:
    local = {SYSCALLS[name].numbers["amd64"] for name in _LOCAL}
    numbers = [*range(_LAST_NUMBER + 1), *range(FIRST_HYPERCALL, LAST_HYPERCALL + 1)]
    rules = [Rule(Sysno(number), Verdict.TRACE) for number in numbers if number not in local]
    return instance_filter(rules, "amd64")
