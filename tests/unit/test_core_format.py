"""Cores as they are encoded here, and as `goabi.core` reads them."""

import struct
from pathlib import Path

import pytest

from goabi.core import CoreFile, MappedFile
from goabi.errors import MemoryFaultError
from ptserver.inspection.core_format import (
    ProcessState,
    Segment,
    ThreadState,
    encode_headers,
    encode_notes,
    place_segments,
)
from stepping.registers import LAYOUTS
from stepping.syscalls.model import Arch

PAGE = 4096


def process(**more: object) -> ProcessState:
    facts: dict[str, object] = {
        "pid": 10,
        "ppid": 1,
        "pgrp": 10,
        "sid": 9,
        "uid": 1000,
        "gid": 100,
        "state": "S",
        "name": b"main",
        "arguments": b"./main\0-v\0",
        "auxv": struct.pack("<QQQQ", 9, 0x401000, 0, 0),
        "files": [(0x400000, 0x402000, 0, b"/src/ma\xffin"), (0x402000, 0x403000, 0x2000, b"/a b (deleted)")],
        "monotonic_ns": 5,
    }
    return ProcessState(**(facts | more))  # type: ignore[arg-type]


def thread(tid: int, arch: Arch, first: int) -> ThreadState:
    layout = LAYOUTS[arch]
    return ThreadState(
        tid, layout.codec.pack(*range(first, first + len(layout.names))), bytes(512), b"x" * 100
    )


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_what_is_written_is_read(arch: Arch, tmp_path: Path) -> None:
    segments = [
        Segment(0x400000, 0x401000, "r-xp", True),
        Segment(0x401000, 0x402000, "r-xp", False),
        Segment(0xC000000000, 0xC000003000, "rw-p", True),
    ]
    notes = encode_notes(process(), [thread(10, arch, 1000), thread(12, arch, 2000)])
    offsets = place_segments(segments, len(notes))
    assert all(offset % PAGE == 0 for offset in offsets)
    path = tmp_path / "core"
    with path.open("wb") as file:
        file.write(encode_headers(arch, segments, offsets, notes))
        assert file.tell() <= offsets[0]
        file.seek(offsets[0])
        file.write(b"\x7fELF")
        file.seek(offsets[2] + 0x1000)
        file.write(b"heap")
        file.truncate(offsets[-1])
    with CoreFile(path, use_files=False) as core:
        assert core.arch.name == arch
        assert core.read(0x400000, 4) == b"\x7fELF"
        assert core.read(0xC000000FFE, 8) == b"\0\0heap\0\0"
        assert core.read(0xC000002FFF, 1) == b"\0"
        for place in (0x401000, 0xC000002FFF):
            with pytest.raises(MemoryFaultError):
                core.read(place, 2)
        assert list(core.threads) == [10, 12]
        layout = LAYOUTS[arch]
        assert [core.threads[tid][layout.pc] - layout.index[layout.pc] for tid in (10, 12)] == [1000, 2000]
        assert core.entry == 0x401000
        assert core.mapped_files == (
            MappedFile(0x400000, 0x402000, 0, "/src/ma\udcffin"),
            MappedFile(0x402000, 0x403000, 0x2000, "/a b (deleted)"),
        )
        assert core.executable == "/src/ma\udcffin"


def test_long_names_are_cut_and_odd_states_are_borne() -> None:
    notes = encode_notes(process(name=b"n" * 40, arguments=b"a" * 200, state="t"), [])
    assert b"n" * 16 + b"a" * 80 in notes
    assert b"n" * 17 not in notes
    assert encode_notes(process(state="", arguments=b"", files=[]), [])
