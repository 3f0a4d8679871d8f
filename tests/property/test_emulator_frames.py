"""A signal's frame brings back every register and the mask, on both architectures, wherever the stack is."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepping.emulation.abi import abi_of
from stepping.emulation.address_space import AddressSpace
from stepping.emulation.registers import Context
from stepping.emulation.signals import make_info
from stepping.emulator import Processor

STACK, STACK_BYTES = 0x40_0000, 64 << 10
WORDS = st.integers(0, (1 << 64) - 1)


@pytest.fixture(scope="module", params=["amd64", "arm64"])
def machine(request: pytest.FixtureRequest) -> Iterator[tuple[Processor, AddressSpace, Context]]:
    processor = Processor(request.param, lambda: None)
    space = AddressSpace(processor)
    space.map(STACK, STACK_BYTES, 3)
    context = Context(processor)
    context.save()
    yield processor, space, context
    context.free()
    processor.close()
    space.close()


@given(data=st.data(), mask=WORDS, lead=st.integers(0, 4096))
def test_a_frame_restores_what_it_saved(
    machine: tuple[Processor, AddressSpace, Context], data: st.DataObject, mask: int, lead: int
) -> None:
    processor, space, context = machine
    abi = abi_of(processor.arch)
    count = len(context.read_general())
    flags = data.draw(st.sampled_from([0, 0x80000000, 0x60000000, 0xF0000000]))
    if processor.arch == "amd64":
        flags = data.draw(st.sampled_from([0x2, 0x46, 0x8D7])) & ~0x100
    general = [*data.draw(st.lists(WORDS, min_size=count - 1, max_size=count - 1)), flags]
    vectors = data.draw(st.binary(min_size=16, max_size=16)) * (len(context.read_vectors()) // 16)
    context.write_general(general)
    context.write_vectors(vectors)
    before = context.read_general()
    info = make_info(23, -6, 1, 2)
    top = STACK + STACK_BYTES - lead
    sp = abi.frame.push(context, space, top, info, mask, (STACK, 0, STACK_BYTES), 0x1234, 0)
    assert STACK <= sp < top
    assert context.sp == sp
    if processor.arch == "amd64":
        assert sp % 16 == 8
        context.sp = sp + 8  # the handler's return
    else:
        assert sp % 16 == 0
    context.write_vectors(bytes(len(vectors)))
    assert abi.frame.pop(context, space) == mask
    assert context.read_general() == before
    assert context.read_vectors() == vectors
