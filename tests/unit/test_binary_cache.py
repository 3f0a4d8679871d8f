"""The programs that a host keeps: only whole ones, checked, and no more than it may."""

import hashlib
import os
from pathlib import Path

import pytest

from ptserver.messages import Executable
from ptserver.offered.binary_cache import BinaryCache, CacheError, default_folder


def executable(data: bytes) -> Executable:
    return Executable("program", "amd64", len(data), hashlib.sha256(data).hexdigest())


def keep(cache: BinaryCache, data: bytes) -> Path:
    with cache.arriving(executable(data)) as arriving:
        for start in range(0, len(data), 10):
            arriving.write(data[start : start + 10])
        return cache.keep(arriving)


def test_a_program_is_found_after_it_was_kept(tmp_path: Path) -> None:
    cache = BinaryCache(tmp_path / "deep" / "folder", 1000)
    assert cache.find(executable(b"a" * 25)) is None
    path = keep(cache, b"a" * 25)
    assert cache.find(executable(b"a" * 25)) == path
    assert path.read_bytes() == b"a" * 25
    assert path.stat().st_mode & 0o777 == 0o500
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert cache.find(executable(b"b" * 25)) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a", "another than was announced"),
        (b"ac", "another than was announced"),
        (b"abc", "more of the program"),
    ],
)
def test_what_is_not_whole_is_not_kept(tmp_path: Path, data: bytes, message: str) -> None:
    cache = BinaryCache(tmp_path, 1000)

    def arrive() -> None:
        with cache.arriving(executable(b"ab")) as arriving:
            arriving.write(data)
            cache.keep(arriving)

    with pytest.raises(CacheError, match=message):
        arrive()
    assert [*tmp_path.iterdir()] == []


def test_what_was_changed_is_thrown_away(tmp_path: Path) -> None:
    cache = BinaryCache(tmp_path, 1000)
    path = keep(cache, b"good")
    path.chmod(0o700)
    path.write_bytes(b"evil")
    assert cache.find(executable(b"good")) is None
    assert not path.exists()


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    cache = BinaryCache(tmp_path, 100)
    paths = [keep(cache, bytes([number]) * 30) for number in range(3)]
    for age, path in zip((300, 200, 100), paths, strict=True):
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    assert cache.find(executable(b"\0" * 30)) == paths[0]
    fourth = keep(cache, b"x" * 35)
    assert {*tmp_path.iterdir()} == {paths[0], paths[2], fourth}


def test_what_is_larger_than_the_folder_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(CacheError, match="keeps 10 at most"),
        BinaryCache(tmp_path, 10).arriving(executable(b"x" * 11)),
    ):
        pass
    with (
        pytest.raises(CacheError, match="cannot keep programs"),
        BinaryCache(Path("/dev/null/x"), 10).arriving(executable(b"x")),
    ):
        pass


def test_where_programs_are_kept_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_folder() == Path("/caches/ptserver/programs")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_folder() == Path("/home/me/.cache/ptserver/programs")
