"""Where calls belong whose arguments name descriptors and paths, and what local descriptors stand for."""

import os
from collections.abc import Iterator

import pytest

from ptserver.rules.paths import AT_FDCWD, needs_folder, place
from ptserver.rules.rules import Rules, parse_rule
from ptserver.rules.table import LocalTable
from stepping.syscalls import SYSCALLS

CWD = AT_FDCWD % 2**64
RULES = Rules([parse_rule("local", "/here", "test"), parse_rule("remote", "/here/not", "test")])


@pytest.fixture
def table() -> Iterator[LocalTable]:
    made = LocalTable()
    made.folder = "/work"
    made.files[5], made.paths[5] = os.open("/", os.O_PATH | os.O_CLOEXEC), "/here/folder"
    made.paths[6] = "/srv"
    yield made
    made.close()


@pytest.mark.parametrize(
    ("name", "args", "ins", "sides", "path"),
    [
        ("openat", (CWD,), {1: b"/here/x"}, {"local"}, "/here/x"),
        ("openat", (CWD,), {1: b"/there/x"}, {"remote"}, "/there/x"),
        ("openat", (CWD,), {1: b"/here/not/x"}, {"remote"}, "/here/not/x"),
        ("openat", (CWD,), {1: b"x"}, {"remote"}, "/work/x"),
        ("openat", (CWD,), {1: b"../here/x"}, {"local"}, "/here/x"),
        ("openat", (5,), {1: b"x"}, {"local"}, "/here/folder/x"),
        ("openat", (5,), {1: b"../not/x"}, {"remote"}, "/here/not/x"),
        ("openat", (6,), {1: b"x"}, {"remote"}, "/srv/x"),
        ("openat", (6,), {1: b"../here/x"}, {"local"}, "/here/x"),
        ("openat", (7,), {1: b"x"}, {"remote"}, None),
        ("newfstatat", (5,), {1: b""}, {"local"}, None),
        ("newfstatat", (6,), {1: b""}, {"remote"}, None),
        ("openat", (CWD,), {}, {"remote"}, None),
        ("stat", (1,), {0: b"/here"}, {"local"}, "/here"),
        ("read", (5,), {}, {"local"}, None),
        ("read", (6,), {}, {"remote"}, None),
        ("renameat", (CWD, 1, CWD, 1), {1: b"/here/a", 3: b"/here/b"}, {"local"}, "/here/b"),
        ("renameat", (CWD, 1, CWD, 1), {1: b"/here/a", 3: b"/b"}, {"local", "remote"}, "/b"),
        ("copy_file_range", (5, 0, 6, 0), {}, {"local", "remote"}, None),
        ("symlinkat", (1, CWD, 1), {0: b"/here/a", 2: b"/x"}, {"remote"}, "/x"),
    ],
)
def test_where_calls_belong(
    table: LocalTable,
    name: str,
    args: tuple[int, ...],
    ins: dict[int, bytes],
    sides: set[str],
    path: str | None,
) -> None:
    registers = (*args, *[0] * (6 - len(args)))
    placed = place(SYSCALLS[name], registers, ins, table, RULES)
    assert placed.sides == sides
    assert placed.path == path


def test_arguments_are_made_right_for_their_side(table: LocalTable) -> None:
    placed = place(SYSCALLS["read"], (5, 1, 8, 0, 0, 0), {}, table, RULES)
    assert placed.args == [table.files[5], 1, 8, 0, 0, 0]
    placed = place(SYSCALLS["openat"], (5, 1, 0, 0, 0, 0), {1: b"../x/"}, table, RULES)
    assert (placed.args[0], placed.ins[1]) == (CWD, b"/here/folder/../x/")  # the kernel resolves it here
    placed = place(SYSCALLS["openat"], (5, 1, 0, 0, 0, 0), {1: b"../not/x/"}, table, RULES)
    assert (placed.changed, placed.args[0], placed.ins[1]) == (True, CWD, b"/here/not/x/")
    placed = place(SYSCALLS["openat"], (CWD, 1, 0, 0, 0, 0), {1: b"x"}, table, RULES)
    assert (placed.changed, placed.ins[1]) == (False, b"x")
    table.folder, table.folder_is_local = "/here", True
    placed = place(SYSCALLS["openat"], (CWD, 1, 0, 0, 0, 0), {1: b"../etc/x"}, table, RULES)
    assert (placed.sides, placed.changed, placed.ins[1]) == ({"remote"}, True, b"/etc/x")


def test_which_calls_need_the_working_directory() -> None:
    openat, stat, read = SYSCALLS["openat"], SYSCALLS["stat"], SYSCALLS["read"]
    assert needs_folder(openat, (CWD, 1), {1: b"x"})
    assert not needs_folder(openat, (CWD, 1), {1: b"/x"})
    assert not needs_folder(openat, (6, 1), {1: b"x"})
    assert needs_folder(stat, (1,), {0: b"x"})
    assert not needs_folder(read, (0,), {})


def test_duplicates_and_children_have_descriptors_of_their_own(table: LocalTable) -> None:
    table.duplicate(5, 8, close_on_exec=True)
    child = table.fork()
    fds = [table.files[5], table.files[8], child.files[5], child.files[8]]
    assert len(set(fds)) == 4
    assert not os.get_inheritable(table.files[8])
    assert {os.fstat(fd).st_ino for fd in fds} == {os.stat("/").st_ino}
    table.drop_range(5, 8)
    assert not table.knows(5)
    assert os.fstat(child.files[8])
    child.close()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_number_that_changes_its_meaning(table: LocalTable) -> None:
    fd = table.files[5]
    table.duplicate(6, 5, close_on_exec=False)
    assert 5 not in table.files
    assert table.paths[5] == "/srv"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    table.duplicate(5, 5, close_on_exec=False)
    assert table.paths[5] == "/srv"
