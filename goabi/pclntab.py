"""Go's own table of functions, files and lines: what the runtime uses for its stack traces, even when stripped.

The table is used in place (a view of the mapped file); no object is made for a function before it is asked for.
Nothing in it is trusted: every offset is checked, every loop bounded. All addresses are link-time addresses.

    pclntab   = pcheader funcnametab cutab filetab pctab functab
    functab   = { entryoff:u32 funcoff:u32 } entryoff:u32 ... _func records (funcoff is from functab's start)
    _func     = entryoff:u32 nameoff:i32 args:i32 deferreturn:u32 pcsp:u32 pcfile:u32 pcln:u32 npcdata:u32
                cuoffset:u32 startline:i32 funcid:u8 flag:u8 pad:u8 nfuncdata:u8 pcdata:u32[] funcdata:u32[]
    pcvalue   = { zigzag-varint value delta, varint pc delta / quantum } 0
    inlined   = funcid:u8 pad[3] nameoff:i32 parentpc:i32 startline:i32      (funcdata 3; index by pcdata 2)

A table is not locked; use one per thread (they may share the mapped file).
Source: runtime/symtab.go, runtime/symtabinl.go, runtime/runtime2.go (_func), internal/abi/symtab.go, Go 1.21 to 1.27.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from goabi.errors import MemoryFaultError, PclntabError
from goabi.memory import MemoryReader
from goabi.moduledata import Moduledata

FLAG_TOP_FRAME = 1
FLAG_SP_WRITE = 2
FLAG_ASM = 4

_FUNC = struct.Struct("<IiiIIIIIIiBBBB")
_FUNCTAB = struct.Struct("<II")
_U32 = struct.Struct("<I")
_INLINED = struct.Struct("<B3xiii")
_PCDATA_INL_TREE_INDEX = 2
_FUNCDATA_INL_TREE = 3
_NONE = 0xFFFFFFFF
_MAX_INLINE_DEPTH = 512
_MAX_NAME_BYTES = 1 << 16
_CACHE_LIMIT = 1 << 16


@dataclass(frozen=True, slots=True)
class Function:
    """A function's record. `[entry, end)` is its code; `index` its position in the table.

    `args_bytes` is negative when unknown; `deferreturn` an offset from `entry`, 0 when there is none.
    """

    index: int
    entry: int
    end: int
    name: str
    start_line: int
    args_bytes: int
    deferreturn: int
    func_id: int
    flags: int
    pcsp: int
    pcfile: int
    pcln: int
    cu_offset: int
    pcdata_count: int
    funcdata_count: int
    record_offset: int

    @property
    def is_top_frame(self) -> bool:
        """Whether a stack ends here (goexit, mstart...)."""
        return bool(self.flags & FLAG_TOP_FRAME)

    @property
    def writes_sp(self) -> bool:
        """Whether the stack pointer is written in ways that the table cannot say (gogo, mcall...)."""
        return bool(self.flags & FLAG_SP_WRITE)


class SourceFrame(NamedTuple):
    """One source-level frame: `function` called at `file:line`. `inlined` when it has no frame of its own.

    `entry` is where the enclosing physical function starts. `line` is 0 and `file` "?" when unknown. `func_id`
    is the compiler's mark of special functions, 0 for most; its numbers differ between versions.
    """

    function: str
    file: str
    line: int
    start_line: int
    inlined: bool
    entry: int
    func_id: int


class FunctionTable:
    """Functions by pc and by name. `data` is the whole table's bytes, `image` reads the rest of the binary."""

    def __init__(self, module: Moduledata, data: bytes | memoryview, image: MemoryReader) -> None:
        header = module.pc_header
        self._module = module
        self._data = data
        self._image = image
        self._functab = header.pcln_offset
        self._count = header.function_count
        self._names = header.funcname_offset
        self._quantum = header.pc_quantum
        if header.pcln_offset + self._count * _FUNCTAB.size + 4 > len(data):
            raise PclntabError(f"the function table says {self._count} functions, more than it holds")
        self._functions: dict[int, Function] = {}
        self._frames: dict[int, tuple[SourceFrame, ...]] = {}
        self._deltas: dict[int, int] = {}

    def __len__(self) -> int:
        """The number of functions."""
        return self._count

    # -- functions --------------------------------------------------------------------------------------------

    def find_function(self, pc: int) -> Function | None:
        """The function whose code holds `pc`; None outside of Go's text. Raises: `PclntabError`."""
        offset = self._text_offset(pc)
        if offset is None or not self._module.min_pc <= pc < self._module.max_pc:
            return None
        low, high = 0, self._count  # the entry of `low` is at or below the offset, that of `high` above
        data, base, unpack = self._data, self._functab, _U32.unpack_from
        while high - low > 1:
            middle = (low + high) // 2
            if unpack(data, base + 8 * middle)[0] <= offset:
                low = middle
            else:
                high = middle
        function = self.function_at(low)
        return function if function.entry <= pc < function.end else None

    def function_at(self, index: int) -> Function:
        """The `index`th function in order of address. Raises: `PclntabError`."""
        cached = self._functions.get(index)
        if cached is not None:
            return cached
        try:
            entry_offset, record = _FUNCTAB.unpack_from(self._data, self._functab + 8 * index)
            (end_offset,) = _U32.unpack_from(self._data, self._functab + 8 * index + 8)
            fields = _FUNC.unpack_from(self._data, self._functab + record)
        except struct.error as error:
            raise PclntabError(f"function {index} lies outside of the function table") from error
        (
            own_offset,
            name,
            args,
            deferreturn,
            pcsp,
            pcfile,
            pcln,
            npcdata,
            cu,
            line,
            func_id,
            flag,
            _,
            nfuncdata,
        ) = fields
        if own_offset != entry_offset or end_offset < entry_offset:
            raise PclntabError(f"function {index} contradicts the function table")
        entry = self._text_addr(entry_offset)
        function = Function(
            index=index,
            entry=entry,
            end=max(entry, self._text_addr(end_offset)),
            name=self._name(name),
            start_line=line,
            args_bytes=args,
            deferreturn=deferreturn,
            func_id=func_id,
            flags=flag,
            pcsp=pcsp,
            pcfile=pcfile,
            pcln=pcln,
            cu_offset=cu,
            pcdata_count=npcdata,
            funcdata_count=nfuncdata,
            record_offset=self._functab + record,
        )
        _make_room(self._functions)
        self._functions[index] = function
        return function

    def iter_functions(self) -> Iterator[Function]:
        """All functions in order of address."""
        return (self.function_at(index) for index in range(self._count))

    def find_function_by_name(self, name: str) -> Function | None:
        """The function of that exact name (the first, should there be several); inlined-only ones have none."""
        for name_offset in self._iter_name_offsets(name.encode()):
            for index in range(self._count):
                try:
                    (record,) = _U32.unpack_from(self._data, self._functab + 8 * index + 4)
                    if _FUNC.unpack_from(self._data, self._functab + record)[1] == name_offset:
                        return self.function_at(index)
                except struct.error as error:
                    raise PclntabError(f"function {index} lies outside of the function table") from error
        return None

    def _iter_name_offsets(self, name: bytes) -> Iterator[int]:
        names = bytes(self._data[self._names : self._module.pc_header.cu_offset])
        if names.startswith(name + b"\0"):
            yield 0
        position = names.find(b"\0" + name + b"\0")
        while position >= 0:
            yield position + 1
            position = names.find(b"\0" + name + b"\0", position + 1)

    # -- lines and inlining -----------------------------------------------------------------------------------

    def frames_at(self, pc: int, *, is_return_address: bool = False) -> tuple[SourceFrame, ...]:
        """The source frames at `pc`, innermost first: what was inlined there, then the function itself.

        A return address stands for the call before it: say so. Empty outside of Go's text.
        Raises: `PclntabError`.
        """
        if is_return_address:
            pc -= 1
        cached = self._frames.get(pc)
        if cached is not None:
            return cached
        function = self.find_function(pc)
        frames = () if function is None else tuple(self._iter_frames(function, pc))
        _make_room(self._frames)
        self._frames[pc] = frames
        return frames

    def _iter_frames(self, function: Function, pc: int) -> Iterator[SourceFrame]:
        tree = self._funcdata(function, _FUNCDATA_INL_TREE)
        table = self._pcdata(function, _PCDATA_INL_TREE_INDEX)
        for _ in range(_MAX_INLINE_DEPTH):
            file, line = self.file_line(function, pc)
            index = self._value(table, function, pc) if tree is not None and table else -1
            if tree is None or index < 0:
                yield SourceFrame(
                    function.name, file, line, function.start_line, False, function.entry, function.func_id
                )
                return
            try:
                raw = self._image.read(tree + _INLINED.size * index, _INLINED.size)
            except MemoryFaultError as error:
                raise PclntabError(
                    f"the inlining table of {function.name} lies outside of the image"
                ) from error
            func_id, name, parent_pc, start_line = _INLINED.unpack(raw)
            yield SourceFrame(self._name(name), file, line, start_line, True, function.entry, func_id)
            pc = function.entry + parent_pc
            if not function.entry <= pc < function.end:
                raise PclntabError(f"the inlining table of {function.name} points out of the function")
        raise PclntabError(f"the inlining table of {function.name} has a loop")

    def file_line(self, function: Function, pc: int) -> tuple[str, int]:
        """The file and line of the instruction at `pc`, of the innermost inlined call; ("?", 0) if unknown."""
        number = self._value(function.pcfile, function, pc)
        line = self._value(function.pcln, function, pc)
        if number < 0 or line < 0:
            return "?", 0
        header = self._module.pc_header
        position = header.cu_offset + 4 * (function.cu_offset + number)
        if position + 4 > header.filetab_offset:
            raise PclntabError(f"{function.name} names file {number}, which its unit has not")
        (offset,) = _U32.unpack_from(self._data, position)
        if offset == _NONE:
            return "?", line
        return self._string(header.filetab_offset + offset, header.pctab_offset), line

    @cached_property
    def wrapper_id(self) -> int:
        """The `func_id` of what the compiler made (method wrappers and the like); -1 when it cannot be told.

        It is the last of the list of special functions, after systemstack_switch, in every version.
        """
        last = self.find_function_by_name("runtime.systemstack_switch")
        return last.func_id + 1 if last is not None else -1

    def sp_delta(self, function: Function, pc: int) -> int | None:
        """How many bytes below its value at entry the stack pointer is at `pc`; None when the table is silent."""
        cached = self._deltas.get(pc)
        if cached is None:
            cached = self._value(function.pcsp, function, pc) if function.pcsp else -1
            _make_room(self._deltas)
            self._deltas[pc] = cached
        return None if cached < 0 else cached

    # -- the encodings ----------------------------------------------------------------------------------------

    def _value(self, table: int, function: Function, pc: int) -> int:
        """The value of a pc-value table at `pc`, -1 when it has none."""
        if table == 0:
            return -1
        data = self._data
        position = self._module.pc_header.pctab_offset + table
        limit = self._functab
        current, value, quantum = function.entry, -1, self._quantum
        end = function.end
        first = True
        try:
            while current < end:
                delta = data[position]
                position += 1
                if delta & 0x80:
                    delta, position = _varint(data, position, delta)
                if delta == 0 and not first:
                    break
                first = False
                value += (delta >> 1) ^ -(delta & 1)
                step = data[position]
                position += 1
                if step & 0x80:
                    step, position = _varint(data, position, step)
                if position > limit or step == 0:
                    raise PclntabError(f"a pc table of {function.name} is damaged")
                current += step * quantum
                if pc < current:
                    return _signed(value)
        except IndexError as error:
            raise PclntabError(f"a pc table of {function.name} is cut short") from error
        return -1

    def _pcdata(self, function: Function, number: int) -> int:
        if number >= function.pcdata_count:
            return 0
        return self._record_word(function, number)

    def _funcdata(self, function: Function, number: int) -> int | None:
        if number >= function.funcdata_count:
            return None
        offset = self._record_word(function, function.pcdata_count + number)
        return None if offset == _NONE else self._module.gofunc + offset

    def _record_word(self, function: Function, number: int) -> int:
        try:
            return int(_U32.unpack_from(self._data, function.record_offset + _FUNC.size + 4 * number)[0])
        except struct.error as error:
            raise PclntabError(f"the record of {function.name} is cut short") from error

    def _name(self, offset: int) -> str:
        if offset < 0:
            raise PclntabError(f"a function's name is at the negative offset {offset}")
        return self._string(self._names + offset, self._module.pc_header.cu_offset)

    def _string(self, start: int, limit: int) -> str:
        if start >= limit:
            raise PclntabError(f"a name lies outside of its table (byte {start:#x})")
        chunk = 128
        while True:
            raw = bytes(self._data[start : min(start + chunk, limit)])
            end = raw.find(b"\0")
            if end >= 0:
                return raw[:end].decode("utf-8", "replace")
            if start + chunk >= limit or chunk > _MAX_NAME_BYTES:
                raise PclntabError(f"a name in the function table does not end (byte {start:#x})")
            chunk *= 8

    # -- text offsets -----------------------------------------------------------------------------------------

    def _text_addr(self, offset: int) -> int:
        sections = self._module.text_sections
        if len(sections) > 1:
            index = max(0, bisect_right(sections, offset, key=lambda section: section.vaddr) - 1)
            return sections[index].base + offset - sections[index].vaddr
        return self._module.text + offset

    def _text_offset(self, pc: int) -> int | None:
        sections = self._module.text_sections
        if len(sections) > 1:
            for section in sections:
                if section.base <= pc < section.base + section.end - section.vaddr:
                    return pc - section.base + section.vaddr
            return None
        offset = pc - self._module.text
        return offset if offset >= 0 else None


def _varint(data: bytes | memoryview, position: int, first: int) -> tuple[int, int]:
    value, shift = first & 0x7F, 7
    while shift < 35:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value & 0xFFFFFFFF, position
        shift += 7
    raise PclntabError("a number in a pc table does not end")


def _signed(value: int) -> int:
    """As the runtime's 32-bit arithmetic has it."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value


def _make_room(cache: dict[int, Any]) -> None:
    """Keep a cache bounded; programs ask for the same few thousand pcs over and over, so starting anew is rare."""
    if len(cache) >= _CACHE_LIMIT:
        cache.clear()
