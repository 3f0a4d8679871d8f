"""`ptserver build` and `ptserver go` with the real Go, and what they make."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ptserver.stub
from ptserver.stub.hypercalls import STUB_ABI
from ptserver.stub.marker import StubInfo, find_stub_marker
from tests.gofixtures import DEFAULT_GO, GO_VERSIONS, ROOT, build, environment, toolchain

PTSERVER = str(Path(sys.executable).with_name("ptserver"))
SOURCES = Path(ptserver.stub.__file__).parent
EVERY_GO = [
    version if version == DEFAULT_GO else pytest.param(version, marks=pytest.mark.goversions)
    for version in GO_VERSIONS
]
MAIN = 'package main\n\nimport (\n\t"runtime/remote"\n\n\t"example.org/m/word"\n)\n\nfunc main() {\n'
MAIN += "\tprintln(word.Word, remote.Connected())\n}\n"


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A module whose main package prints a word of another package."""
    folder = tmp_path / "module"
    (folder / "word").mkdir(parents=True)
    (folder / "go.mod").write_text("module example.org/m\n\ngo 1.21\n")
    (folder / "main.go").write_text(MAIN)
    (folder / "word" / "word.go").write_text('package word\n\nconst Word = "original"\n')
    (folder / "word" / "word_test.go").write_text(
        'package word\n\nimport "testing"\n\nfunc TestWord(*testing.T) {}\n'
    )
    return folder


def run(
    *arguments: str, cwd: Path, go: str = DEFAULT_GO, **settings: str
) -> subprocess.CompletedProcess[str]:
    temporary = cwd / "tmp"
    temporary.mkdir(exist_ok=True)
    path = f"{toolchain(go).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [PTSERVER, *arguments],
        cwd=cwd,
        env=environment() | {"PATH": path, "TMPDIR": str(temporary)} | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def made(result: subprocess.CompletedProcess[str], program: Path) -> bytes:
    """The content of the program that `result` says was built."""
    assert (result.returncode, result.stderr) == (0, "")
    assert find_stub_marker(program) is not None
    return program.read_bytes()


@pytest.mark.parametrize("go", EVERY_GO)
def test_a_program_without_the_stub_has_no_marker(go: str) -> None:
    assert find_stub_marker(build("hello", go=go)) is None


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
@pytest.mark.parametrize("go", EVERY_GO)
def test_every_version_and_architecture(go: str, arch: str) -> None:
    assert find_stub_marker(build("stub_info", go=go, arch=arch, stub=True)) == StubInfo(STUB_ABI, "linux")


@pytest.mark.parametrize("flag", ["-ldflags=-s -w", "-buildmode=pie"])
def test_the_marker_is_in_every_kind_of_program(flag: str) -> None:
    assert find_stub_marker(build("stub_info", flags=[flag], stub=True)) == StubInfo(STUB_ABI, "linux")


def test_builds_are_equal_and_leave_nothing_behind(module: Path) -> None:
    goroot = toolchain().parent.parent
    first = made(run("build", "-o", "first", cwd=module), module / "first")
    made(run("go", "build", "-buildmode=remote", "-o", "second", "main.go", cwd=module), module / "second")
    third = made(
        run("go", "build", "--buildmode", "remote", "-o", "third", ".", cwd=module), module / "third"
    )
    assert first == third
    assert {path.name for path in module.iterdir()} == {
        *("first", "second", "third", "go.mod", "main.go", "word", "tmp")
    }
    assert list((module / "tmp").iterdir()) == []
    assert not (goroot / "src" / "runtime" / "remote").exists()
    assert not list((goroot / "src" / "runtime").glob("zz_remote*"))


def test_goosremote(module: Path) -> None:
    result = run("build", "-o", "out", cwd=module, GOOSREMOTE="plan9")
    assert result.returncode == 0
    assert find_stub_marker(module / "out") == StubInfo(STUB_ABI, "plan9")


@pytest.mark.parametrize("way", ["flag", "two words", "GOFLAGS", "folder"])
def test_the_users_overlay_is_merged(module: Path, way: str) -> None:
    (module / "other.txt").write_text('package word\n\nconst Word = "overlaid"\n')
    (module / "over.json").write_text(json.dumps({"Replace": {"word/word.go": "other.txt"}}))
    above = module.parent
    result = {
        "flag": lambda: run("build", "-overlay=over.json", "-o", "out", ".", cwd=module),
        "two words": lambda: run(
            "go", "build", "-overlay", "over.json", "-buildmode=remote", "-o", "out", cwd=module
        ),
        "GOFLAGS": lambda: run("build", "-o", "out", cwd=module, GOFLAGS="-v '-overlay=over.json'"),
        "folder": lambda: run("build", "-C", "module", "-overlay=over.json", "-o", "out", cwd=above),
    }[way]()
    assert result.returncode == 0, result.stderr
    assert b"overlaid" in (module / "out").read_bytes()
    assert find_stub_marker(module / "out") == StubInfo(STUB_ABI, "linux")


def test_a_test_binary_can_have_the_stub(module: Path) -> None:
    result = run("go", "test", "-c", "./word", "-buildmode=remote", "-o", "out", cwd=module)
    made(result, module / "out")


@pytest.mark.parametrize(
    ("arguments", "settings", "status", "said"),
    [
        (
            ["-buildmode=c-archive"],
            {},
            64,
            "-buildmode=c-archive makes no program: only a program can have the stub",
        ),
        (
            [],
            {"GOOS": "darwin"},
            64,
            "no stub for GOOS=darwin GOARCH=amd64: only for linux on amd64 and arm64",
        ),
        ([], {"GOARCH": "386"}, 64, "no stub for GOOS=linux GOARCH=386: only for linux on amd64 and arm64"),
        ([], {"GOOSREMOTE": "A"}, 64, "GOOSREMOTE='A' is no name of an OS abstraction: "),
        (["-overlay=absent"], {}, 64, "cannot read the overlay absent: No such file or directory"),
        (["-C"], {}, 64, "-C needs a folder"),
    ],
)
def test_what_cannot_be_built_is_one_line(
    module: Path, arguments: list[str], settings: dict[str, str], status: int, said: str
) -> None:
    result = run("build", *arguments, cwd=module, **settings)
    assert (result.returncode, result.stdout) == (status, "")
    assert result.stderr.startswith(f"ptserver: {said}")
    assert result.stderr.count("\n") == 1


def test_gos_own_errors_and_status_pass(module: Path) -> None:
    (module / "main.go").write_text("package main\n\nfunc main() { nothing() }\n")
    result = run("build", cwd=module)
    assert result.returncode == 1
    assert "undefined: nothing" in result.stderr


def test_the_rest_of_go_is_gos_own(module: Path) -> None:
    result = run("go", "env", "-json", "GOARCH", cwd=module)
    assert (result.returncode, json.loads(result.stdout)) == (0, {"GOARCH": "amd64"})
    assert "usage: go build" in run("go", "help", "build", cwd=module).stdout
    assert "usage: go build" in run("go", "build", "--help", cwd=module).stderr
    assert run("go", "nonsense", cwd=module).returncode == 2
    assert run("go", cwd=module).returncode == 2
    assert run("go", "build", "-buildmode=nonsense", cwd=module).returncode not in (0, 64)


def test_go_remote_runs_a_program(module: Path) -> None:
    result = run("go", "remote", str(build("hello")), "-v", "--", "x", cwd=module)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "hello, world\narg 1: -v\narg 2: --\narg 3: x\n"
    assert run("go", "remote", "./absent", cwd=module).returncode == 127


def test_a_go_that_is_too_old(tmp_path: Path) -> None:
    fake = tmp_path / "go"
    answer = {"GOVERSION": "go1.20.14", "GOFLAGS": "", "GOOS": "linux", "GOARCH": "amd64", "GOROOT": "/"}
    fake.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    fake.chmod(0o755)
    result = run("build", cwd=tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (result.returncode, result.stdout) == (69, "")
    assert result.stderr == f"ptserver: {fake} is go1.20.14, too old for the stub: use Go 1.21 to 1.27\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_go_and_its_status_comes_back(tmp_path: Path, number: signal.Signals) -> None:
    answer = {"GOVERSION": "go1.27", "GOFLAGS": "", "GOOS": "linux", "GOARCH": "amd64"}
    answer["GOROOT"] = str(toolchain().parent.parent)
    fake = tmp_path / "go"
    fake.write_text(
        f"#!{sys.executable} -IS\nimport signal, sys\n"
        f"if sys.argv[1] == 'env':\n    print({json.dumps(answer)!r})\n    sys.exit()\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(9))\n"
        "print('started', flush=True)\nwhile True:\n    signal.pause()\n"
    )
    fake.chmod(0o755)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    settings = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(temporary)}
    with subprocess.Popen([PTSERVER, "build"], cwd=tmp_path, env=settings, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        process.send_signal(number)
        assert process.wait(60) == 9
    assert list(temporary.iterdir()) == []


def test_go_sources_are_formatted_and_vetted(tmp_path: Path) -> None:
    goroot = toolchain().parent.parent
    sources = [
        *SOURCES.glob("*.go"),
        *(ROOT / "fixtures").glob("stub_*/*.go"),
        ROOT / "fixtures/hello/main.go",
    ]
    assert len(sources) > 6
    unformatted = subprocess.run(
        [goroot / "bin" / "gofmt", "-l", *sources], capture_output=True, text=True, check=True
    )
    assert unformatted.stdout == ""
    # vet does not look into an overlay, but runtime/remote needs nothing that is package runtime's own.
    (tmp_path / "go.mod").write_text("module example.org/remote\n\ngo 1.21\n")
    (tmp_path / "remote.go").write_text((SOURCES / "remote.go").read_text())
    subprocess.run([toolchain(), "vet", "."], cwd=tmp_path, env=environment(), check=True)
