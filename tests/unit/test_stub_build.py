"""The command line of go with the stub: flags taken out and put in, the overlay's content."""

import json
from pathlib import Path

import pytest

from ptserver.stub.build import (
    BuildUsageError,
    asks_for_stub,
    goflags_value,
    marker_source,
    overlay,
    read_overlay,
    take_flag,
    take_leading_folder,
)
from ptserver.stub.toolchain import GoUnsuitableError


@pytest.mark.parametrize(
    ("arguments", "left", "value"),
    [
        ("-o out pkg", "-o out pkg", None),
        ("-overlay=x pkg", "pkg", "x"),
        ("--overlay x -race pkg", "-race pkg", "x"),
        ("-race -overlay x -o out pkg", "-race -o out pkg", "x"),
        ("-overlay=x -overlay=y", "", "y"),
        ("-o -overlay=x pkg", "-o -overlay=x pkg", None),
        ("pkg -overlay=x", "pkg -overlay=x", None),
        ("-v main.go -overlay x", "-v main.go -overlay x", None),
        ("-ldflags=-overlay=x -overlay=", "-ldflags=-overlay=x", ""),
        ("-overlay", "", ""),
        ("-- -overlay=x", "-- -overlay=x", None),
        ("-", "-", None),
        ("---overlay=x", "---overlay=x", None),
    ],
)
def test_take_flag(arguments: str, left: str, value: str | None) -> None:
    assert take_flag(arguments.split(), "overlay") == (left.split(), value)


def test_take_flag_among_packages_up_to_args() -> None:
    arguments = "-c ./a -overlay=x ./b -overlay y -args -overlay=z".split()
    assert take_flag(arguments, "overlay", interspersed=True) == (
        ["-c", "./a", "./b", "-args", "-overlay=z"],
        "y",
    )


def test_asks_for_stub() -> None:
    assert asks_for_stub(["-buildmode=remote", "main.go"])
    assert asks_for_stub(["-C", "x", "-o", "y", "--buildmode", "remote", "main.go"])
    assert not asks_for_stub(["-buildmode=pie", "main.go"])
    assert not asks_for_stub(["main.go", "-buildmode=remote"])
    assert asks_for_stub(["./pkg", "-buildmode=remote"], interspersed=True)
    assert not asks_for_stub([])


def test_leading_folder() -> None:
    assert take_leading_folder(["-C", "a", "-v"]) == (["-v"], "a")
    assert take_leading_folder(["--C=a", "-v"]) == (["-v"], "a")
    assert take_leading_folder(["-v", "-C", "a"]) == (["-v", "-C", "a"], None)
    assert take_leading_folder(["C"]) == (["C"], None)
    with pytest.raises(BuildUsageError, match="needs a folder"):
        take_leading_folder(["-C"])


def test_goflags() -> None:
    assert goflags_value("-v -overlay=a --overlay=b -mod=mod", "overlay") == "b"
    assert goflags_value("""'-overlay=a b' -v""", "overlay") == "a b"
    assert goflags_value('"-overlay=a=b"', "overlay") == "a=b"
    assert goflags_value("-overlays=a -v", "overlay") is None
    assert goflags_value("", "overlay") is None


def test_marker_source_is_go() -> None:
    text = marker_source("plan9")
    assert text.startswith('package runtime\n\nconst remoteMarker = "\\xfe\\xfe')
    assert text.endswith('\\xfe\\xfeptserver-stub/1 GOOSREMOTE=plan9\\x00"\n')


@pytest.mark.parametrize(
    "folder", ["runtime/internal/syscall", "internal/runtime/syscall", "internal/runtime/syscall/linux"]
)
def test_overlay_adds_and_replaces_nothing(tmp_path: Path, folder: str) -> None:
    (tmp_path / "src" / folder).mkdir(parents=True)
    (tmp_path / "src" / folder / "syscall_linux.go").touch()
    before = sorted(tmp_path.rglob("*"))
    with overlay(tmp_path, "linux", {"other.go": "mine.go"}) as layer:
        replace = json.loads(layer.read_text())["Replace"]
        assert replace.pop("other.go") == "mine.go"
        texts = {Path(path): Path(other).read_text() for path, other in replace.items()}
    assert not layer.exists()
    assert sorted(tmp_path.rglob("*")) == before
    assert not any(path.exists() for path in texts)
    assert {path.parent for path in texts} == {tmp_path / "src/runtime", tmp_path / "src/runtime/remote"}
    imports = [text for path, text in texts.items() if path.name == "zz_remote_syscall.go"]
    assert len(imports) == 1
    assert f'"{folder}"' in imports[0]


def test_overlay_of_what_is_no_goroot(tmp_path: Path) -> None:
    with pytest.raises(GoUnsuitableError, match="no GOROOT that the stub knows"), overlay(tmp_path):
        pass


def test_overlay_for_what_is_no_name(tmp_path: Path) -> None:
    with pytest.raises(BuildUsageError, match="GOOSREMOTE='a b'"), overlay(tmp_path, "a b"):
        pass


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("\xff", "is not JSON"),
        ("[]", "is not of the form"),
        ('{"Replace": []}', "is not of the form"),
        ('{"Replace": {"a": 1}}', "is no path"),
    ],
)
def test_read_overlay_refuses(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "o.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(BuildUsageError, match=said):
        read_overlay(path)


def test_read_overlay(tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    path.write_text('{"Replace": {"a": "b", "c": ""}}')
    assert read_overlay(path) == {"a": "b", "c": ""}
    path.write_text("{}")
    assert read_overlay(path) == {}
    with pytest.raises(BuildUsageError, match="cannot read the overlay"):
        read_overlay(tmp_path / "absent")
