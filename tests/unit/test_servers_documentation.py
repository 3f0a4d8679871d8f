"""The examples of docs/servers.md run."""

import re
from pathlib import Path
from typing import Any

import pytest

from ptserver.server import RuntimeServer
from ptserver.servers import BUILT_IN

TEXT = (Path(__file__).parents[2] / "docs" / "servers.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("source", EXAMPLES)
def test_an_example_defines_a_server(source: str) -> None:
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(compile(source, "docs/servers.md", "exec"), namespace)
    (server,) = (
        value
        for value in namespace.values()
        if isinstance(value, type) and issubclass(value, RuntimeServer) and value.__module__ == "example"
    )
    assert server.declared_interest()


def test_all_servers_are_told_of() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.M)) >= set(BUILT_IN)
