"""`ptserver serve`: the command line of a server for others."""

import click

from ptserver.commands.common_options import keepalive_option, max_wait_option


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
    "--watch-token-file",
    metavar="FILE",
    help="Let those who know the secret in the first line of FILE watch sessions, and do nothing else.",
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
@click.option("--root", metavar="DIR", help="Let sessions see the files below DIR alone, as the root of all.")
@click.option("--read-only", is_flag=True, help="Let sessions change no file.")
@click.option(
    "--connect",
    metavar="RULE",
    multiple=True,
    help="Let sessions connect and send to these addresses alone: NETWORK:PORTS, *:PORTS or unix:PATH, as in "
    "10.0.0.0/8:443, [fd00::]/8:80-90; or `none`. Repeat it.",
)
@click.option(
    "--bind",
    metavar="RULE",
    multiple=True,
    help="Let sessions listen at these addresses alone, as --connect.",
)
@click.option(
    "--exec",
    "executables",
    metavar="PATH",
    multiple=True,
    help="Let sessions execute this program alone, or what is below this folder; or `none`. Repeat it.",
)
@click.option(
    "--user",
    metavar="USER[:GROUP]",
    help="Serve with the rights of USER; root must say so to confine sessions.",
)
@click.option(
    "--limit",
    "limits",
    metavar="NAME=N,...",
    multiple=True,
    help="Limits of each session: nofile, cpu (seconds), as, fsize, data, stack, core, memlock (bytes, or with k, m, "
    "g), nproc.",
)
@keepalive_option
@max_wait_option
@click.option("--log", "log_file", metavar="FILE", help="Append the log to FILE; default: standard error.")
@click.option("--json", "as_json", is_flag=True, help="Announce and log in JSON, one object per line.")
@click.pass_context
def serve_command(
    ctx: click.Context,
    server: str,
    address: str,
    token_file: str | None,
    watch_token_file: str | None,
    keys: str | None,
    max_sessions: int,
    root: str | None,
    read_only: bool,
    connect: tuple[str, ...],
    bind: tuple[str, ...],
    executables: tuple[str, ...],
    user: str | None,
    limits: tuple[str, ...],
    keepalive_seconds: float,
    max_wait_seconds: int,
    log_file: str | None,
    as_json: bool,
) -> None:
    """Lend this machine's resources to programs on other hosts.

    The server is one that comes with ptserver (passthrough, tracelogger, fake_hosts, fault_injection, read_only,
    fixed_clock) or a class of your own. Once it listens, it prints one line:

        ptserver: serving NAME on ADDR

    Programs then run with `ptserver run --server ADDR ./main`. SIGTERM or SIGINT ends the server and all its
    sessions. With --keys it speaks TLS alone, and serves hosts that have a certificate of DIR/ca.pem, if there is
    one, and know the token in DIR/token, if there is one.

    A session can do what the user of the server can, unless it is confined: docs/security.md says how, and by what.

    \b
    ptserver serve passthrough --listen :11235 --keys ~/keys/server --user nobody --root /srv/data --read-only \\
        --connect 10.0.0.0/8:443 --exec none --limit nofile=256,nproc=64

    Exit status: 0 after SIGTERM or SIGINT; 64 for a wrong option, address, token file or server; 66 for a folder of
    keys that is not in order; 69 if ADDR cannot be listened at; 70 if the server failed; 77 if sessions cannot be
    confined as they should be.
    """
    from ptserver.confinement.options import parse_confinement
    from ptserver.sessions.serve import ServeOptions, serve

    confinement = parse_confinement(
        root=root,
        read_only=read_only,
        connect=connect,
        bind=bind,
        executables=executables,
        user=user,
        limits=limits,
    )
    serve(
        ServeOptions(
            server,
            address,
            token_file,
            keys,
            max_sessions,
            keepalive_seconds,
            log_file,
            as_json,
            watch_token_file,
            confinement,
            max_wait_seconds,
        )
    )
    ctx.exit(0)
