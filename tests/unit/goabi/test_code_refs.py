"""Static addresses in machine code, on instructions assembled by hand."""

import struct

import pytest

from goabi.code_refs import iter_static_refs


@pytest.mark.parametrize(
    ("code", "target"),
    [
        ("488b0d10000000", 0x1017),  # MOVQ 0x10(IP), CX
        ("48890df9ffffff", 0x1000),  # MOVQ CX, -7(IP)
        ("488d0500000000", 0x1007),  # LEAQ 0(IP), AX
        ("833d0900000000", 0x1010),  # CMPL $0, 9(IP): the immediate comes after
        ("48c7050100000000000000", 0x100C),  # MOVQ $0, 1(IP)
    ],
)
def test_amd64(code: str, target: int) -> None:
    assert target in set(iter_static_refs("amd64", bytes.fromhex(code) + bytes(3), 0x1000))


def arm64(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


def test_arm64() -> None:
    adrp = 0x90000000 | 1 << 29 | 2 << 5 | 3  # ADRP X3, 9 pages on: immediate 2 << 2 | 1
    code = arm64(
        adrp,
        0x91000000 | 0x123 << 10 | 3 << 5 | 4,  # ADD $0x123, X3, X4
        0xF9400000 | 2 << 10 | 4 << 5 | 5,  # LDR 16(X4), X5
        0xB9000000 | 3 << 10 | 3 << 5 | 6,  # STR W6, 12(X3)
        0xA9400000 | 0x7F << 15 | 4 << 5 | 7,  # LDP -8(X4)
        0xF9400000 | 2 << 10 | 9 << 5 | 5,  # LDR 16(X9): nothing is known of X9
    )
    page = 0x400000 + 9 * 4096
    assert list(iter_static_refs("arm64", code, 0x400010)) == [
        page + 0x123,
        page + 0x123 + 16,
        page + 12,
        page + 0x123 - 8,
        page + 0x123,
    ]


def test_arm64_pages_before() -> None:
    back = 0x90000000 | 3 << 29 | 0x7FFFF << 5 | 1  # ADRP X1, one page back
    add = 0x91000000 | 1 << 5 | 1
    assert list(iter_static_refs("arm64", arm64(back, add), 0x5000)) == [0x4000]
