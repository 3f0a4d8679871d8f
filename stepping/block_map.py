"""The basic blocks of a program's functions: decoded when asked for, kept in a cache (`block_cache`).

A block is a run of instructions that is entered at its first one, as far as direct jumps tell, and left after its
last one, which is the only one that may go elsewhere than to the next (`instructions.Flow`). Where an indirect jump
leads (the table of a switch) is not known, so such a jump may enter a block in its middle; what the block may touch
holds for its parts, too.

A *local block* is a maximal run of blocks of one function, connected by jumps or by following each other, none of
which can touch anything but the thread's stack and known variables, makes a syscall, or traps on purpose. It can be
executed natively in one go wherever the program's heap may live.

Not trusted: the code. A map belongs to one thread.
"""

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from stepping.block_cache import Block, BlockCache
from stepping.blocks import Decoder
from stepping.instructions import Flow, Instruction, Touch
from stepping.syscalls.model import Arch

_PADDING = {"amd64": b"\xcc", "arm64": bytes(4)}
_TOUCHES = [Touch(value) for value in range(2 * max(Touch))]
_FLOWS = [Flow(value) for value in range(len(Flow))]
_LAST_JUMP, _LAST_DIRECT = int(Flow.BRANCH), int(Flow.CALL)

#: Half-open ranges of addresses.
Ranges = Collection[tuple[int, int]]


class LocalBlock(NamedTuple):
    """A maximal run of blocks that is executed natively in one go.

    blocks: in order of address. exits: where execution may be afterwards, as far as it is known; `is_open` says that
    a return or an indirect jump may lead anywhere.
    """

    blocks: tuple[Block, ...]
    exits: frozenset[int]
    is_open: bool


def cut_blocks(decoder: Decoder, code: bytes, start: int) -> list[Block]:
    """Return the blocks of a function whose code begins at *start*, in order of address; padding is left out."""
    ends, instructions = decoder.scan(code, start)
    end_of_code = start + len(code)
    # Blocks begin behind whatever may go elsewhere, and where direct jumps lead.
    leaders = set()
    at = start
    for end, plain in zip(ends, instructions, strict=True):
        flow = plain[0]
        if flow:
            leaders.add(end)
            if flow <= _LAST_JUMP and start <= (target := at + plain[2]) < end_of_code:
                leaders.add(target)
        at = end
    _drop_padding(ends, code, start, _PADDING[decoder.arch])
    blocks: list[Block] = []
    append, flows, touches = blocks.append, _FLOWS, _TOUCHES
    # Plain numbers here: to combine enumeration members takes longer than to decode the instructions.
    first = at = start
    count = touch = 0
    for end, plain in zip(ends, instructions, strict=False):
        count += 1
        touch |= plain[1]
        if end in leaders:
            flow, _, target = plain
            if flow and flow <= _LAST_DIRECT:
                target += at
            append(Block(first, end - first, count, flows[flow], touches[touch], target if flow else 0))
            first, count, touch = end, 0, 0
        at = end
    if count:
        append(Block(first, ends[-1] - first, count, Flow.NEXT, touches[touch], 0))
    return blocks


def _drop_padding(ends: list[int], code: bytes, start: int, padding: bytes) -> None:
    """Take off the ends of instructions that only fill up the code."""
    while ends:
        at = ends[-2] if len(ends) > 1 else start
        if ends[-1] - at != len(padding) or code[at - start : ends[-1] - start] != padding:
            return
        ends.pop()


class BlockMap:
    """The blocks of one program, at link-time addresses.

    read: returns the program's code (address, size). cache: where blocks are looked up first, and kept by `save`.
    """

    def __init__(
        self, arch: Arch, read: Callable[[int, int], bytes], cache: BlockCache | None = None
    ) -> None:
        self._decoder: Decoder | None = None
        self._arch: Arch = arch
        self._read = read
        self._cache = cache
        self._decoded: dict[int, list[Block]] = {}

    def blocks_of(self, start: int, end: int) -> list[Block]:
        """Return the blocks of the function in [start, end), in order of address.

        Raises:
            Whatever *read* raises: the code cannot be read.
        """
        blocks = self._decoded.get(start)
        if blocks is None and self._cache is not None:
            blocks = self._cache.find(start)
        if blocks is None:
            blocks = cut_blocks(self._get_decoder(), self._read(start, end - start), start)
            self._decoded[start] = blocks
        return blocks

    def instructions_of(self, block: Block) -> list[Instruction]:
        """Return the instructions of *block*."""
        code = self._read(block.start, block.size)
        return list(self._get_decoder().iter_instructions(code, block.start))

    def is_local(self, block: Block, remote: Ranges = ()) -> bool:
        """Whether *block* can touch nothing but the stack and variables outside of the *remote* ranges."""
        if not block.touch.is_local or block.flow in (Flow.SYSCALL, Flow.TRAP):
            return False
        if not remote or not block.touch & Touch.GLOBAL:
            return True
        targets = [one.target for one in self.instructions_of(block) if one.touch & Touch.GLOBAL]
        return not any(low - _WIDEST_ACCESS < target < high for target in targets for low, high in remote)

    def local_blocks(self, start: int, end: int, remote: Ranges = ()) -> list[LocalBlock]:
        """Return the local blocks of the function in [start, end), in order of address."""
        blocks = self.blocks_of(start, end)
        local = {block.start: block for block in blocks if self.is_local(block, remote)}
        neighbours: dict[int, list[int]] = {at: [] for at in local}
        for block in local.values():
            for successor in _successors(block):
                if successor in local:
                    neighbours[block.start].append(successor)
                    neighbours[successor].append(block.start)
        found = []
        seen: set[int] = set()
        for at in local:
            if at not in seen:
                members = _reachable(at, neighbours)
                seen |= members
                found.append(_local_block([local[one] for one in sorted(members)]))
        return found

    def save(self) -> None:
        """Keep what was decoded, if there is a cache."""
        if self._cache is not None and self._decoded:
            self._cache.add(self._decoded)
            self._decoded = {}

    def _get_decoder(self) -> Decoder:
        if self._decoder is None:
            self._decoder = Decoder(self._arch)
        return self._decoder


#: An access at an address may touch as many bytes behind it (AVX-512, xsave areas aside, which Go does not use).
_WIDEST_ACCESS = 64


def _successors(block: Block) -> Iterator[int]:
    """Yield where execution may be after *block* within the function, as far as it is known."""
    if block.flow in (Flow.JUMP, Flow.BRANCH):
        yield block.target
    # What a call returns to is reached by way of foreign code.
    if block.flow in (Flow.NEXT, Flow.BRANCH):
        yield block.end


def _reachable(start: int, neighbours: dict[int, list[int]]) -> set[int]:
    members, waiting = {start}, [start]
    while waiting:
        for neighbour in neighbours[waiting.pop()]:
            if neighbour not in members:
                members.add(neighbour)
                waiting.append(neighbour)
    return members


def _local_block(blocks: list[Block]) -> LocalBlock:
    starts = {block.start for block in blocks}
    exits: set[int] = set()
    is_open = False
    for block in blocks:
        exits.update(at for at in _successors(block) if at not in starts)
        if block.flow is Flow.CALL:
            exits.add(block.target)
        is_open |= block.flow in (Flow.RETURN, Flow.INDIRECT_JUMP, Flow.INDIRECT_CALL)
    return LocalBlock(tuple(blocks), frozenset(exits), is_open)
