"""Logs of what code ran and what it touched: every instruction, every block, or every access to memory.

Text has one line each: the thread, the address, the function with the offset in it, and then

    insn      the instruction
    block     nothing more: execution has come to the first instruction of a block there
    mem       r, w or rw, the address touched, and how many bytes (0 if that varies)

JSON has one object a line: ``{"type": "insn"|"block"|"access", "tid": N, "pc": "0x...", ...}`` with `function`,
`offset`, `file` and `line` where they are known; an instruction has its `text`, and an access its `kind`, `address`
and `size`.
"""

import json
from collections.abc import Callable
from typing import Literal

from goabi.binary import GoBinary
from goabi.errors import GoAbiError
from ptserver.inspection.goroutine_list import printable
from stepping.blocks import Decoder
from stepping.instructions import Flow
from stepping.operands import MemoryAccess
from stepping.syscalls.model import Arch

Kind = Literal["insn", "block", "mem"]


class Known:
    """What is known of the instruction at an address. text: as lines of text have it; fields: as JSON has it."""

    __slots__ = ("end", "fields", "flow", "mnemonic", "operands", "place")

    def __init__(
        self, place: str, fields: dict[str, object], flow: Flow, mnemonic: str, operands: str, end: int
    ) -> None:
        self.place = place
        self.fields = fields
        self.flow = flow
        self.mnemonic = mnemonic
        self.operands = operands
        self.end = end


class CodeLog:
    """Writes lines by *write*. read: returns code (address, size), fewer bytes where memory ends.

    binary, bias: the program, if it is Go's, and where it is in memory.
    """

    def __init__(
        self,
        kind: Kind,
        write: Callable[[str], object],
        read: Callable[[int, int], bytes],
        arch: Arch,
        *,
        as_json: bool,
        binary: GoBinary | None = None,
        bias: int = 0,
    ) -> None:
        self.kind = kind
        self._write = write
        self._read = read
        self._as_json = as_json
        self._binary = binary
        self._bias = bias
        self._decoder = Decoder(arch)
        self._known: dict[int, Known] = {}
        self._ended_block: dict[int, bool] = {}

    def instruction(self, tid: int, pc: int) -> Known:
        """Note that a thread is about to execute the instruction at *pc*; return what is known of it."""
        known = self._known.get(pc)
        if known is None:
            known = self._known[pc] = self._look(pc)
        if self.kind == "insn":
            self._put("insn", tid, known, f"{known.mnemonic} {known.operands}".rstrip(), {})
        elif self.kind == "block":
            if self._ended_block.get(tid, True):
                self._put("block", tid, known, "", {})
            self._ended_block[tid] = known.flow is not Flow.NEXT
        return known

    def access(self, tid: int, known: Known, access: MemoryAccess) -> None:
        """Note what an instruction touches."""
        kind, address, size = access
        fields = {"kind": kind, "address": f"{address:#x}", "size": size}
        self._put("access", tid, known, f"{kind:<2} {address:#x} {size}", fields)

    def _put(self, what: str, tid: int, known: Known, text: str, more: dict[str, object]) -> None:
        if self._as_json:
            if what == "insn":
                more = {"text": text}
            self._write(json.dumps({"type": what, "tid": tid, **known.fields, **more}) + "\n")
        else:
            self._write(f"{tid} {known.place} {text}".rstrip() + "\n")

    def _look(self, pc: int) -> Known:
        code = self._read(pc, 16)
        at, size, mnemonic, operands = next(self._decoder.iter_text(code, pc), (pc, 1, "(bad)", ""))
        place = f"{pc:#x}"
        fields: dict[str, object] = {"pc": place}
        if self._binary is not None:
            try:
                function = self._binary.functions.find_function(pc - self._bias)
                if function is not None:
                    offset = pc - self._bias - function.entry
                    file, line = self._binary.functions.file_line(function, pc - self._bias)
                    name = printable(function.name)
                    place += f" {name}+{offset:#x}"
                    fields |= {"function": name, "offset": offset, "file": printable(file), "line": line}
            except GoAbiError:
                pass  # its tables are damaged there
        return Known(place, fields, self._decoder.decode(code, pc).flow, mnemonic, operands, at + size)
