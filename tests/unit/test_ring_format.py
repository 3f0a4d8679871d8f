"""The ring's formats: the routine is what its source says, the page and its descriptors round-trip."""

import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepping import ring_layout
from stepping.gen_ring import (
    DIRECT_SOURCE,
    DIRECT_TARGET,
    PROBES_SOURCE,
    PROBES_TARGET,
    SOURCE,
    TARGET,
    generate,
)
from stepping.ring_code_amd64 import AFTER, BEFORE, CODE
from stepping.ring_copies import COPIED_CALLS, READ_ERRNOS, copies_of, read_errnos_mask
from stepping.ring_layout import (
    CODE_OFFSET,
    COPIES_OFFSET,
    PAGE_BYTES,
    RECORD,
    RECORD_BYTES,
    WANTED_OFFSET,
    Copy,
    Parameters,
    Source,
    decode_parameters,
    encode_copies,
    encode_page,
    encode_wanted,
)
from stepping.syscalls.table import SYSCALLS

U64 = st.integers(0, (1 << 64) - 1)
U32 = st.integers(0, (1 << 32) - 1)
EIGHT = st.binary(min_size=8, max_size=8)
PARAMETERS = st.builds(
    Parameters,
    cookie=U64,
    ring=U64,
    resume_call=U64,
    resume_after=U64,
    goid_offset=U64,
    m_offset=U64,
    index_mask=U64,
    buffer_limit=U64,
    read_errnos=st.integers(0, (1 << 128) - 1),
    entry=U64,
    entry_bytes=EIGHT,
    after=U64,
    after_bytes=EIGHT,
    tracer_pid=U32,
    tracer_start=U64,
    ring_bytes=U64,
    procid_offset=U64,
)


def test_the_code_is_assembled_from_the_source() -> None:
    if not all(map(shutil.which, ("as", "objcopy", "nm"))):
        pytest.skip("binutils are not installed")
    assert TARGET.read_text() == generate()
    assert PROBES_TARGET.read_text() == generate(PROBES_SOURCE)
    assert DIRECT_TARGET.read_text() == generate(DIRECT_SOURCE)


def test_the_source_and_the_layout_agree() -> None:
    constants = dict(re.findall(r"\.set (\w+),\s+(0x[0-9a-f]+|\d+)", SOURCE.read_text()))
    for name, value in {
        "CODE": CODE_OFFSET,
        "WANTED": WANTED_OFFSET,
        "COPIES": COPIES_OFFSET,
        "HEAD": ring_layout.HEAD_OFFSET,
        "LIMIT": ring_layout.LIMIT_OFFSET,
        "LOST": ring_layout.LOST_OFFSET,
        "RECORDS": ring_layout.RECORDS_OFFSET,
        "DATA_BYTES": ring_layout.DATA_BYTES,
        "MAX_FRAMES": ring_layout.MAX_FRAMES,
    }.items():
        assert int(constants[name], 0) == value, name
    assert 1 << int(constants["SHIFT"], 0) == RECORD_BYTES == RECORD.size
    # Each field of the page where the routine looks for it.
    fields = ("COOKIE", "RING", "RESUME_CALL", "RESUME_AFTER", "GOID", "GM", "INDEX_MASK", "BUFFER_LIMIT")
    numbers = {name: index + 1 for index, name in enumerate(fields)}
    raw = Parameters(*(numbers[name] for name in fields), 9, 0, b"\0" * 8, 0, b"\0" * 8, 0, 0, 0, 10).encode()
    for name, number in {**numbers, "READ_ERRNOS": 9, "PROCID": 10}.items():
        at = int(constants[name], 0)
        assert int.from_bytes(raw[at : at + 8], "little") == number, name


def test_the_code_fits_and_is_entered_where_it_says() -> None:
    assert CODE_OFFSET + len(CODE) <= PAGE_BYTES
    assert 0 <= BEFORE < AFTER < len(CODE)
    assert CODE[BEFORE : BEFORE + 12] == bytes.fromhex("4989f24889fa4889ce4889df")


@given(PARAMETERS, st.sets(st.integers(0, 600)), st.dictionaries(st.integers(0, 511), U32))
def test_pages_round_trip(parameters: Parameters, wanted: set[int], copies: dict[int, int]) -> None:
    page = encode_page(parameters, wanted, copies, CODE)
    assert len(page) == PAGE_BYTES
    assert decode_parameters(page) == parameters
    bits = int.from_bytes(page[WANTED_OFFSET : WANTED_OFFSET + 64], "little")
    assert {number for number in range(512) if bits >> number & 1} == {n for n in wanted if n < 512}
    for number in range(512):
        at = COPIES_OFFSET + 4 * number
        assert int.from_bytes(page[at : at + 4], "little") == copies.get(number, 0)
    assert page[CODE_OFFSET : CODE_OFFSET + len(CODE)] == CODE


@given(st.binary(max_size=400))
def test_other_pages_are_not_taken_for_ours(page: bytes) -> None:
    assert decode_parameters(page) is None


def test_code_that_does_not_fit_is_refused() -> None:
    parameters = Parameters(*[0] * 10, b"\0" * 8, 0, b"\0" * 8, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="do not fit"):
        encode_page(parameters, set(), {}, bytes(PAGE_BYTES))


@given(st.integers(0, 5), st.sampled_from(Source), st.integers(0, 5), st.booleans(), st.integers(0, 10_000))
def test_descriptors(arg: int, source: Source, length_arg: int, after_error: bool, size: int) -> None:
    bits = Copy(arg, source, length_arg, after_error, size).encode()
    assert 0 < bits < 1 << 16
    assert (bits & 7, bits >> 3 & 3, bits >> 5 & 7) == (arg, source, length_arg)
    assert bool(bits & 0x100) == after_error
    assert (bits >> 9 & 63) * 8 <= size
    both = encode_copies((Copy(arg, source), Copy(0, Source.STRING), Copy(1, Source.STRING)))
    assert both >> 16 == Copy(0, Source.STRING).encode()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openat", [Copy(1, Source.STRING, after_error=True)]),
        ("write", [Copy(1, Source.RESULT, length_arg=2)]),
        ("read", [Copy(1, Source.RESULT, length_arg=2)]),
        ("renameat", [Copy(1, Source.STRING, after_error=True), Copy(3, Source.STRING)]),
        ("connect", [Copy(1, Source.ARGUMENT, length_arg=2, after_error=True)]),
        ("bind", [Copy(1, Source.ARGUMENT, length_arg=2)]),
        ("sendto", [Copy(1, Source.RESULT, length_arg=2), Copy(4, Source.ARGUMENT, length_arg=5)]),
        ("recvfrom", [Copy(1, Source.RESULT, length_arg=2)]),
        ("readlinkat", [Copy(1, Source.STRING, after_error=True), Copy(2, Source.RESULT, length_arg=3)]),
        ("close", []),
        ("readv", []),
        ("epoll_wait", []),
        ("epoll_ctl", []),
        ("wait4", []),
        ("setsockopt", []),
    ],
)
def test_what_is_copied(name: str, expected: list[Copy]) -> None:
    assert [copy for _, copy in copies_of(SYSCALLS[name])] == expected


def test_an_errors_pointer_is_followed_only_where_it_was_read() -> None:
    for row in SYSCALLS.values():
        after_errors = [copy for _, copy in copies_of(row) if copy.after_error]
        assert len(after_errors) <= 1
        assert all(copy.source is Source.STRING or row.name == "connect" for copy in after_errors)
    assert set(SYSCALLS) >= COPIED_CALLS
    for dangerous in (14, 22, 36, 9, 88):  # EFAULT, EINVAL, ENAMETOOLONG, EBADF, ENOTSOCK
        assert dangerous not in READ_ERRNOS
        assert not read_errnos_mask() >> dangerous & 1


def test_wanted() -> None:
    assert encode_wanted(set()) == bytes(64)
    assert encode_wanted({0, 511, 512, 9999}) == b"\x01" + bytes(62) + b"\x80"
