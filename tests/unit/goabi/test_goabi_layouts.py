"""The table of layouts against its own specification, and what is said when it does not suffice."""

import pytest

from goabi.elf_header import ArchName
from goabi.errors import LayoutError, RuntimeDataError
from goabi.goroutine import Decoder, GoStatus, PStatus
from goabi.layout_specs import STRUCTS
from goabi.layouts import Layout, find_layouts, layouts_from_table
from goabi.memory import BytesMemory
from goabi.version import GoVersion

RELEASES = [f"go1.{minor}.0" for minor in range(21, 28)]
ARCH_NAMES: list[ArchName] = ["amd64", "arm64"]
NOTHING = BytesMemory([])


@pytest.mark.parametrize("arch", ARCH_NAMES)
@pytest.mark.parametrize("release", RELEASES)
def test_table_has_every_field_that_is_needed(release: str, arch: ArchName) -> None:
    layouts = layouts_from_table(GoVersion.parse(release), arch)
    for spec in STRUCTS:
        if spec.optional and not layouts.has(spec.name):
            continue
        layout = layouts[spec.name]
        assert set(spec.fields) <= set(layout.fields) <= set(spec.fields) | set(spec.optional_fields)
        for offset, size in layout.fields.values():
            assert 0 <= offset < offset + size <= layout.size
    # A version has one kind of maps, and one place for the length of the global queue.
    assert layouts.has("hmap") != layouts.has("swissmap")
    assert layouts["sched"].has("runqsize") != layouts["sched"].has("runq.size")
    assert layouts.wait_reasons[0] == ""
    assert {"chan receive", "IO wait", "select", "sleep"} <= set(layouts.wait_reasons)


@pytest.mark.parametrize("text", ["go1.20.14", "go1.28.0"])
def test_untested_versions_are_refused_by_name(text: str) -> None:
    with pytest.raises(LayoutError, match=f"built by {text}; Go 1.21 to 1.27 are supported"):
        find_layouts(GoVersion.parse(text), "amd64", None, NOTHING, force=True)


def test_experiments_that_may_move_fields_are_refused() -> None:
    assert layouts_from_table(GoVersion.parse("go1.25.0 X:nodwarf5,jsonv2"), "amd64")
    with pytest.raises(LayoutError, match="GOEXPERIMENT=noswissmap"):
        layouts_from_table(GoVersion.parse("go1.24.1 X:noswissmap"), "amd64")


def test_fields_of_a_struct() -> None:
    layout = Layout("thing", 24, {"a": (0, 8), "b": (10, 1), "c": (12, 4), "d": (16, 16)})
    raw = bytes(range(24))
    assert layout.get(raw, "b") == 10
    assert layout.get(raw, "c") == 0x0F0E0D0C
    assert layout.unpacker(["c", "a"]).unpack_from(raw) == (0x0706050403020100, 0x0F0E0D0C)
    with pytest.raises(LayoutError, match="thing has no field e"):
        layout.offset("e")
    with pytest.raises(LayoutError, match="too few"):
        layout.get(raw[:11], "c")
    with pytest.raises(LayoutError, match="no integers"):
        layout.unpacker(["d"])


@pytest.mark.parametrize("release", RELEASES)
def test_decoding_of_records(release: str) -> None:
    layouts = layouts_from_table(GoVersion.parse(release), "amd64")
    decoder = Decoder(layouts)

    def record(name: str, size: int, **values: int) -> bytes:
        raw = bytearray(size)
        for field, value in values.items():
            offset, length = layouts[name].fields[field.replace("__", ".")]
            raw[offset : offset + length] = value.to_bytes(length, "little")
        return bytes(raw)

    raw = record(
        "g", decoder.g_bytes, goid=7, atomicstatus=0x1004, waitreason=2, stack__lo=16, stack__hi=32, gopc=9
    )
    goroutine = decoder.decode_g(0x1000, raw)
    assert (goroutine.addr, goroutine.goid, goroutine.gopc) == (0x1000, 7, 9)
    assert goroutine.status is GoStatus.WAITING
    assert goroutine.is_being_scanned
    assert not goroutine.is_dead
    for bad in (record("g", decoder.g_bytes, atomicstatus=99), record("g", decoder.g_bytes, stack__lo=1)):
        with pytest.raises(RuntimeDataError, match="0x1000"):
            decoder.decode_g(0x1000, bad)
    changed = bytearray(
        record("p", decoder.p_bytes, id=3, status=1, runqhead=255, runqtail=257, runnext=0x10)
    )
    slots = layouts["p"].offset("runq")
    changed[slots : slots + 8] = (0x30).to_bytes(8, "little")
    changed[slots + 8 * 255 : slots + 8 * 256] = (0x20).to_bytes(8, "little")
    p = decoder.decode_p(0x2000, bytes(changed))
    assert (p.id, p.status, p.run_queue) == (3, PStatus.RUNNING, (0x10, 0x20, 0x30))
    with pytest.raises(RuntimeDataError, match="0x2000"):
        decoder.decode_p(0x2000, record("p", decoder.p_bytes, runqtail=300))
