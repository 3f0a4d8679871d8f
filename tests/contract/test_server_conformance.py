"""Both servers, and each of their transports, under the suite: one test for each of its checks."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ptserver.conformance.__main__ import CHECKS
from ptserver.conformance.checks import Server
from tests.gofixtures import ROOT, build

TOKEN = "a secret of some length"

HAS_RESOURCES = "for a server with the host's resources, calls of its interest are answered"
MSGPACK = "MessagePack is spoken, or refused clearly"
TERMINAL = "a user's terminal is a terminal to the program, with its size"

#: What each server may skip; anything else that it skips is a failure.
WATCHING = (
    "a watcher is welcomed, or refused clearly",
    "a watcher finds a session, and is told what there is not",
)
SKIPS = {"ptserver": {HAS_RESOURCES}, "goserver": {HAS_RESOURCES, MSGPACK, TERMINAL, *WATCHING}}


def command(name: str, address: str, folder: Path) -> list[str]:
    if name == "goserver":
        return [str(build("goserver")), "-listen", address, "-token", TOKEN]
    token = folder / "token"
    token.write_text(TOKEN + "\n")
    serve = [sys.executable, "-c", "import cli; cli.main()", "serve", "passthrough"]
    return [*serve, "--listen", address, "--token-file", str(token), "--log", os.devnull]


@contextlib.contextmanager
def serving(name: str, address: str, folder: Path) -> Iterator[str]:
    """Start a server and give the address that it announces."""
    with subprocess.Popen(
        command(name, address, folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        try:
            announced = re.search(r" (?:at|on) (\S+)$", process.stdout.readline())
            assert announced, "the server announces no address"
            yield announced[1]
        finally:
            process.terminate()


@pytest.fixture(
    scope="module", params=[(name, kind) for name in SKIPS for kind in ("tcp", "unix")], ids="-".join
)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, Path]]:
    """A running server: its name, its address, and a scratch folder."""
    name, kind = request.param
    folder = tmp_path_factory.mktemp(name)
    (folder / "scratch").mkdir()
    address = "127.0.0.1:0" if kind == "tcp" else f"unix:{folder}/socket"
    with serving(name, address, folder) as announced:
        yield name, announced, folder / "scratch"


@pytest.fixture(scope="module")
def findings(served: tuple[str, str, Path]) -> dict[str, Any]:
    """What the suite's command finds out about the server."""
    name, address, scratch = served
    words = [address, "--scratch", str(scratch), "--token", TOKEN, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "ptserver.conformance", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
        check=False,
    )
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    report |= {"status": done.returncode, "name": name, "left": os.listdir(scratch)}
    return report


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.group}: {check.title}")
def test_the_server_keeps_the_protocol(findings: dict[str, Any], check: Any) -> None:
    (found,) = (
        each for each in findings["checks"] if (each["group"], each["title"]) == (check.group, check.title)
    )
    if check.title in SKIPS[findings["name"]]:
        assert found["outcome"] == "skip", "this can be checked after all"
    else:
        assert found["outcome"] == "ok", found["detail"]


def test_the_report(findings: dict[str, Any]) -> None:
    assert findings["status"] == 0
    assert findings["failed"] == 0
    assert findings["skipped"] == len(SKIPS[findings["name"]])
    assert findings["passed"] == len(CHECKS) - findings["skipped"]
    assert findings["left"] == [], "the suite leaves files behind"
    assert findings["resources"] == "server"


def test_titles_are_unique() -> None:
    assert len({(check.group, check.title) for check in CHECKS}) == len(CHECKS)


@cache
def suite(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ptserver.conformance", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )


def test_a_wrong_token_ends_the_suite_with_the_servers_words(served: tuple[str, str, Path]) -> None:
    done = suite(served[1], "--token", "wrong")
    assert (done.returncode, done.stdout) == (77, "")
    assert re.fullmatch(r"conformance: the server refuses: .*token.*\n", done.stderr)


def test_no_server_ends_the_suite_with_one_line(tmp_path: Path) -> None:
    done = suite(f"unix:{tmp_path}/none")
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.startswith(f"conformance: nobody listens at unix:{tmp_path}/none; start a server")


def test_the_plain_report(served: tuple[str, str, Path]) -> None:
    done = suite(served[1], "--token", TOKEN, "--group", "files")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert "skip  files      folders are made, listed and removed: no --scratch folder" in lines
    assert "ok    files      vectors are carried as one buffer" in lines
    assert re.fullmatch(r"2 passed, 0 failed, 10 skipped: \w+ \(.+\)", lines[-1])


def test_a_session_can_be_opened_after_all_that(
    served: tuple[str, str, Path], findings: dict[str, Any]
) -> None:
    server = Server(served[1], token=TOKEN)
    with server.session() as client:
        client.ping()


def test_the_example_in_the_description_works(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "protocol" / "README.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    with serving("goserver", "127.0.0.1:0", tmp_path) as address:
        done = subprocess.run(
            [sys.executable, "-c", example, address, TOKEN],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    welcome, folder, last = done.stdout.splitlines()
    assert "'type': 'welcome'" in welcome
    assert folder == str(tmp_path)
    assert last == "{'type': 'goodbye'}"
