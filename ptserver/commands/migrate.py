"""`ptserver migrate`, `drain` and `join`: move goroutines of a spread program, let hosts go and take others."""

import json

import click

_session = click.argument("session", required=False)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command("migrate", no_args_is_help=True)
@click.option("--to", "to", metavar="HOST", required=True, help="The host's number, or its address.")
@click.option(
    "--wait",
    "seconds",
    type=click.FloatRange(0, 3600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until it goes.",
)
@_as_json
@click.argument("session")
@click.argument("goid", type=click.IntRange(1))
def migrate_command(session: str, goid: int, to: str, seconds: float, *, as_json: bool) -> None:
    """Move goroutine GOID of the spread program SESSION to a host.

    It goes when it next computes, at once if it does now, and goes there again whenever it is found to compute
    elsewhere, until it is migrated anew or the host is drained. One that does something else for longer than --wait
    (it sleeps, is in a system call or in a C library) goes later, which is said, with the reason ("stays" in JSON,
    else null). SESSION and goroutines are those of `ptserver ps`.

    \b
    ptserver migrate 4711 18 --to 1
    """
    from ptserver.spread.listing import find_stay
    from ptserver.spread.operator import NotDoneError, Operator, host_number, threads_of

    operator = Operator.connect(session)
    try:
        listed = operator.list()
        host = host_number(listed, to)
        runtime = operator.runtime(listed.path)
        goroutine = runtime.find_goroutine(goid)
        if goroutine is None:
            raise NotDoneError(f"there is no goroutine {goid}")
        m = threads_of(runtime).get(goroutine.addr)
        why = None
        if not operator.migrate(goroutine, m, runtime, host, seconds):
            operator.forget_memory()
            why = find_stay(goid, operator.list(), runtime)
        if as_json:
            click.echo(json.dumps({"goroutine": goid, "host": host, "stays": why}))
        elif why is None:
            click.echo(f"goroutine {goid} goes on at host {host}")
        else:
            click.echo(
                f"goroutine {goid} has not gone in {seconds:g} s: {why}; it goes to host {host} when it computes"
            )
    finally:
        operator.close()


@click.command("drain", no_args_is_help=True)
@_as_json
@click.argument("host")
@_session
def drain_command(host: str, session: str | None, *, as_json: bool) -> None:
    """Move everything of a spread program off HOST, and let that host go. Nothing is lost; the program goes on.

    HOST is its number, or its address; host 0, where the program began, stays. Returns when the host has nothing any
    more; its machine may be switched off then. SESSION is as for `ptserver ps`.

    \b
    ptserver drain big2:11235
    """
    from ptserver.spread.operator import Operator, host_number

    operator = Operator.connect(session)
    try:
        number = host_number(operator.list(), host)
        operator.drain(number)
        text = f"host {number} has nothing of the program any more"
        click.echo(json.dumps({"host": number}) if as_json else text)
    finally:
        operator.close()


@click.command("join", no_args_is_help=True)
@click.option("--keys", metavar="DIR", envvar="PTSERVER_KEYS", help="Speak TLS with the keys in DIR.")
@click.option(
    "--token-file", type=click.Path(dir_okay=False, resolve_path=True), help="File with the host's token."
)
@_as_json
@click.argument("address", metavar="HOST")
@_session
def join_command(
    address: str, session: str | None, keys: str | None, token_file: str | None, *, as_json: bool
) -> None:
    """Have a spread program use one more host: an address where `ptserver remote` waits, `local` or `agent`.

    The program runs on meanwhile. SESSION is as for `ptserver ps`.

    \b
    ptserver join big3:11235 --keys ~/keys/client
    """
    import os

    from ptserver.spread.operator import Operator

    operator = Operator.connect(session)
    try:
        number = operator.join(address, os.path.abspath(keys) if keys else None, token_file)
        text = f"{address} is host {number}"
        click.echo(json.dumps({"address": address, "host": number}) if as_json else text)
    finally:
        operator.close()
