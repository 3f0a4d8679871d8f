"""Every pair of instructions of a Go program for arm64 that names an address in a given range.

Go reaches static data by two instructions, one behind the other: ADRP puts the address of a page into a register, and
an addition, load or store with that register adds the place within the page. So what lies on another page at the same
place is reached by changing the ADRP alone.

Not trusted: the code. An ADRP that leads to the range's page, and is not followed by an instruction of these forms,
makes that unclear.

Source: Arm Architecture Reference Manual, C6.2 (ADRP, ADD immediate, LDR and STR with unsigned offset).
"""

from array import array
from collections.abc import Sequence

from stepping.static_references import Reference, Span, UnclearReferenceError

_PAGE_BITS = 12
_PAGE_BYTES = 1 << _PAGE_BITS
_ADRP, _ADRP_MASK = 0x9000_0000, 0x9F00_0000
_ADD, _ADD_MASK = 0x9100_0000, 0xFFC0_0000
_ACCESS, _ACCESS_MASK = 0x3900_0000, 0x3B00_0000
_VECTOR, _WIDEST = 1 << 26, 1 << 23


def find_page_references(
    code: bytes, address: int, spans: Sequence[Span]
) -> list[list[Reference] | UnclearReferenceError]:
    """Return, for each of *spans*, all references in *code* into it, or why they are not clear.

    code: lies at *address*, a multiple of 4. A reference's place is that of its ADRP (`moved_page`).
    """
    found: list[list[Reference] | UnclearReferenceError] = [[] for _ in spans]
    pages = {page for low, high in spans for page in range(low & -_PAGE_BYTES, high, _PAGE_BYTES)}
    words = array("I", code[: len(code) & -4])
    for index, word in enumerate(words):
        if word & _ADRP_MASK != _ADRP:
            continue
        at = address + 4 * index
        page = (at & -_PAGE_BYTES) + (_pages_of(word) << _PAGE_BITS)
        if page not in pages:
            continue
        offset = _offset_of(words[index + 1] if index + 1 < len(words) else 0, word & 31)
        for number, (low, high) in enumerate(spans):
            references = found[number]
            if isinstance(references, UnclearReferenceError):
                continue
            if offset is None:
                if low & -_PAGE_BYTES <= page < high:
                    found[number] = UnclearReferenceError(at, "names its page in a way of its own")
            elif low <= page + offset < high:
                references.append(Reference(at, page + offset))
    return found


def moved_page(word: int, distance: int) -> int:
    """Return the ADRP *word* so that it leads *distance* bytes, a multiple of 4096, further."""
    pages = _pages_of(word) + (distance >> _PAGE_BITS)
    return word & ~0x60FF_FFE0 | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5


def _pages_of(word: int) -> int:
    """Return how many pages further an ADRP leads."""
    pages = (word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3
    return pages - (pages >> 20 << 21)


def _offset_of(word: int, register: int) -> int | None:
    """Return what the instruction *word* adds to *register*; None if it is none of the known forms."""
    if word >> 5 & 31 != register:
        return None
    immediate = word >> 10 & 0xFFF
    if word & _ADD_MASK == _ADD:
        return immediate
    if word & _ACCESS_MASK == _ACCESS:
        is_widest = word & _VECTOR and word & _WIDEST
        return immediate << (4 if is_widest else word >> 30)
    return None
