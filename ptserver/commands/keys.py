"""`ptserver keys`: makes the keys for TLS between machines."""

import json
from pathlib import Path

import click


@click.command("keys", no_args_is_help=True)
@click.argument("folder", metavar="DIR")
@click.argument("names", metavar="NAME|ADDRESS", nargs=-1)
@click.option(
    "--token", is_flag=True, help="Let who connects prove itself by a secret token, not by a certificate."
)
@click.option("--add-client", metavar="CLIENT", help="Make keys for one more client, by the CA in DIR.")
@click.option(
    "--days",
    type=click.IntRange(1, 36500),
    default=1095,
    show_default=True,
    help="How long certificates are valid.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of advice.")
@click.pass_context
def keys_command(
    ctx: click.Context,
    folder: str,
    names: tuple[str, ...],
    token: bool,
    add_client: str | None,
    days: int,
    as_json: bool,
) -> None:
    """Make the keys for a server that is reached by the host NAMEs and ADDRESSes, and print what to do with them.

    \b
    DIR/server   copy it to the machine that listens, and say --keys DIR/server there
    DIR/client   copy it to the machine that connects, and say --keys DIR/client there
    DIR/ca       signs further certificates; keep it where nobody else reads it

    Both ends show a certificate then (mutual TLS). With --token only the server has one, and whoever connects knows
    the token that is in both folders. Files have mode 0600, and nothing is overwritten: to replace keys, make another
    folder. The server is also known as localhost, 127.0.0.1 and ::1.

    \b
    ptserver keys ~/keys db1.example 10.0.0.7
    ptserver keys ~/keys --add-client laptop

    Exit status: 64 for a wrong option; 66 if DIR has such keys already, cannot be written, or a name is none.
    """
    from ptserver.keys import add_client as make_client
    from ptserver.keys import make_keys

    if add_client is not None:
        if names or token:
            raise click.UsageError("--add-client takes the names and the token that DIR has")
        made = make_client(folder, add_client, days=days)
        if as_json:
            click.echo(json.dumps({"client": str(made)}))
        else:
            click.echo(f"copy {made} to the machine that connects, and say there\n    --keys {made}")
        return
    if not names:
        raise click.UsageError("by what name or address will the server be reached?")
    make_keys(folder, names, days=days, token=token)
    server, client = Path(folder, "server"), Path(folder, "client")
    if as_json:
        click.echo(json.dumps({"server": str(server), "client": str(client), "ca": str(Path(folder, "ca"))}))
        return
    host = f"[{names[0]}]" if ":" in names[0] else names[0]
    click.echo(
        f"on {names[0]}, with a copy of {server}:\n"
        f"    ptserver serve passthrough --listen :11235 --keys {server}\n"
        f"on the other machine, with a copy of {client}:\n"
        f"    ptserver run --server {host}:11235 --keys {client} ./main"
    )
