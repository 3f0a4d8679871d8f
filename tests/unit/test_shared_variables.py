"""Variables shared by name: between objects' users and processes, within bounds."""

import os
from collections.abc import Iterator

import pytest

from ptserver.remote_memory.shared import MAX_VARIABLE_BYTES, SharedVariables, VariableError


@pytest.fixture
def variables() -> Iterator[SharedVariables]:
    made = SharedVariables()
    yield made
    made.close()


def word(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


def test_the_first_value_stays(variables: SharedVariables) -> None:
    assert variables.declare("main.a", word(5)) == word(5)
    variables.set("main.a", 0, word(6))
    assert variables.declare("main.a", word(5)) == word(6)
    with pytest.raises(VariableError) as failure:
        variables.declare("main.a", word(1, 4))
    assert failure.value.code == "EEXIST"


def test_operations(variables: SharedVariables) -> None:
    variables.declare("x", bytes(16))
    for operation, operand, expected, after in [
        ("add", word(3), b"", 3),
        ("add", word((1 << 64) - 5), b"", (1 << 64) - 2),
        ("and", word(0xFF), b"", 0xFE),
        ("or", word(1), b"", 0xFF),
        ("xor", word(0x0F), b"", 0xF0),
        ("exchange", word(7), b"", 7),
        ("compare_exchange", word(9), word(8), 7),
        ("compare_exchange", word(9), word(7), 9),
    ]:
        before = variables.get("x", 8, 8)
        assert variables.atomic("x", 8, operation, operand, expected) == before  # type: ignore[arg-type]
        assert variables.get("x", 8, 8) == word(after)
    assert variables.get("x", 0, 8) == bytes(8)
    assert variables.atomic("x", 0, "compare_exchange", bytes(range(16)), bytes(8) + word(9)) == bytes(
        8
    ) + word(9)
    assert variables.get("x", 0, 16) == bytes(range(16))


@pytest.mark.parametrize(
    ("code", "name", "offset", "size"),
    [
        ("ENOENT", "y", 0, 8),
        ("ERANGE", "x", 1, 8),
        ("ERANGE", "x", -1, 1),
        ("ERANGE", "x", 8, 1),
        ("ERANGE", "x", 0, 0),
    ],
)
def test_what_is_out_of_bounds(
    variables: SharedVariables, code: str, name: str, offset: int, size: int
) -> None:
    variables.declare("x", bytes(8))
    with pytest.raises(VariableError) as failure:
        variables.get(name, offset, size)
    assert failure.value.code == code


def test_bad_declarations_and_operands(variables: SharedVariables) -> None:
    for name, initial in [("", b"1"), ("n" * 256, b"1"), ("x", b""), ("x", bytes(MAX_VARIABLE_BYTES + 1))]:
        with pytest.raises(VariableError):
            variables.declare(name, initial)
    variables.declare("x", bytes(8))
    for operand, expected in [(b"123", b""), (b"", b""), (b"1", b"12")]:
        with pytest.raises(VariableError):
            variables.atomic("x", 0, "compare_exchange", operand, expected)


def test_room_ends(variables: SharedVariables) -> None:
    for number in range(63):
        variables.declare(f"v{number}", bytes(MAX_VARIABLE_BYTES))
    variables.declare("v63", bytes(MAX_VARIABLE_BYTES - 64))
    variables.declare("v64", bytes(64))
    with pytest.raises(VariableError) as failure:
        variables.declare("v65", bytes(1))
    assert failure.value.code == "ENOSPC"


def test_processes_share(variables: SharedVariables) -> None:
    """Children that add at the same time lose nothing, and see each other's declarations."""
    variables.declare("sum", bytes(8))
    children = []
    for number in range(3):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for _ in range(500):
                    variables.atomic("sum", 0, "add", word(1))
                variables.declare("late", word(number + 1))
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    assert variables.get("sum", 0, 8) == word(1500)
    assert variables.declare("late", word(9)) in (word(1), word(2), word(3))


def test_who_dies_with_a_lock_leaves_it_to_the_next(variables: SharedVariables) -> None:
    variables.declare("x", word(5))
    pid = os.fork()
    if pid == 0:
        variables.adopt().set("x", 0, word(6))
        os._exit(0)  # without a release
    assert os.waitpid(pid, 0)[1] == 0
    assert variables.atomic("x", 0, "add", word(1)) == word(6)
    assert variables.get("x", 0, 8) == word(7)
