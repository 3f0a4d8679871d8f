"""Programs that are run with the resources of a server behind TLS, from the command line."""

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
