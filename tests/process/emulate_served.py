"""Runs a program on the emulator under one of ptserver's own servers: SERVER PROGRAM ARGUMENT..."""

import os
import sys

from ptserver.emulated.host import end_as, run_emulated
from ptserver.servers import load

if __name__ == "__main__":
    server, program, *arguments = sys.argv[1:]
    argv = [os.fsencode(word) for word in (program, *arguments)]
    end_as(run_emulated(program, argv, [], server=load(server)()))
