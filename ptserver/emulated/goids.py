"""Tells which goroutine a thread of an emulated Go program runs, from its registers and the runtime's records."""

import struct

from goabi.binary import GoBinary
from stepping.emulation.address_space import AddressSpace
from stepping.emulation.machine import Machine
from stepping.emulation.registers import Context
from stepping.errors import MemoryFaultError

_U64 = struct.Struct("<Q")
_ARM64_G = 28


class EmulatedGoids:
    """Reads goroutine numbers: the register that holds `g`, its M, and that one's current goroutine."""

    def __init__(self, path: str) -> None:
        """Look at the program's file.

        Raises:
            OSError, GoAbiError: it is none of Go's, or of an unknown version.
        """
        with GoBinary.open(path, prefer_table=True) as binary:
            layouts = binary.layouts
        self._m = layouts["g"].offset("m")
        self._goid = layouts["g"].offset("goid")
        self._curg = layouts["m"].offset("curg")

    def of(self, context: Context, machine: Machine) -> int:
        """Return the number of the goroutine that the thread runs, 0 if it runs none."""
        space = machine.space
        try:
            if machine.abi.arch == "arm64":
                g = context.read_general()[_ARM64_G]
            else:
                g = _word(space, context.get_tls() - 8)
            m = _word(space, g + self._m)
            current = _word(space, m + self._curg)
            return _word(space, current + self._goid)
        except MemoryFaultError:
            return 0


def _word(space: AddressSpace, address: int) -> int:
    return int(_U64.unpack(space.read(address, 8))[0])
