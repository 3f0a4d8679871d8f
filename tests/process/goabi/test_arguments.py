"""Arguments of a function at its first instruction, in registers and on the stack, as gdb stops there."""

import pytest

from goabi.binary import GoBinary
from goabi.callconv import read_parameters
from goabi.sched import GoRuntime
from goabi.values import GoInterface, GoPointer, GoSequence, GoString, GoStruct, ValueReader
from tests.gofixtures import build
from tests.process.goabi.live import ProcMemory, load_entry, needs
from tests.process.goabi.test_crossings import held_at
from tests.process.goabi.test_goroutines import for_versions


@needs("gdb")
@pytest.mark.parametrize(("go", "flags"), for_versions(()))
def test_arguments_at_entry(go: str, flags: tuple[str, ...]) -> None:
    path = build("goabi_args", go=go, flags=flags)
    with GoBinary.open(path) as binary:
        function = binary.functions.find_function_by_name("main.take")
        assert function is not None
        assert binary.dwarf is not None
        parameters = binary.dwarf.find_parameters("main.take")
        assert parameters is not None
        assert [parameter.is_result for parameter in parameters] == [False] * 8 + [True] * 2
        with held_at(path, "", [function.entry]) as (pid, registers):
            (stopped,) = (own for own in registers.values() if own["rip"] == function.entry)
            memory = ProcMemory(pid)
            try:
                runtime = GoRuntime(binary, memory, binary.elf.load_bias(load_entry(pid)))
                found = read_parameters(binary.arch, parameters, stopped, memory, ValueReader(runtime))
            finally:
                memory.close()
        assert list(found) == ["flag", "small", "text", "place", "triple", "list", "problem", "rest"]
        assert found["flag"] is True
        assert found["small"] == -3
        assert found["text"] == GoString(b"text", 4)
        assert found["place"] == GoStruct("main.point", {"X": 4, "Y": 5})
        triple, list_, problem = found["triple"], found["list"], found["problem"]
        assert isinstance(triple, GoSequence)
        assert triple.items == (6, 7, 8)
        assert isinstance(list_, GoSequence)
        assert list_.items == (9, 10)
        assert isinstance(problem, GoInterface)
        assert problem.type_name == "*errors.errorString"
        assert isinstance(problem.value, GoPointer)
        assert found["rest"] == GoString(b"rest", 4)
