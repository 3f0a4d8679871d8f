"""The area of probes: what is put there is found again, and the routines look where it is."""

import re

import pytest

from stepping import ring_layout
from stepping.gen_ring import PROBES_SOURCE
from stepping.ring_probes import (
    AREA_BYTES,
    Moment,
    Place,
    Probes,
    build_area,
    decode_patches,
)

PLACES = Probes(
    raw=(
        Place(0x1000, bytes.fromhex("b8ca000000"), 202),
        Place(0x2000, bytes.fromhex("48c7c01c000000"), 28, 24),
    ),
    entries=(Place(0x3000, bytes.fromhex("554889e54883ec38"), Moment.STATUS),),
    transitions=frozenset({(6, 1), (2, 4)}),
    offsets=tuple(range(9)),
    uncovered=(),
    wait_reasons=(),
)


def test_patches_round_trip() -> None:
    area, patches = build_area(PLACES, 0x40001000, 0x400000)
    assert len(area) == AREA_BYTES
    assert decode_patches(area) == patches
    raw, wide, entry = patches
    assert [patch.address for patch in patches] == [0x401000, 0x402000, 0x403000]
    assert [patch.original for patch in patches] == [
        place.original for place in (*PLACES.raw, *PLACES.entries)
    ]
    assert [len(patch.patched) for patch in patches] == [5, 7, 8]
    assert wide.patched[5:] == b"\x90\x90"
    # A thread that waits in a thunk goes on behind the program's own syscall instruction.
    assert (raw.moved_to, wide.moved_to, entry.moved_to) == (0x401007, 0x402009, 0)
    for patch in (raw, wide):
        at = patch.moved_from - 0x40001000
        assert area[at - 2 : at] == b"\x0f\x05"
    at = entry.copy - 0x40001000
    assert area[at : at + 8] == entry.original
    for patch in patches:
        target = patch.address + 5 + int.from_bytes(patch.patched[1:5], "little", signed=True)
        assert 0x40001000 <= target < 0x40001000 + AREA_BYTES


def test_only_wanted_changes_are_recorded() -> None:
    area, _ = build_area(PLACES, 0, 0)
    bits = int.from_bytes(area[0x40:0x60], "little")
    assert {divmod(bit, 16) for bit in range(256) if bits >> bit & 1} == {(6, 1), (2, 4)}


def test_too_many_places_are_refused() -> None:
    with pytest.raises(ValueError, match="200 probes do not fit"):
        build_area(PLACES._replace(raw=PLACES.raw * 100, entries=()), 0, 0)


def test_the_source_and_the_layouts_agree() -> None:
    constants = dict(re.findall(r"\.set (\w+),\s+(0x[0-9a-f]+|\d+)", PROBES_SOURCE.read_text()))
    ring = dict(
        re.findall(r"\.set (\w+),\s+(0x[0-9a-f]+|\d+)", (PROBES_SOURCE.parent / "ring_amd64.s").read_text())
    )
    both = set(constants) & set(ring) - {"CODE"}
    assert {"RING", "GOID", "HEAD", "STACK", "ARGS", "PROCID"} <= both
    assert {name: constants[name] for name in both} == {name: ring[name] for name in both}
    assert int(constants["CURG"], 0) == ring_layout.PAGE_BYTES
    assert int(constants["CODE"], 0) == ring_layout.PAGE_BYTES + 0x1000
    assert int(constants["STATUS"], 0) == Moment.STATUS


def test_an_area_of_noise_names_no_more_patches_than_it_holds() -> None:
    assert len(decode_patches(b"\xff" * AREA_BYTES)) < 100
