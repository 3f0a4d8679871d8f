"""Runs a program on the emulator with a seed, and writes every call and signal to a file: FILE SEED PROGRAM...

The program's variables are those that are called PROGRAM_NAME, and no others, so that its stack lies where it did.
"""

import os
import sys
from pathlib import Path

from ptserver.emulated.host import end_as, run_emulated
from stepping.emulation.machine import Machine
from stepping.emulation.threads import Thread
from stepping.syscalls import Syscall


class Trace:
    def __init__(self, path: str) -> None:
        self._file = Path(path).open("w")  # noqa: SIM115, it is open until the process ends

    def start(self, machine: Machine) -> None: ...

    def begins(self, machine: Machine, thread: Thread, row: Syscall, args: list[int], began: int) -> None:
        print(thread.tid, row.name, *map(hex, args), began, file=self._file)

    def called(self, machine: Machine, tid: int, result: int | None, ended: int) -> None:
        print(tid, "=", result, ended, file=self._file)

    def signalled(self, machine: Machine, tid: int, number: int, info: bytes) -> None:
        print(tid, "signal", number, info.hex(), file=self._file)

    def flush(self) -> None:
        self._file.flush()

    def ended(self, machine: Machine, status: int) -> None:
        self._file.flush()


if __name__ == "__main__":
    file, seed, program, *arguments = sys.argv[1:]
    argv = [os.fsencode(word) for word in (program, *arguments)]
    env = [
        name.removeprefix(b"PROGRAM_") + b"=" + value
        for name, value in os.environb.items()
        if name.startswith(b"PROGRAM_")
    ]
    end_as(run_emulated(program, argv, env, seed=int(seed), sink=Trace(file)))
