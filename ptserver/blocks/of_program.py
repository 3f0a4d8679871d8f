"""The basic blocks of a Go program's file, with the cache that belongs to it."""

import hashlib

from goabi.binary import GoBinary
from stepping.block_cache import BlockCache
from stepping.block_map import BlockMap


def open_blocks(binary: GoBinary, *, cached: bool = True) -> BlockMap:
    """Return the blocks of *binary*, at link-time addresses; valid while that is open. cached: on disk, too."""
    if not cached:
        return BlockMap(binary.arch.name, binary.elf.read)
    module = binary.module
    start, end = module.min_pc, module.max_pc
    build_id = binary.elf.go_build_id or binary.elf.gnu_build_id
    # A program may be built without an id.
    key = build_id.encode() if build_id else hashlib.sha256(binary.elf.read(start, end - start)).digest()
    return BlockMap(
        binary.arch.name,
        binary.elf.read,
        BlockCache(b"%s %x %s" % (binary.arch.name.encode(), end, key), start),
    )
