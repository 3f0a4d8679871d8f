"""References to a span of addresses in made-up code: all are found, and what is not clear is not guessed."""

import struct

import pytest

from stepping.static_references import Reference, UnclearReferenceError, find_references

CODE_AT, LOW, HIGH = 0x401000, 0x593FF8, 0x594000
#: Opcode bytes before the displacement, and those behind it.
FORMS = [
    ("48 8b 05", ""),  # mov rax, [rip+x]
    ("48 8d 05", ""),  # lea
    ("f0 48 0f c1 05", ""),  # lock xadd
    ("c6 05", "07"),  # mov byte [rip+x], 7
    ("66 c7 05", "07 00"),
    ("48 c7 05", "07 00 00 00"),
    ("c5 fe 6f 05", ""),  # vmovdqu ymm0
]


def relative(form: tuple[str, str], at: int, target: int) -> bytes:
    head, tail = map(bytes.fromhex, form)
    size = len(head) + 4 + len(tail)
    return head + struct.pack("<i", target - CODE_AT - at - size) + tail


def whole(address: int) -> tuple[int, int]:
    return CODE_AT, CODE_AT + 0x1000


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", [0, 1, 2, 3])
@pytest.mark.parametrize("target", [LOW, LOW + 5, HIGH - 1])
def test_found(form: tuple[str, str], before: int, target: int) -> None:
    code = b"\x90" * before + relative(form, before, target) + b"\xc3" * 9
    place = CODE_AT + before + len(bytes.fromhex(form[0]))
    assert find_references(code, CODE_AT, [(LOW, HIGH)], whole) == [[Reference(place, target)]]


def test_neighbours_are_not_meant() -> None:
    code = b"".join(
        relative(FORMS[0], 7 * index, target)
        for index, target in enumerate((LOW - 1, HIGH, LOW - 8, HIGH + 8))
    )
    assert find_references(code, CODE_AT, [(LOW, HIGH)], whole) == [[]]


def test_several_spans() -> None:
    code = relative(FORMS[0], 0, LOW) + relative(FORMS[1], 7, 0x600010)
    found = find_references(code, CODE_AT, [(0x600000, 0x600040), (LOW, HIGH)], whole)
    assert found == [[Reference(CODE_AT + 10, 0x600010)], [Reference(CODE_AT + 3, LOW)]]


def test_a_number_that_only_looks_so() -> None:
    """The bytes of a displacement within a longer immediate operand are none."""
    inner = struct.pack("<i", LOW - CODE_AT - 7)
    code = b"\x48\xb8" + b"\x01" + inner + b"\x01\x01\x01"  # mov rax, imm64
    assert find_references(code, CODE_AT, [(LOW, HIGH)], whole) == [[]]


@pytest.mark.parametrize(
    "code",
    [
        b"\xbf" + struct.pack("<I", LOW),  # mov edi, address
        b"\x8b\x04\x25" + struct.pack("<I", LOW),  # mov eax, [address]
        b"\x06\x06" + relative(FORMS[0], 2, LOW),  # behind what is no instruction
    ],
)
def test_what_is_not_clear(code: bytes) -> None:
    assert isinstance(find_references(code, CODE_AT, [(LOW, HIGH)], whole)[0], UnclearReferenceError)


def test_code_of_no_function() -> None:
    code = relative(FORMS[0], 0, LOW)
    assert isinstance(find_references(code, CODE_AT, [(LOW, HIGH)], lambda _: None)[0], UnclearReferenceError)
