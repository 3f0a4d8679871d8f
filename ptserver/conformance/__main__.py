"""The suite's command: `python -m ptserver.conformance ADDR --scratch DIR`."""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from typing import NoReturn

import click

from ptserver.conformance import calls, files, framing, handshake, hosts, memory, streams
from ptserver.conformance.checks import Check, Finding, Server, run_checks
from ptserver.errors import PtServerError

CHECKS: tuple[Check, ...] = (
    *handshake.CHECKS,
    *framing.CHECKS,
    *calls.CHECKS,
    *files.CHECKS,
    *streams.CHECKS,
    *memory.CHECKS,
)
_GROUPS = tuple(dict.fromkeys(check.group for check in CHECKS))


@click.command()
@click.argument("address")
@click.option("--scratch", metavar="DIR", default="", help="A folder at the server that the checks may fill.")
@click.option("--token", default="", help="The secret that the server wants.")
@click.option("--timeout", default=10.0, show_default=True, help="Seconds that an answer may take.")
@click.option("--group", "groups", multiple=True, type=click.Choice(_GROUPS), help="Only these checks.")
@click.option("--host", "is_host", is_flag=True, help="ADDRESS is a host's, which waits for programs.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
def main(
    address: str,
    scratch: str,
    token: str,
    timeout: float,
    groups: tuple[str, ...],
    is_host: bool,
    as_json: bool,
) -> None:
    """Check whether the server at ADDRESS (HOST:PORT or unix:PATH) keeps the protocol.

    Exit status: 0 if no check failed, 1 if one did, another if there is no server.
    """
    server = Server(address, scratch.encode(), token, timeout)
    if is_host:
        findings = _shown(run_checks(hosts.CHECKS, server), as_json)
        _finish(findings, as_json, "host", server.address, "server")
    chosen = [check for check in CHECKS if not groups or check.group in groups]
    try:
        with server.session() as client:
            welcome = client.welcome
    except PtServerError as error:
        click.echo(f"conformance: {error}", err=True)
        sys.exit(error.exit_status)
    findings = _shown(run_checks(chosen, server), as_json)
    _finish(findings, as_json, welcome.server, welcome.software, welcome.resources)


def _shown(findings: Iterable[Finding], as_json: bool) -> list[Finding]:
    """Return the findings; print each when it is there, if they are for readers."""
    shown = []
    for finding in findings:
        shown.append(finding)
        if not as_json:
            click.echo(str(finding))
    return shown


def _finish(findings: list[Finding], as_json: bool, name: str, software: str, resources: str) -> NoReturn:
    count = Counter(finding.outcome for finding in findings)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "server": name,
                    "software": software,
                    "resources": resources,
                    "passed": count["ok"],
                    "failed": count["fail"],
                    "skipped": count["skip"],
                    "checks": [
                        {field: getattr(finding, field) for field in Finding.__slots__}
                        for finding in findings
                    ],
                },
                indent=1,
            )
        )
    else:
        click.echo(
            f"{count['ok']} passed, {count['fail']} failed, {count['skip']} skipped: {name} ({software})"
        )
    sys.exit(1 if count["fail"] else 0)


if __name__ == "__main__":
    main()
