"""Files are hashed once: only large ones, only while they are the same, and never by somebody else's word."""

import hashlib
import os
from pathlib import Path

import pytest

from ptserver.offered import digests
from ptserver.offered.digests import default_folder, sha256_of

SIZE = 4 << 20


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(digests, "_SETTLED_NS", -1)  # it has just been made
    path = tmp_path / "program"
    path.write_bytes(b"a" * SIZE)
    return path


def digest(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY)
    try:
        return sha256_of(fd, path.parent / "digests")
    finally:
        os.close(fd)


def entry(path: Path) -> Path:
    (found,) = (path.parent / "digests").iterdir()
    return found


def real(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_large_file_is_remembered_until_it_changes(large: Path) -> None:
    assert digest(large) == real(large)
    text = entry(large).read_text()
    entry(large).write_text(text[:-1] + ("0" if text[-1] != "0" else "1"))
    assert digest(large) != real(large)  # nobody has read it
    times = large.stat()
    with large.open("r+b") as file:
        file.write(b"b")
    os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digest(large) == real(large)
    assert digest(large) == real(large)


def test_a_file_that_has_just_changed_is_not_remembered(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_SETTLED_NS", 3600 * 10**9)
    assert digest(large) == real(large)
    assert not (large.parent / "digests").exists()


def test_small_files_are_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"a")
    assert digest(path) == real(path)
    assert not (tmp_path / "digests").exists()


@pytest.mark.parametrize("damage", ["", "x", "\xff", "1 2 3 " + "0" * 64])
def test_a_damaged_entry_is_made_anew(large: Path, damage: str) -> None:
    digest(large)
    entry(large).write_bytes(damage.encode("latin-1"))
    assert digest(large) == real(large)
    assert entry(large).read_text().endswith(real(large))


def test_an_entry_that_others_can_write_is_not_believed(large: Path) -> None:
    digest(large)
    text = entry(large).read_text()
    entry(large).write_text(text[:-64] + "0" * 64)
    entry(large).chmod(0o666)
    assert digest(large) == real(large)


def test_a_folder_that_cannot_be_made_does_no_harm(large: Path) -> None:
    (large.parent / "digests").write_text("a file")
    assert digest(large) == real(large)


def test_the_default_follows_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/ptserver/digests")
