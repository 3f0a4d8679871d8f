"""Of whatever happens to a file that is known until it changes, or to its path, the host hears in time."""

import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ptserver.errors import ProtocolError
from ptserver.messages import Message, Reopened, Revoked
from ptserver.sessions import lasting_files
from ptserver.sessions.lasting_files import LastingFiles

FIRST_OWN = 5000


class Session:
    """A session that has `LastingFiles`, and what it sends."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.later: list[Callable[[], None]] = []
        self.own: list[int] = []
        self.files = LastingFiles(
            self.sent.append, self._keep, FIRST_OWN, lambda seconds, call: self.later.append(call)
        )

    def _keep(self, fd: int) -> int:
        self.own.append(fd)
        return fd

    def open(self, path: Path | str, times: int = 2) -> int:
        """Open a file as a program does; return its number."""
        number = 0
        for _ in range(times):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            number = self.files.opened(os.fsencode(path), os.O_RDONLY | os.O_CLOEXEC, fd)
            os.close(fd)
        return number

    def close(self) -> None:
        for message in self.sent:
            if isinstance(message, Revoked):
                for number in message.files:
                    self.files.reopened(Reopened(number, -1))
        os.closerange(min(self.own, default=0), max(self.own, default=-1) + 1)


@pytest.fixture
def session() -> Iterator[Session]:
    session = Session()
    yield session
    session.files.forget()
    session.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return folder/inner with a file; on a file system of this machine's own."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("content")
    return inner


def write(folder: Path) -> None:
    with (folder / "file").open("r+") as file:
        file.write("C")


def write_by_mapping(folder: Path) -> None:
    with (folder / "file").open("r+") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:1] = b"C"


def replace(folder: Path) -> None:
    (folder / "new").write_text("new")
    (folder / "new").rename(folder / "file")


def replace_by_link(folder: Path) -> None:
    (folder / "new").write_text("new")
    (folder / "file").unlink()
    (folder / "file").symlink_to("new")


def replace_parent(folder: Path) -> None:
    folder.rename(folder.with_name("old"))
    folder.mkdir()


def replace_parent_by_link(folder: Path) -> None:
    folder.rename(folder.with_name("old"))
    folder.symlink_to("old")


CHANGES: list[Callable[[Path], object]] = [
    write,
    write_by_mapping,
    replace,
    replace_by_link,
    replace_parent,
    replace_parent_by_link,
    lambda folder: os.truncate(folder / "file", 3),
    lambda folder: (folder / "file").unlink(),
    lambda folder: (folder / "file").rename(folder / "elsewhere"),
    lambda folder: (folder / "file").chmod(0o600),
    lambda folder: os.utime(folder / "file"),
    lambda folder: os.link(folder / "file", folder / "second"),
    lambda folder: folder.chmod(0o711),
    lambda folder: folder.parent.chmod(0o711),
    lambda folder: folder.parent.rename(folder.parent.with_name("elsewhere")),
]


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_told_of(session: Session, folder: Path, change: Callable[[Path], object]) -> None:
    number = session.open(folder / "file")
    if not number:
        pytest.skip("this file system is none of which inotify tells all")
    assert session.files.is_lasting(number)
    change(folder)
    session.files.look()
    assert session.sent == [Revoked((number,))]
    assert not session.files.is_lasting(number)


def test_what_others_do_beside_it_is_nothing_to_a_file(session: Session, folder: Path) -> None:
    number = session.open(folder / "file")
    (folder / "other").write_text("x")
    (folder / "other").unlink()
    (folder.parent / "more").mkdir()
    assert (folder / "file").read_text() == "content"
    assert session.files.is_lasting(number)
    assert session.sent == []
    assert session.open(folder / "file", 1) == number


def test_what_is_open_for_writing_does_not_last(session: Session, folder: Path) -> None:
    with (folder / "file").open("r+") as file:
        assert not session.open(folder / "file")
        with mmap.mmap(file.fileno(), 0):
            file.close()
            assert not session.open(folder / "file")


def test_what_is_reached_by_a_link_does_not_last(session: Session, folder: Path) -> None:
    (folder.parent / "link").symlink_to("inner")
    (folder / "link").symlink_to("file")
    assert not session.open(folder.parent / "link" / "file")
    assert not session.open(folder / "link")
    assert not session.open(folder / ".." / "inner" / "file")
    assert not session.open("/proc/self/limits")


def test_a_path_from_the_working_directory_lasts_until_that_is_left(
    session: Session, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    number = session.open("file")
    assert session.files.is_lasting(number)
    folder.rename(folder.with_name("elsewhere"))
    assert session.files.is_lasting(number), "it leads to the same file"
    session.files.forget()
    assert not session.files.is_lasting(number)


def test_a_descriptor_is_of_the_file_that_was_told_of(session: Session, folder: Path) -> None:
    number = session.open(folder / "file")
    replace(folder)
    session.files.look()
    session.files.reopened(Reopened(number, 900))
    session.files.reopened(Reopened(number, 901))
    assert os.pread(900, 100, 0) == os.read(901, 100) == b"content"
    assert os.lseek(900, 0, os.SEEK_CUR) == 0, "each has its own offset"
    assert not os.get_inheritable(900)
    with pytest.raises(ProtocolError, match="not free"):
        session.files.reopened(Reopened(number, 900))
    os.closerange(900, 902)
    session.files.reopened(Reopened(number, -1))
    session.sent.clear()
    for fd in (-1, 900):
        with pytest.raises(ProtocolError, match="not told"):
            session.files.reopened(Reopened(number, fd))


def test_a_file_that_lasts_is_not_given_up(session: Session, folder: Path) -> None:
    number = session.open(folder / "file")
    with pytest.raises(ProtocolError, match="not revoked"):
        session.files.reopened(Reopened(number, -1))


def test_files_are_let_go_when_nobody_uses_them(session: Session, folder: Path) -> None:
    number = session.open(folder / "file")
    (tick,) = session.later
    tick()
    session.files.look()
    tick()
    assert session.files.is_lasting(number)
    tick()
    tick()
    assert session.sent == [Revoked((number,))]


def test_only_some_files_last_at_a_time(
    session: Session, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lasting_files, "_MAX_FILES", 2)
    numbers = []
    for name in ("a", "b", "c"):
        (folder / name).write_text(name)
        numbers.append(session.open(folder / name))
    assert [session.files.is_lasting(number) for number in numbers] == [False, True, True]


def test_too_many_events_are_as_good_as_a_change(session: Session, folder: Path) -> None:
    number = session.open(folder / "file")
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with (folder / "a").open("w") as a, (folder / "b").open("w") as b:
        for _ in range(limit // 2 + 1):
            os.utime(a.fileno())
            os.utime(b.fileno())
    assert not session.files.is_lasting(number)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_what_is_mounted_is_told_of(session: Session, folder: Path) -> None:
    number = session.open(folder / "file")
    subprocess.run(["mount", "-t", "tmpfs", "none", str(folder.parent)], check=True)
    try:
        assert not session.files.is_lasting(number)
    finally:
        subprocess.run(["umount", str(folder.parent)], check=True)
