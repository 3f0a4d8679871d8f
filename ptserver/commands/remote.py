"""`ptserver remote`: the command line of a host that waits for programs."""

import click

from ptserver.commands.common_options import keepalive_option, max_wait_option

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class _Size(click.ParamType):  # type: ignore[type-arg]
    name = "SIZE"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        number, unit = (value[:-1], value[-1].upper()) if value[-1:].isalpha() else (value, "")
        if not number.isdecimal() or unit not in _UNITS or not int(number):
            self.fail(f"{value!r} is no size: write bytes, or a number and K, M, G or T", param, ctx)
        return int(number) * _UNITS[unit]


@click.command("remote")
@click.option(
    "--listen",
    "address",
    metavar="ADDR",
    default="localhost:11235",
    show_default=True,
    help="Where to wait: HOST:PORT, [IPV6]:PORT or unix:PATH.",
)
@click.option(
    "--server",
    metavar="ADDR",
    help="Connect to ADDR instead of listening, where `ptserver run --on listen:ADDR` waits with a program, now or "
    "later; and again after that.",
)
@click.option(
    "--token-file",
    metavar="FILE",
    help="Execute programs only for those who know the secret in the first line of FILE; with --server, show it that "
    "secret.",
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
    help="How many programs at once.",
)
@click.option(
    "--memory",
    type=_Size(),
    help="How much memory each program may have (RLIMIT_DATA), such as 512M or 4G; Go's runtime takes some 100M.",
)
@click.option(
    "--cache",
    metavar="DIR",
    help="Where programs are kept, so that none is sent twice. Default: $XDG_CACHE_HOME/ptserver/programs, or "
    "~/.cache/ptserver/programs.",
)
@click.option(
    "--cache-size",
    type=_Size(),
    default="2G",
    show_default=True,
    help="How much may be kept there; the program that was not used for the longest time goes first.",
)
@keepalive_option
@max_wait_option
@click.option("--log", "log_file", metavar="FILE", help="Append the log to FILE; default: standard error.")
@click.option("--json", "as_json", is_flag=True, help="Announce and log in JSON, one object per line.")
@click.pass_context
def remote_command(
    ctx: click.Context,
    address: str,
    server: str | None,
    token_file: str | None,
    keys: str | None,
    max_sessions: int,
    memory: int | None,
    cache: str | None,
    cache_size: int,
    keepalive_seconds: float,
    max_wait_seconds: int,
    log_file: str | None,
    as_json: bool,
) -> None:
    """Wait here for programs of others, and execute them.

    A program comes with `ptserver run --on ADDR ./main` from another machine. It is executed here, and has the files,
    streams, terminal, environment and working directory of that machine; of this one it has memory and processors.
    Once the host listens, it prints one line:

        ptserver: waiting for programs on ADDR

    With --server it is this host that connects, through a firewall for instance:

    \b
    ptserver run --on listen::11235 --keys ~/keys/server ./main     on the machine of the program
    ptserver remote --server db1:11235 --keys ~/keys/client         on this one

    SIGTERM or SIGINT ends it, and all programs that it executes.

    Exit status: 0 after SIGTERM or SIGINT; 64 for a wrong option, address, token file or folder of keys; 69 if ADDR
    cannot be listened at; 70 if ptserver failed.
    """
    from ptserver.offered.remote import RemoteOptions, remote

    remote(
        RemoteOptions(
            address,
            server,
            token_file,
            keys,
            max_sessions,
            memory,
            cache,
            cache_size,
            keepalive_seconds,
            max_wait_seconds,
            log_file,
            as_json,
        )
    )
    ctx.exit(0)
