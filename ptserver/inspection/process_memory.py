"""A process as `goabi` wants it: its memory as a `MemoryReader`, and where its executable was loaded."""

import struct

from goabi.binary import GoBinary
from goabi.errors import MemoryFaultError, RuntimeDataError
from stepping.errors import MemoryFaultError as TraceeFaultError
from stepping.errors import TraceeGoneError
from stepping.tracee_memory import TraceeMemory

_AUXV_ENTRY = struct.Struct("<QQ")  # proc(5), getauxval(3)
_AT_ENTRY = 9


class ProcessMemory:
    """The memory behind *memory*, which stays the caller's to close."""

    def __init__(self, memory: TraceeMemory) -> None:
        self._memory = memory

    def read(self, addr: int, size: int, /) -> bytes:
        """Return all the bytes asked for.

        Raises:
            goabi.errors.MemoryFaultError: some of them cannot be read.
        """
        try:
            return self._memory.read(addr, size)
        except TraceeFaultError as error:
            raise MemoryFaultError(addr, size) from error


def read_load_bias(binary: GoBinary, pid: int) -> int:
    """Return what the kernel added to the link-time addresses of *binary*, the executable of process *pid*.

    Raises:
        TraceeGoneError: there is no such process.
        RuntimeDataError: it is ending, and has no program any more.
    """
    return binary.elf.load_bias(read_entry(pid))


def read_entry(pid: int) -> int:
    """Return where the program of process *pid* began, as it was loaded (not its interpreter).

    Raises:
        TraceeGoneError: there is no such process.
        RuntimeDataError: it is ending, and has no program any more.
    """
    try:
        with open(f"/proc/{pid}/auxv", "rb") as file:
            raw = file.read()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TraceeGoneError(pid) from error
    for kind, value in _AUXV_ENTRY.iter_unpack(raw[: len(raw) - len(raw) % _AUXV_ENTRY.size]):
        if kind == _AT_ENTRY:
            return int(value)
    raise RuntimeDataError(f"the kernel does not say where process {pid} was loaded; it may be ending")
