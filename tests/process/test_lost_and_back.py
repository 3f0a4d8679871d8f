"""Sessions that survive a broken connection (`--on-lost=wait`): every call once, and only for who has the ticket."""

import contextlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ptserver.errors import RefusedError
from ptserver.messages import Refused, Resume, Resumed
from ptserver.net.connection import read_frame, send_all
from ptserver.net.lasting import LastingConnection
from ptserver.net.transport import connect
from ptserver.net.wire import Codec
from tests.conformance.modes import base_environment, serving, waiting
from tests.cutting_proxy import CuttingProxy
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.process.session_client import AT_FDCWD, TIMEOUT, Client, hello
from tests.process.test_lost import elsewhere, ended, machines, served
from tests.running import started
from tests.two_machines import TwoMachines, skip_without_machines

__all__ = ["machines"]  # a fixture

_JSON = Codec("json")


@contextlib.contextmanager
def listening(way: str, folder: Path) -> Iterator[str]:
    """A server in *folder*, or a host, of this machine; give its address."""
    if way == "--server":
        with serving(
            "passthrough", "127.0.0.1:0", cwd=folder, env=base_environment(), log=folder.with_name("log")
        ) as (
            address,
            _,
        ):
            yield address
    else:
        with waiting("127.0.0.1:0", folder.parent) as (address, _):
            yield address


@pytest.mark.parametrize("way", ["--server", "--on"])
def test_every_call_is_made_once_however_often_the_connection_breaks(way: str, tmp_path: Path) -> None:
    program, words = build("ahead"), ("5", "120")
    outputs = []
    for name in ("native", "remote"):
        work = tmp_path / name
        work.mkdir()
        with contextlib.ExitStack() as stack:
            stack.enter_context(none_left())
            command: tuple[str | Path, ...] = (program, *words)
            if name == "remote":
                cuts = random.Random(5)
                with_program = program.stat().st_size + 100_000 if way == "--on" else 20_000
                budgets = [with_program, *(cuts.randrange(100, 4000) for _ in range(15))]
                address = stack.enter_context(listening(way, work))
                proxy = stack.enter_context(CuttingProxy(address, budgets))
                command = ("ptserver", "run", way, proxy.address, "--on-lost=wait", *command)
            child = stack.enter_context(started(command, program, env=base_environment(), cwd=work))
            outputs.append(child.finish())
            if name == "remote":
                assert proxy.cuts == len(budgets)
    native, remote = outputs
    assert remote.status == native.status == 0
    assert remote.stdout.decode().splitlines() == native.stdout.decode().splitlines()
    assert remote.stderr.count(b"the connection is back") == len(budgets)


@skip_without_machines
@pytest.mark.parametrize("way", [served, elsewhere])
def test_a_link_may_fail_for_a_while(way, machines: TwoMachines, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Between machines, under TLS, where nobody is told of the failure; the other side waits as well."""
    with way(machines, tmp_path, build("stdin"), "lines", run=("--on-lost=wait",)) as (child, _):
        child.send(b"before\n")
        child.expect('line "before"\n')
        for text in ("first", "second"):
            machines.link.cut()
            child.send(f"{text}\n".encode())
            after = child.stderr.wait_for(b"waiting 120 s for another")
            machines.link.join()
            child.stderr.wait_for(b"the connection is back", after)
            child.expect(f'line "{text}"\n')
        child.close_stdin()
        assert child.finish().status == 0


@pytest.mark.slow
@skip_without_machines
@pytest.mark.parametrize("way", [served, elsewhere])
def test_a_link_that_stays_away_ends_both_sides(way, machines: TwoMachines, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with way(machines, tmp_path, build("stdin"), "lines", run=("--on-lost=wait:1",)) as (child, session):
        machines.link.cut()
        end = child.finish()
        assert (end.status, b"said nothing for 1 s" in end.stderr) == (69, True), end
        assert ended(session)
        machines.link.join()


@pytest.mark.slow
def test_who_has_the_stub_panics_when_the_server_is_gone(tmp_path: Path) -> None:
    program = build("stub_blocked", stub=True)
    with none_left():
        env = base_environment()
        with serving("passthrough", "127.0.0.1:0", cwd="/", env=env, log=tmp_path / "log") as (
            address,
            server,
        ):
            command = ("ptserver", "run", "--server", address, "--on-lost=wait:1", program)
            with started(command, program, env=env, cwd="/") as child:
                child.expect("ready\n")
                server.terminate()
                server.wait(TIMEOUT)
                end = child.finish()
    assert (end.status, b"lost connection to runtime server" in end.stderr) == (2, True), end


def test_a_session_is_resumed_by_its_ticket_alone(tmp_path: Path) -> None:
    env = base_environment()
    with (
        none_left(),
        serving("passthrough", "127.0.0.1:0", cwd=tmp_path, env=env, log=tmp_path / "log") as (
            address,
            _,
        ),
    ):
        client = Client(connect(address), msgspec.structs.replace(hello(), wait_seconds=20))
        connection = client.connection
        assert isinstance(connection, LastingConnection)
        assert client.welcome.wait_seconds == 20
        name = str(tmp_path / "file").encode()
        fd = client.call("openat", AT_FDCWD, 0, 0o101, 0o600, ins={1: name}).value
        ticket = client.welcome.ticket
        for wrong in (
            ticket[:-1] + ("0" if ticket[-1] != "0" else "1"),
            ticket.partition(":")[0],
            "",
            "../x:y",
        ):
            with pytest.raises(RefusedError, match="session"):
                resume(address, wrong, connection.received_bytes)
        assert client.call("write", fd, 0, 3, ins={1: b"one"}).value == 3
        client.start("write", fd, 0, 3, ins={1: b"two"})
        connection.suspend()
        with pytest.raises(RefusedError, match="malformed"):
            resume(address, ticket, connection.received_bytes + 1_000_000)
        connection.resume(*resume(address, ticket, connection.received_bytes))
        client.wait(lambda: bool(client.results))
        assert (tmp_path / "file").read_bytes() == b"onetwo"
        connection.close()


def resume(address: str, ticket: str, received_bytes: int):  # type: ignore[no-untyped-def]
    """Return a connection that goes on with the session, and how much that has received."""
    sock = connect(address)
    send_all(sock, _JSON.encode(Resume((1,), ticket, "", received_bytes)), TIMEOUT + 1e9)
    answer = _JSON.decoder(Resumed | Refused)(read_frame(sock, 10_000, 1e9))
    if isinstance(answer, Refused):
        sock.close()
        raise RefusedError(answer.code, f"{answer.code}: {answer.message}")
    return sock, answer.received_bytes


@pytest.mark.slow
def test_a_server_may_keep_no_session(tmp_path: Path) -> None:
    env = base_environment()
    options = ("--max-wait", "0")
    with serving("passthrough", "127.0.0.1:0", cwd="/", env=env, log=tmp_path / "log", options=options) as (
        address,
        _,
    ):
        command = ("ptserver", "run", "--server", address, "--on-lost=wait", build("hello"))
        done = subprocess.run(command, env=env, capture_output=True, timeout=60)
        assert (done.returncode, b"keeps no session whose connection is lost" in done.stderr) == (77, True)
