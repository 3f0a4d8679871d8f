"""Blocks on disk, one file a program, so that no program is decoded twice.

The files are in `$XDG_CACHE_HOME/ptserver/blocks` (`~/.cache/...` without that variable), named by what the blocks
were decoded from: a digest of build id, architecture and extent of the code. They are mapped, not read. A file that
is damaged, cut short or of another format counts as none, and is replaced.

    file      = header functions blocks
    header    = magic:8s version:u32 function_count:u32 block_count:u32 crc:u32 base:u64
    functions = { start:u32 first:u32 count:u32 }          by start, function_count times
    blocks    = { start:u32 size:u32 instructions:u32 flow:u8 touch:u8 pad:u16 target:u64 }

All is little-endian. A start is relative to `base`; `first` is the index of a function's first block; crc is
CRC-32 of all that follows the header. Files are replaced whole, so that readers need no lock.

Source: XDG Base Directory Specification 0.8.
"""

import hashlib
import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from stepping.instructions import Flow, Touch

_MAGIC = b"PTBLOCKS"
_VERSION = 1
_HEADER = struct.Struct("<8sIIIIQ")
_FUNCTION = struct.Struct("<III")
_BLOCK = struct.Struct("<IIIBBxxQ")

_FLOWS = {int(flow): flow for flow in Flow}
_TOUCHES = [Touch(value) for value in range(64)]


class Block(NamedTuple):
    """A basic block: *size* bytes at *start*, which are so many *instructions*.

    flow: how it is left; touch: all that its instructions may touch; target: of a direct jump or call at its end.
    """

    start: int
    size: int
    instructions: int
    flow: Flow
    touch: Touch
    target: int

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.start + self.size


def cache_folder() -> Path:
    """Return where cached blocks are kept, whether that exists or not."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "ptserver" / "blocks"


class BlockCache:
    """The cached blocks of one program. key: what they are made from; base: the lowest address of its code.

    Nothing about the file is an error: what cannot be read is decoded anew, what cannot be written is not kept.
    """

    def __init__(self, key: bytes, base: int, folder: Path | None = None) -> None:
        self._base = base
        name = hashlib.sha256(b"%d\0%d\0" % (_VERSION, base) + key).hexdigest()[:40]
        self.path = (folder or cache_folder()) / f"{name}.blocks"
        self._data: mmap.mmap | bytes = b""
        self._function_count = 0
        self._blocks_at = 0
        self._open()

    def __len__(self) -> int:
        """The number of functions whose blocks are there."""
        return self._function_count

    def close(self) -> None:
        """Unmap the file."""
        if isinstance(self._data, mmap.mmap):
            self._data.close()
        self._data, self._function_count = b"", 0

    def find(self, start: int) -> list[Block] | None:
        """Return the blocks of the function at *start*, None if they are not there."""
        low, high = 0, self._function_count
        wanted = start - self._base
        while low < high:
            middle = (low + high) // 2
            at, first, count = _FUNCTION.unpack_from(self._data, _HEADER.size + _FUNCTION.size * middle)
            if at == wanted:
                return self._read_blocks(first, count)
            if at < wanted:
                low = middle + 1
            else:
                high = middle
        return None

    def add(self, functions: Mapping[int, Sequence[Block]]) -> None:
        """Keep the blocks of *functions*, by start, besides those that are there."""
        merged: dict[int, bytes] = {}
        size = _BLOCK.size
        for index in range(self._function_count):
            at, first, count = _FUNCTION.unpack_from(self._data, _HEADER.size + _FUNCTION.size * index)
            begin = self._blocks_at + size * first
            merged[at] = self._data[begin : begin + size * count]
        base = self._base
        for start, blocks in functions.items():
            merged[start - base] = b"".join(
                _BLOCK.pack(one.start - base, one.size, one.instructions, one.flow, one.touch, one.target)
                for one in blocks
            )
        self.close()
        table, first = [], 0
        for at in sorted(merged):
            count = len(merged[at]) // size
            table.append(_FUNCTION.pack(at, first, count))
            first += count
        body = b"".join(table) + b"".join(merged[at] for at in sorted(merged))
        header = _HEADER.pack(_MAGIC, _VERSION, len(table), first, zlib.crc32(body), base)
        with suppress(OSError):
            self._write(header + body)
        self._open()

    def _write(self, content: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(name, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise

    def _open(self) -> None:
        try:
            with self.path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except (OSError, ValueError):  # an empty file cannot be mapped
            return
        functions = _check(data, self._base)
        if functions is None:
            data.close()
            return
        self._data, self._function_count = data, functions
        self._blocks_at = _HEADER.size + _FUNCTION.size * functions

    def _read_blocks(self, first: int, count: int) -> list[Block]:
        begin = self._blocks_at + _BLOCK.size * first
        base, flows, touches = self._base, _FLOWS, _TOUCHES
        return [
            Block(base + at, size, instructions, flows[flow], touches[touch], target)
            for at, size, instructions, flow, touch, target in _BLOCK.iter_unpack(
                self._data[begin : begin + _BLOCK.size * count]
            )
        ]


def _check(data: mmap.mmap, base: int) -> int | None:
    """Return how many functions a file has; None if it is none of ours or is damaged."""
    if len(data) < _HEADER.size:
        return None
    magic, version, functions, blocks, crc, found = _HEADER.unpack_from(data)
    if (magic, version, found) != (_MAGIC, _VERSION, base):
        return None
    if len(data) != _HEADER.size + _FUNCTION.size * functions + _BLOCK.size * blocks:
        return None
    with memoryview(data) as view, view[_HEADER.size :] as body:
        return functions if zlib.crc32(body) == crc else None
