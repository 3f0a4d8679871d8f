"""Registers as gdb sees them, and signals as it numbers them."""

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from ptserver.gdb.description import read_slot, slots_of, target_xml, write_slot
from ptserver.gdb.signals import to_gdb, to_linux
from stepping.registers import AMD64, ARM64, RegisterLayout, Registers


@pytest.mark.parametrize(("layout", "size"), [(AMD64, 512), (AMD64, 832), (ARM64, 528)])
def test_description(layout: RegisterLayout, size: int) -> None:
    slots = slots_of(layout.arch, size)
    tree = ET.fromstring(target_xml(layout.arch, slots))
    described = [(one.attrib["name"], int(one.attrib["bitsize"])) for one in tree.iter("reg")]
    assert described == [(slot.name, 8 * slot.size) for slot in slots]
    features = [one.attrib["name"] for one in tree.iter("feature")]
    assert len(features) == len(set(features))
    assert ("org.gnu.gdb.i386.avx" in features) == (size == 832)


@pytest.mark.parametrize(("layout", "size"), [(AMD64, 512), (AMD64, 832), (ARM64, 528)])
def test_what_is_written_is_read(layout: RegisterLayout, size: int) -> None:
    slots = slots_of(layout.arch, size)
    registers = Registers(layout, [0] * len(layout.names))
    vectors = bytearray(size)
    for number, slot in enumerate(slots):
        width = {"ftag": 2, "fctrl": 2, "fstat": 2, "fop": 2, "fiseg": 2, "foseg": 2}.get(
            slot.name, slot.size
        )
        value = bytes((number + index) % 255 for index in range(width)).ljust(slot.size, b"\0")
        if slot.name == "ftag":
            value = (0xFFFC).to_bytes(4, "little")
        write_slot(slot, value, registers, vectors)
        assert read_slot(slot, registers, bytes(vectors)) == value, slot.name
    if size == 832:
        assert vectors[512] == 7


def test_general_registers_do_not_overlap() -> None:
    for layout, size in ((AMD64, 832), (ARM64, 528)):
        stored = sorted(
            (slot.offset, slot.size)
            for slot in slots_of(layout.arch, size)
            if slot.offset is not None and slot.size > 4
        )
        assert all(first + width <= second for (first, width), (second, _) in pairwise(stored))
        assert stored[-1][0] + stored[-1][1] <= size


def test_signals() -> None:
    assert [to_gdb(one) for one in (5, 7, 10, 11, 17, 23, 34, 63, 64)] == [5, 10, 30, 11, 20, 16, 46, 75, 78]
    for signo in [*range(1, 16), *range(17, 32), *range(32, 65)]:
        if signo != 16:
            assert to_linux(to_gdb(signo)) == signo
