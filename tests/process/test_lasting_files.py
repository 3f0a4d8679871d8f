"""Who changes a file at the server and tells a remote program of it over a connection is told what it is now."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.modes import base_environment, serving
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.running import started
from tests.unit.test_lasting_file_rules import CHANGES
from tests.watched_opens import opens_of


class Asking:
    """A connection to the program."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._sock = socket.create_connection((host, int(port)), 60)
        self._file = self._sock.makefile("rwb")

    def ask(self, what: Path | str) -> str:
        self._file.write(f"{what}\n".encode())
        self._file.flush()
        return self._file.readline().decode()

    def have_sent(self, path: Path) -> bytes:
        return self._file.read(int(self.ask(f"send {path}")))

    def close(self) -> None:
        self._file.close()
        self._sock.close()


@contextlib.contextmanager
def asking(prefix: tuple[str, ...], cwd: Path) -> Iterator[tuple[Asking, str]]:
    """Run the program; give a connection to it, and its address."""
    program = build("lasting")
    with started([*prefix, program], program, env=base_environment(), cwd=cwd) as running:
        running.expect("\n")
        address = running.stdout.so_far().decode().strip()
        first = Asking(address)
        yield first, address
        first.close()
        ended = running.finish()
    assert (ended.status, ended.stderr) == (0, b"")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("lasting")
    with serving("passthrough", "127.0.0.1:0", cwd=folder, env=base_environment(), log=folder / "log") as (
        address,
        _,
    ):
        yield address


@pytest.fixture(scope="module")
def remote(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Asking, str]]:
    with none_left(), asking(("ptserver", "run", "--server", server), tmp_path_factory.getbasetemp()) as both:
        yield both


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    with asking((), tmp_path_factory.getbasetemp()) as (native, _):
        yield native


def make(folder: Path) -> Path:
    inner = folder / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("content")
    return inner / "file"


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_the_program_is_told_of_is_seen(
    remote: tuple[Asking, str], native: Asking, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    path = make(tmp_path)
    asking, _ = remote
    before = native.ask(path)
    assert [asking.ask(path) for _ in range(5)] == [before] * 5
    change(path.parent)
    after = native.ask(path)
    assert asking.ask(path) == after
    assert asking.ask(path) == after


def test_it_is_seen_by_all_who_ask_at_once(remote: tuple[Asking, str], tmp_path: Path) -> None:
    """Each of some threads replaces a file of its own, or changes it, and then asks; the others do so meanwhile."""
    wrong: list[str] = []

    def go_on(index: int) -> None:
        path, asking = tmp_path / f"file{index}", Asking(remote[1])
        for turn in range(24):
            if turn % 4 == 0:
                path.with_suffix(".new").write_text(f"turn {turn}")
                path.with_suffix(".new").rename(path)
            elif turn % 4 == 1:
                with path.open("r+") as file:
                    file.write(f"turn {turn}")
            for _ in range(3):
                said = asking.ask(path)
                if f'"turn {turn - max(turn % 4 - 1, 0)}"' not in said:
                    wrong.append(f"turn {turn}: {said}")
        asking.close()

    threads = [threading.Thread(target=go_on, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_is_sent_is_what_the_file_has(remote: tuple[Asking, str], tmp_path: Path) -> None:
    """By many connections at once, of files that fit into what is known, into a socket, and not; some change."""
    sizes, wrong = (0, 2, 600, 3000, 100_000, 3_000_000), list[str]()

    def content(index: int, size: int, turn: int) -> bytes:
        return bytes([(index * 31 + turn) % 251] * size)

    def go_on(index: int) -> None:
        path, asking = tmp_path / f"file{index}", Asking(remote[1])
        size = sizes[index % len(sizes)]
        for turn in range(6):
            path.write_bytes(content(index, size, turn))
            for _ in range(6):
                if asking.have_sent(path) != content(index, size, turn):
                    wrong.append(f"{size} bytes, turn {turn}")
        asking.close()

    threads = [threading.Thread(target=go_on, args=(index,)) for index in range(2 * len(sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("sync", [False, True], ids=["ahead", "sync"])
def test_a_file_that_nobody_changes_is_opened_at_the_server_only_at_first(
    server: str, tmp_path: Path, sync: bool
) -> None:
    path = make(tmp_path)
    with asking(("ptserver", "run", "--server", server, *["--sync"] * sync), tmp_path) as (remote, _):
        said = {remote.ask(path) for _ in range(5)}
        with opens_of(path) as count:
            said |= {remote.ask(path) for _ in range(15)}
            opened = count()
    assert len(said) == 1
    assert opened == (15 if sync else 0) or not _is_told_of(path)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
def test_who_opens_a_file_gets_the_lowest_number_and_has_it_alone(
    server: str, tmp_path: Path, seed: int
) -> None:
    """The program finds out about most of that itself; the numbers are those that it gets natively."""
    program = build("openers")
    said = []
    for prefix in ((), ("ptserver", "run", "--server", server)):
        command = [*prefix, program, str(tmp_path), str(seed), "8", "60"]
        with started(command, program, env=base_environment(), cwd=tmp_path) as running:
            ended = running.finish()
        assert ended.status == 0, ended.stdout
        said.append(ended.stdout)
    assert said[0] == said[1]


def _is_told_of(path: Path) -> bool:
    """Whether the file is on a file system where files last."""
    from ptserver.sessions.lasting_files import LastingFiles

    kept: list[int] = []

    def keep(fd: int) -> int:
        kept.append(fd)
        return fd

    files = LastingFiles(lambda message: None, keep, 1 << 20, lambda seconds, call: None)
    try:
        with path.open("rb") as file:
            return any(files.opened(os.fsencode(path), os.O_RDONLY, file.fileno()) for _ in range(2))
    finally:
        for fd in kept:
            os.close(fd)
