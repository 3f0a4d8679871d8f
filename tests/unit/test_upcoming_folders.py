"""The session's half of opening folders before the program does: which are told of, and what becomes of them."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ptserver.errors import ProtocolError
from ptserver.messages import Ahead, Message, Syscall, Taken, Upcoming
from ptserver.sessions import foresight, told_folders
from ptserver.sessions.foresight import Foresight
from ptserver.sessions.lasting_files import LastingFiles
from ptserver.shadow.execute import execute
from stepping.syscalls import SYSCALLS

AT_FDCWD = (1 << 64) - 100
HOW = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
FIRST_OWN = 200


class Session:
    """Opens and looks at files as a program does; what is to be done later is done by `wait`."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self._later: list[Callable[[], None]] = []
        self._ids = 0
        self.foresight = Foresight(
            self.sent.append,
            self._keep,
            lambda seconds, call: self._later.append(call),
            FIRST_OWN,
            LastingFiles(self.sent.append, self._keep, FIRST_OWN, lambda seconds, call: None),
        )

    def _keep(self, fd: int) -> int:
        kept = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN)
        os.close(fd)
        return kept

    def call(self, name: str, path: Path, how: int, outs: dict[int, int], folder: int = AT_FDCWD) -> int:
        self._ids += 1
        args = (folder, 8, how if name == "openat" else 8, 0, 0, 0)
        message = Syscall(self._ids, 1, 1, name, args, {1: os.fsencode(path)}, outs)
        executed = execute(SYSCALLS[name], args, message.ins, outs)
        self.foresight.look(message, executed)
        return executed[0]

    def open(self, path: Path, how: int = HOW) -> None:
        os.close(self.call("openat", path, how, {}))

    def told(self) -> list[str]:
        """Return the names of the folders that were told of since."""
        while self._later:
            self._later.pop(0)()
        return [os.path.basename(m.path).decode() for m in self.sent if isinstance(m, Upcoming)]

    def upcoming(self, name: str) -> Upcoming:
        (found,) = [m for m in self.sent if isinstance(m, Upcoming) and m.path.endswith(os.fsencode(name))]
        return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for number in range(20):
        (tmp_path / f"d{number:02}" / "inner").mkdir(parents=True)
        (tmp_path / f"d{number:02}" / "file").write_bytes(b"x" * number)
    return tmp_path


def free_number() -> int:
    number = os.open("/", os.O_RDONLY)
    os.close(number)
    return number


def test_a_program_that_walks_is_told_of_the_next_folders(tree: Path) -> None:
    session = Session()
    session.open(tree)
    assert session.told() == []
    session.open(tree / "d00")
    assert session.told() == ["inner", "d01", "d02", "d03"]
    number = free_number()
    session.foresight.taken(Taken(session.upcoming("d01").ahead.id, number))
    assert os.readlink(f"/proc/self/fd/{number}") == str(tree / "d01")
    assert not os.get_inheritable(number)
    os.close(number)
    assert session.told()[4:] == ["inner", "d04"]


def test_what_is_told_is_what_an_open_gives(tree: Path) -> None:
    session = Session()
    session.open(tree)
    session.open(tree / "d00")
    session.told()
    session.open(tree / "d02")
    (by_open,) = [m for m in session.sent[-1:] if isinstance(m, Ahead)]
    upcoming = session.upcoming("d02")
    assert upcoming.how == HOW
    until_times = slice(0, 72)  # the first listing has set the access time
    assert (upcoming.ahead.flags, upcoming.ahead.stat[until_times]) == (
        by_open.flags,
        by_open.stat[until_times],
    )
    assert upcoming.ahead.listing == by_open.listing


def test_attributes_are_told_of_a_whole_folder_once_one_was_wanted(tree: Path) -> None:
    session = Session()
    session.open(tree)
    session.call("newfstatat", tree / "d05", 0, {2: 144})
    (ahead,) = [m for m in session.sent[1:] if isinstance(m, Ahead)]
    assert sorted(named.name for named in ahead.names) == [b"d%02d" % number for number in range(20)]
    assert [os.stat(tree / "d05").st_ino.to_bytes(8, "little")] == [
        named.stat[8:16] for named in ahead.names if named.name == b"d05"
    ]
    session.call("newfstatat", tree / "d06", 0, {2: 144})
    assert len([m for m in session.sent if isinstance(m, Ahead)]) == 2


@pytest.mark.parametrize("order", ["names", "folder"])
def test_a_large_folder_is_told_of_piece_by_piece_as_it_is_gone_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    for module in (foresight, told_folders):
        monkeypatch.setattr(module, "NAMES", 64)
    for number in range(190):
        (tmp_path / f"file{number}").touch()
    session = Session()
    session.open(tmp_path)
    names = os.listdir(tmp_path)
    told: set[bytes] = set()
    asked = 0
    for name in sorted(names) if order == "names" else names:
        if os.fsencode(name) not in told:
            asked += 1
            before = len(session.sent)
            session.call("newfstatat", tmp_path / name, 0, {2: 144})
            (ahead,) = session.sent[before:]
            assert isinstance(ahead, Ahead)
            told |= {named.name for named in ahead.names}
            assert os.fsencode(name) in told
    assert told == {os.fsencode(name) for name in names}
    assert asked <= 6
    before = len(session.sent)
    session.call(
        "newfstatat", tmp_path / names[0], 0, {2: 144}
    )  # which was told; something must have changed
    assert len(session.sent) == before


def test_entries_may_be_seen_from_a_descriptor(tree: Path) -> None:
    session = Session()
    folder = os.open(tree, os.O_RDONLY)
    try:
        for number in range(3):
            session.call("newfstatat", Path(f"d{number:02}"), 0, {2: 144}, folder=folder)
            assert len(session.sent) == bool(number)
        (ahead,) = session.sent
        assert isinstance(ahead, Ahead)
        assert len(ahead.names) == 20
        session.foresight.forget(folder, folder)
        session.call("newfstatat", Path("d03"), 0, {2: 144}, folder=folder)
        assert len(session.sent) == 1
    finally:
        os.close(folder)


def test_who_does_not_want_them_is_soon_told_of_no_more(tree: Path) -> None:
    session = Session()
    session.open(tree)
    for number in range(0, 20, 4):
        session.open(tree / f"d{number:02}")
        session.told()
        for message in session.sent:
            if isinstance(message, Upcoming):
                session.foresight.taken(Taken(message.ahead.id, -1))
        session.sent = [m for m in session.sent if not isinstance(m, Upcoming)]
    session.open(tree / "d01")
    assert session.told() == []


def test_what_could_do_something_when_it_is_opened_is_not(tree: Path) -> None:
    session = Session()
    session.open(tree)
    session.open(tree / "d00", os.O_RDONLY)
    assert session.told() == []


@pytest.mark.parametrize("number", [0, FIRST_OWN, FIRST_OWN + 10_000_000])
def test_a_host_cannot_put_a_folder_anywhere_else(tree: Path, number: int) -> None:
    session = Session()
    session.open(tree)
    session.open(tree / "d00")
    session.told()
    taken = Taken(session.upcoming("d01").ahead.id, number)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(ProtocolError, match="not free"):
        session.foresight.taken(taken)
    assert len(os.listdir("/proc/self/fd")) == len(before) - 1
    with pytest.raises(ProtocolError, match="not told"):
        session.foresight.taken(taken)
