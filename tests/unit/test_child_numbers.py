"""What processes are called in a run that is to be repeatable."""

import struct

from ptserver.emulated.child_numbers import REPEATABLE_PID, ChildNumbers

REAL, CHILD = 31_000, 31_007
NONE = (0, 0, 0, 0, 0)


def with_child() -> tuple[ChildNumbers, int]:
    numbers = ChildNumbers(REAL)
    number = numbers.next()
    numbers.add(number, CHILD)
    return numbers, number


def test_numbers_are_the_same_whatever_the_kernel_chose() -> None:
    first, second = ChildNumbers(5), ChildNumbers(77)
    assert [first.next() for _ in range(3)] == [second.next() for _ in range(3)]


def test_children_of_children_have_other_numbers() -> None:
    parent, number = with_child()
    parent.become(number, CHILD)
    grandchild = parent.next()
    assert grandchild not in (number, REPEATABLE_PID, with_child()[0].next())
    assert 0 < grandchild < 1 << 22


def test_a_child_of_a_child_is_known_to_all() -> None:
    parent, child = ChildNumbers(REAL), ChildNumbers(REAL)
    number = parent.next()
    child._births_file = parent._births_file  # as fork(2) leaves it
    parent.add(number, CHILD)
    child.become(number, CHILD)
    grandchild = child.next()
    child.add(grandchild, CHILD + 1)
    assert parent.to_program("wait4", CHILD + 1, {}) == (grandchild, {})
    assert parent.real(grandchild) == CHILD + 1
    assert parent.to_program("wait4", CHILD + 2, {}) == (CHILD + 2, {})
    parent.close()


def test_the_kernel_is_asked_for_its_own_numbers() -> None:
    numbers, number = with_child()
    assert numbers.real(number) == CHILD
    assert numbers.to_host("kill", (number, 9, 0, 0, 0, 0))[0] == CHILD
    group = (1 << 64) - number
    assert numbers.to_host("kill", (group, 9, 0, 0, 0, 0))[0] == (1 << 64) - CHILD
    assert numbers.to_host("setpgid", (number, number, 0, 0, 0, 0))[:2] == (CHILD, CHILD)
    everybody = ((1 << 64) - 1, 0, 0, 0, 0, 0)
    assert numbers.to_host("wait4", everybody) == everybody
    a_descriptor = (3, number, 0, 0, 0, 0)
    assert numbers.to_host("waitid", a_descriptor) == a_descriptor


def test_the_program_is_told_its_own_numbers_and_no_use_of_this_machine() -> None:
    numbers, number = with_child()
    status, usage = struct.pack("<i", 256), bytes(range(144))
    value, outs = numbers.to_program("wait4", CHILD, {1: status, 3: usage})
    assert (value, outs) == (number, {1: status, 3: bytes(144)})
    info = struct.pack("<iiiiii", 17, 0, 1, 0, CHILD, 0).ljust(128, b"\0")
    _, outs = numbers.to_program("waitid", 0, {2: info})
    assert struct.unpack_from("<iiiiii", outs[2]) == (17, 0, 1, 0, number, 0)
    assert numbers.to_program("getppid", REAL, {}) == (REPEATABLE_PID, {})
    assert numbers.to_program("getppid", 1, {}) == (1, {})
