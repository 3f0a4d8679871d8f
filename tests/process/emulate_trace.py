"""Runs a program on the emulator with a seed, and writes every call and signal to a file: FILE SEED PROGRAM..."""

import os
import sys
from pathlib import Path

from ptserver.emulated.host import end_as, run_emulated
from stepping.emulation.machine import Machine
from stepping.syscalls import Syscall


class Trace:
    def __init__(self, path: str) -> None:
        self._file = Path(path).open("w")  # noqa: SIM115, it is open until the process ends

    def called(
        self,
        machine: Machine,
        tid: int,
        row: Syscall,
        args: list[int],
        result: int | None,
        began: int,
        ended: int,
    ) -> None:
        print(tid, row.name, *map(hex, args), "=", result, began, ended, file=self._file, flush=True)

    def signalled(self, machine: Machine, tid: int, number: int, info: bytes) -> None:
        print(tid, "signal", number, info.hex(), file=self._file, flush=True)


if __name__ == "__main__":
    file, seed, program, *arguments = sys.argv[1:]
    argv = [os.fsencode(word) for word in (program, *arguments)]
    # Fixed, so that stacks lie where they did.
    end_as(run_emulated(program, argv, [b"HOME=/"], seed=int(seed), sink=Trace(file)))
