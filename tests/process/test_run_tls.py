"""Programs that are run with the resources of a server behind TLS, from the command line."""

import json
from pathlib import Path

import pytest

from tests.gofixtures import build
from tests.process.commands import ptserver, refusal
from tests.process.test_serve import serving


@pytest.mark.parametrize("how", ["option", "environment", "stub"])
def test_a_program_runs_over_tls(keys: Path, how: str) -> None:
    with serving("passthrough", "--listen", "127.0.0.1:0", "--keys", str(keys / "server")) as server:
        client = str(keys / "client")
        run = ("run", "--server", server.address)
        if how == "option":
            answer = ptserver(*run, "--keys", client, build("hello"))
        else:
            program = build("hello", stub=how == "stub")
            answer = ptserver(*run, program, env={"PTSERVER_KEYS": client})
        status, out, err = answer
        assert (status, err) == (0, "")
        assert out.startswith("hello")


@pytest.mark.parametrize("secret", ["certificate", pytest.param("token", marks=pytest.mark.slow)])
def test_one_command_makes_all_keys(tmp_path: Path, secret: str) -> None:
    folder = tmp_path / "keys"
    with_token = ("--token",) if secret == "token" else ()
    status, out, err = ptserver("keys", folder, "db1.example", "127.0.0.1", "--days", "1", *with_token)
    assert (status, err) == (0, "")
    assert f"ptserver run --server db1.example:11235 --keys {folder}/client" in out
    clients = [folder / "client"]
    if not with_token:
        _, told, _ = ptserver("keys", folder, "--add-client", "laptop", "--json")
        clients.append(Path(json.loads(told)["client"]))
    with serving("passthrough", "--listen", "127.0.0.1:0", "--keys", str(folder / "server")) as server:
        for client in clients:
            status, out, err = ptserver("run", "--server", server.address, "--keys", client, build("hello"))
            assert (status, err) == (0, "")
        if with_token:
            (folder / "client/token").write_text("0123456789abcdef" * 3)
            answer = refusal("run", "--server", server.address, "--keys", folder / "client", build("hello"))
            assert (answer[0], "token" in answer[1]) == (77, True)
    assert refusal("keys", folder, "db1.example")[0] == 66


@pytest.mark.parametrize(
    ("folder", "status", "said"),
    [
        (None, 77, "the server refuses: TLS is wanted here"),
        ("nowhere", 66, "nowhere/ca.pem: No such file or directory"),
        ("server", 77, "the other side does not trust our certificate"),
    ],
)
def test_what_keeps_a_program_out_is_one_line(keys: Path, folder: str | None, status: int, said: str) -> None:
    with serving("passthrough", "--listen", "127.0.0.1:0", "--keys", str(keys / "server")) as server:
        with_keys = ("--keys", str(keys / folder)) if folder else ()
        answer = refusal("run", "--server", server.address, *with_keys, build("hello"))
        assert answer[0] == status
        assert said in answer[1]
