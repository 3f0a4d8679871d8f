"""The instructions of a running program, one by one, each decoded once: what those who step it look up at each stop.

Code that is changed after it was decoded here is not noticed.
"""

from collections.abc import Callable
from typing import NamedTuple

from stepping.blocks import Decoder
from stepping.instructions import Flow
from stepping.stop_results import MAX_INSTRUCTION_BYTES

#: So many are looked at in one go.
_CODE_BYTES = 96
_GOES_ON = frozenset({Flow.NEXT, Flow.BRANCH})
#: Returns to the address on the stack, whatever else they take from it; with the prefixes that compilers put there.
_NEAR_RETURNS = (b"\xc3", b"\xc2", b"\xf3\xc3", b"\xf2\xc3")


class Decoded(NamedTuple):
    """An instruction: the address behind it, where it leads, `Instruction.target`.

    is_near_return: whether it returns, on amd64, to the address at the top of the stack.
    """

    end: int
    flow: Flow
    target: int
    is_near_return: bool


class DecodedCode:
    """The code of one program. read: returns it (address, size), or less."""

    def __init__(self, decoder: Decoder, read: Callable[[int, int], bytes]) -> None:
        self._decoder = decoder
        self._read = read
        self._known: dict[int, Decoded] = {}

    def at(self, address: int) -> Decoded | None:
        """Return the instruction at *address*; None if nothing can be read there."""
        if address not in self._known:
            self._decode(address)
        return self._known.get(address)

    def flow_at(self, address: int) -> Flow:
        """Return where the instruction at *address* leads; where nothing can be read, into a trap."""
        decoded = self.at(address)
        return decoded.flow if decoded is not None else Flow.TRAP

    def _decode(self, address: int) -> None:
        code = self._read(address, _CODE_BYTES)
        for start, size, traits in self._decoder.iter_traits(code, address):
            offset = start - address
            if len(code) == _CODE_BYTES and offset > len(code) - MAX_INSTRUCTION_BYTES:
                break  # it may go on behind what was read
            is_near_return = traits.flow is Flow.RETURN and code.startswith(_NEAR_RETURNS, offset)
            self._known[start] = Decoded(start + size, traits.flow, traits.target, is_near_return)
            if traits.flow not in _GOES_ON:
                break  # what is behind may be no code
