"""What a program that runs here is told by the server's machine: the time of day if wanted, names of hosts."""

import json
from pathlib import Path

import pytest

from tests.conformance.modes import base_environment
from tests.conformance.modes import serving as serving_at
from tests.gofixtures import build
from tests.leftovers import none_left
from tests.process.commands import ptserver
from tests.process.test_serve import serving
from tests.two_machines import skip_without_machines, two_machines


@pytest.mark.slow
def test_the_time_of_day_is_asked_of_the_server_if_it_is_to_be_the_servers() -> None:
    """By default Go reads it where nobody sees it: in the vDSO."""
    seen = {}
    with serving("passthrough", "--listen", "127.0.0.1:0") as server:
        for clock in ("host", "server"):
            options = ("--server", server.address, f"--clock={clock}", "--trace", "-q", "-c", "--json")
            status, out, err = ptserver("run", *options, "-e", "clock_gettime", build("timers"))
            assert (status, bool(out)) == (0, True), err
            seen[clock] = json.loads(err)["total"]["calls"]
    assert seen["host"] == 0
    assert seen["server"] > 0


@skip_without_machines
def test_names_are_resolved_by_the_servers_files(tmp_path: Path) -> None:
    """Each machine's /etc/hosts calls the machine itself by a name of which the other has another idea."""
    env = base_environment()
    with none_left(), two_machines(tmp_path) as machines:
        here, there = machines.here, machines.there
        serve = serving_at(
            "passthrough", f"{there.address}:0", cwd="/", env=env, log=tmp_path / "log",
            options=machines.listening_keys, popen=there.popen,
        )  # fmt: skip
        words = [build("mixture"), "/", "/", "network", "dial", "itself:9"]
        with serve as (address, _):
            run = ["ptserver", "run", "--server", address, *machines.connecting_keys]
            assert f"dial tcp {there.address}:9: connect: connection refused" in here.run(
                [*run, *words], env=env
            )
        assert f"dial tcp {here.address}:9: connect: connection refused" in here.run(words, env=env)
