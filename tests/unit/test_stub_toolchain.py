"""Finding Go, and telling whether the stub knows it: with programs in go's place."""

import json
import sysconfig
from pathlib import Path

import pytest

from ptserver.stub.toolchain import GoNotFoundError, GoUnsuitableError, find_go, read_toolchain

ANSWER = {"GOROOT": "/root", "GOFLAGS": "-v", "GOOS": "linux", "GOARCH": "arm64"}


def fake_go(folder: Path, script: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "go"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def answering(folder: Path, version: str) -> str:
    return str(fake_go(folder, f"cat <<'E'\n{json.dumps(ANSWER | {'GOVERSION': version})}\nE"))


@pytest.mark.parametrize(
    ("version", "minor"),
    [
        ("go1.21", (1, 21)),
        ("go1.27.3", (1, 27)),
        ("go1.26rc1 X:nodwarf5", (1, 26)),
        ("devel go1.27-a1b2", (1, 27)),
    ],
)
def test_versions_that_the_stub_knows(tmp_path: Path, version: str, minor: tuple[int, int]) -> None:
    go = read_toolchain(answering(tmp_path, version))
    assert (go.version, go.minor, go.goroot, go.goflags) == (version, minor, Path("/root"), "-v")
    assert (go.goos, go.goarch) == ("linux", "arm64")


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("go1.20.14", "is go1.20.14, too old for the stub: use Go 1.21 to 1.27"),
        ("devel go1.28-a1b2", "newer than the stub knows"),
        ("go2.0", "newer than the stub knows"),
        ("", "whose version is not known"),
    ],
)
def test_versions_that_it_does_not(tmp_path: Path, version: str, said: str) -> None:
    with pytest.raises(GoUnsuitableError, match=said):
        read_toolchain(answering(tmp_path, version))


def test_a_go_that_fails(tmp_path: Path) -> None:
    path = fake_go(tmp_path, "echo some; echo trouble >&2; echo more >&2; exit 3")
    with pytest.raises(GoUnsuitableError, match=r"env fails with exit status 3: trouble more$"):
        read_toolchain(str(path))
    path.chmod(0o644)
    with pytest.raises(GoUnsuitableError, match=r"cannot run .*: Permission denied"):
        read_toolchain(str(path))


def test_path_comes_before_the_python_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = fake_go(tmp_path / "bin", "")
    packaged = fake_go(tmp_path / "lib" / "go" / "bin", "")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path / "lib"))
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_go() == str(on_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_go() == str(packaged)
    packaged.unlink()
    with pytest.raises(GoNotFoundError, match=r"no go command on PATH: install Go 1\.21 to 1\.27") as caught:
        find_go()
    assert caught.value.exit_status == 127
