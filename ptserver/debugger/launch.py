"""Makes the target of `ptserver step`: a program that is started, natively or emulated, or a process that runs."""

import os

from ptserver.debugger.target import Target
from ptserver.errors import LaunchError
from ptserver.inspection.find_process import find_process
from ptserver.machine import native_arch
from ptserver.program import find_program
from stepping.errors import TraceeGoneError


def launch_target(
    program: str,
    argv: list[bytes],
    *,
    emulated: bool,
    native: bool = False,
    seed: int | None = None,
    empty_stdin: bool = False,
) -> Target:
    """Start *program*, stopped at its first instruction; one of another architecture is emulated unless *native*.

    empty_stdin: it gets no standard input, if it runs natively; an emulated program shares this process's.

    Raises:
        PtServerError, SteppingError: it cannot be started.
    """
    path, header = find_program(program, emulated=not native)
    env = [name + b"=" + value for name, value in os.environb.items()]
    if emulated or header.arch != native_arch():
        from ptserver.debugger.emulated_target import EmulatedTarget

        return EmulatedTarget(path, argv, env, seed)
    if seed is not None:
        raise LaunchError("--seed is for programs that are emulated: --engine=emulate")
    from ptserver.debugger.native_target import NativeTarget

    stdin = os.open(os.devnull, os.O_RDONLY) if empty_stdin else 0
    try:
        return NativeTarget.launch(path, argv, env, stdin)
    finally:
        if empty_stdin:
            os.close(stdin)


def attach_target(pid: int) -> Target:
    """Stop process *pid*, to be debugged.

    Raises:
        PtServerError, SteppingError: there is none, or it cannot be traced.
    """
    from ptserver.debugger.native_target import NativeTarget

    found = find_process(pid)
    try:
        return NativeTarget.attach(found.pid)
    except TraceeGoneError as error:
        raise LaunchError(f"{found} has just exited") from error
