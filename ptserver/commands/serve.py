"""`ptserver serve`: the command line of a server for others."""

import click


@click.command("serve")
@click.argument("server", metavar="NAME|MODULE:CLASS")
@click.option(
    "--listen", "address", required=True, metavar="ADDR", help="HOST:PORT, [IPV6]:PORT or unix:PATH."
)
@click.option(
    "--token-file",
    metavar="FILE",
    help="Serve only hosts that know the secret in the first line of FILE.",
)
@click.option(
    "--keys",
    metavar="DIR",
    help="Speak TLS with the keys in DIR, which `ptserver keys` made. Required unless ADDR is loopback or unix.",
)
@click.option(
    "--max-sessions",
    type=click.IntRange(1, 100_000),
    default=200,
    show_default=True,
    help="How many at once.",
)
@click.option("--log", "log_file", metavar="FILE", help="Append the log to FILE; default: standard error.")
@click.option("--json", "as_json", is_flag=True, help="Announce and log in JSON, one object per line.")
@click.pass_context
def serve_command(
    ctx: click.Context,
    server: str,
    address: str,
    token_file: str | None,
    keys: str | None,
    max_sessions: int,
    log_file: str | None,
    as_json: bool,
) -> None:
    """Lend this machine's resources to programs on other hosts.

    The server is one that comes with ptserver (passthrough, tracelogger, fake_hosts, fault_injection, read_only,
    fixed_clock) or a class of your own. Once it listens, it prints one line:

        ptserver: serving NAME on ADDR

    Programs then run with `ptserver run --server ADDR ./main`. SIGTERM or SIGINT ends the server and all its
    sessions. With --keys it speaks TLS alone, and serves hosts that have a certificate of DIR/ca.pem, if there is
    one, and know the token in DIR/token, if there is one; see docs/security.md.

    Exit status: 0 after SIGTERM or SIGINT; 64 for a wrong option, address, token file or server; 66 for a folder of
    keys that is not in order; 69 if ADDR cannot be listened at; 70 if the server failed.
    """
    from ptserver.serve import ServeOptions, serve

    serve(ServeOptions(server, address, token_file, keys, max_sessions, log_file, as_json))
    ctx.exit(0)
