"""Names a place in a program's code for a message: of Go's by its own tables, of others by symbols and DWARF."""

import contextlib

from goabi.binary import GoBinary
from goabi.dwarf import Dwarf
from goabi.elf import ElfFile
from goabi.errors import GoAbiError


def place_in(path: str, pc: int) -> str:
    """Return `` in FUNCTION (FILE:LINE)`` for the address *pc*, as linked, or as much of it as the file says."""
    with contextlib.suppress(GoAbiError, OSError), GoBinary.open(path, prefer_table=True) as binary:
        frames = binary.functions.frames_at(pc)
        if frames:
            return f" in {frames[0].function} ({frames[0].file}:{frames[0].line})"
    with contextlib.suppress(GoAbiError, OSError), ElfFile(path) as elf:
        symbol = elf.find_symbol_over(pc)
        if symbol is None:
            return ""
        line = None
        with contextlib.suppress(GoAbiError):
            line = Dwarf(elf).find_line(pc)
        return f" in {symbol.name}" + (f" ({line[0]}:{line[1]})" if line is not None else "")
    return ""
