"""Whose time of day a program is told (`--clock`)."""

import json

from tests.gofixtures import build
from tests.process.commands import ptserver
from tests.process.test_serve import serving


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
