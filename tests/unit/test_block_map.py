"""Cutting code into blocks, local blocks, and the cache of blocks on disk."""

from pathlib import Path

import pytest

from ptserver.blocks.listing import schema_text
from stepping.block_cache import Block, BlockCache, cache_folder
from stepping.block_map import BlockMap, cut_blocks
from stepping.blocks import Decoder
from stepping.instructions import Flow, Touch

START = 0x401000
# test eax,eax; je +5; mov rbx,[rcx]; jmp +2; inc eax; ret; padding
CODE = bytes.fromhex("85c0 7405 488b19 eb02 ffc0 c3 cccccc")

BLOCKS = [
    Block(0x401000, 4, 2, Flow.BRANCH, Touch.NOTHING, 0x401009),
    Block(0x401004, 5, 2, Flow.JUMP, Touch.MEMORY, 0x40100B),
    Block(0x401009, 2, 1, Flow.NEXT, Touch.NOTHING, 0),
    Block(0x40100B, 1, 1, Flow.RETURN, Touch.STACK, 0),
]


def read(code: bytes, start: int = START) -> "BlockMap":
    return BlockMap("amd64", lambda address, size: code[address - start : address - start + size])


def test_blocks() -> None:
    assert cut_blocks(Decoder("amd64"), CODE, START) == BLOCKS


def test_blocks_that_end_with_the_function() -> None:
    assert cut_blocks(Decoder("amd64"), b"\x90\x90", START) == [
        Block(START, 2, 2, Flow.NEXT, Touch.NOTHING, 0)
    ]
    assert cut_blocks(Decoder("amd64"), b"\xcc\xcc", START) == []
    assert cut_blocks(Decoder("amd64"), b"", START) == []


def test_arm64_blocks() -> None:
    # cbz x0, +8; ldr x0, [sp, #8]; ret; padding
    code = bytes.fromhex("400000b4 e00740f9 c0035fd6 00000000")
    assert cut_blocks(Decoder("arm64"), code, START) == [
        Block(START, 4, 1, Flow.BRANCH, Touch.NOTHING, START + 8),
        Block(START + 4, 4, 1, Flow.NEXT, Touch.STACK, 0),
        Block(START + 8, 4, 1, Flow.RETURN, Touch.NOTHING, 0),
    ]


def test_local_blocks() -> None:
    (local,) = read(CODE).local_blocks(START, START + len(CODE))
    assert local.blocks == (BLOCKS[0], BLOCKS[2], BLOCKS[3])
    assert local.exits == {BLOCKS[1].start}
    assert local.is_open


def test_calls_and_traps_part_local_blocks() -> None:
    code = bytes.fromhex("e8fb0f0000 90 c3 0f0b")  # call 0x402000; nop; ret; ud2
    first, second = read(code).local_blocks(START, START + len(code))
    assert first.exits == {0x402000}
    assert [block.start for block in second.blocks] == [START + 5]


def test_remote_variables_are_not_local() -> None:
    code = bytes.fromhex("488b05f9ff0000 c3")  # mov rax, [rip + 0xfff9]; ret
    blocks = read(code)
    (block,) = blocks.blocks_of(START, START + len(code))
    assert block.touch == Touch.GLOBAL | Touch.STACK
    variable = 0x411000
    assert blocks.is_local(block)
    assert not blocks.is_local(block, [(variable, variable + 8)])
    # An access may begin in front of the range and reach into it.
    assert not blocks.is_local(block, [(variable + 8, variable + 16)])
    assert blocks.is_local(block, [(variable - 8, variable)])


def test_cache(tmp_path: Path) -> None:
    cache = BlockCache(b"key", START, tmp_path)
    assert cache.find(START) is None
    cache.add({START: BLOCKS})
    cache.add({START + 0x100: BLOCKS[:1], START - 0: BLOCKS})
    again = BlockCache(b"key", START, tmp_path)
    assert len(again) == 2
    assert again.find(START) == BLOCKS
    assert again.find(START + 0x100) == BLOCKS[:1]
    assert again.find(START + 1) is None
    assert BlockCache(b"other", START, tmp_path).find(START) is None
    assert [path.suffix for path in tmp_path.iterdir()] == [".blocks"]


def test_what_is_cached_is_not_decoded(tmp_path: Path) -> None:
    def fail(address: int, size: int) -> bytes:
        raise AssertionError(address)

    first = BlockMap("amd64", lambda address, size: CODE, BlockCache(b"key", START, tmp_path))
    assert first.blocks_of(START, START + len(CODE)) == BLOCKS
    first.save()
    again = BlockMap("amd64", fail, BlockCache(b"key", START, tmp_path))
    assert again.blocks_of(START, START + len(CODE)) == BLOCKS


@pytest.mark.parametrize("where", [0, 9, 13, 17, 21, 24, 33, 50, -1])
def test_a_damaged_cache_is_none(tmp_path: Path, where: int) -> None:
    cache = BlockCache(b"key", START, tmp_path)
    cache.add({START: BLOCKS})
    damaged = bytearray(cache.path.read_bytes())
    damaged[where] ^= 0x40
    cache.close()
    cache.path.write_bytes(damaged)
    again = BlockCache(b"key", START, tmp_path)
    assert len(again) == 0
    again.add({START: BLOCKS})
    assert BlockCache(b"key", START, tmp_path).find(START) == BLOCKS


@pytest.mark.parametrize("size", [0, 1, 31, 32, 60, 100])
def test_a_cache_cut_short_is_none(tmp_path: Path, size: int) -> None:
    cache = BlockCache(b"key", START, tmp_path)
    cache.add({START: BLOCKS})
    whole = cache.path.read_bytes()
    cache.close()
    cache.path.write_bytes(whole[:size])
    assert BlockCache(b"key", START, tmp_path).find(START) is None


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = BlockCache(b"key", START, tmp_path / "file")
    cache.add({START: BLOCKS})
    assert cache.find(START) is None


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert cache_folder() == Path("/var/cache/me/ptserver/blocks")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/ptserver/blocks")


def test_published_schema_is_this_one() -> None:
    assert (Path(__file__).parents[2] / "docs/blocks.schema.json").read_text() == schema_text()
