"""What the commands that can look into a session of a server have in common: how they name it."""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ptserver.watching.watcher import Watcher

Command = Callable[..., Any]
Connect = Callable[[], "Watcher"]


def server_arguments(*, required: bool = False) -> Callable[[Command], Command]:
    """Return a decorator that adds `--server` and what goes with it to a command.

    The command gets them as one `connect`: a function that returns a `Watcher`, or None without `--server`.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_connect(*args: Any, **options: Any) -> Any:
            address, token_file, keys = (options.pop(name) for name in ("server", "token_file", "keys"))
            if address is None and (token_file or keys):
                raise click.UsageError("--token-file and --keys belong to --server")

            def connect() -> "Watcher":
                from ptserver.watching.watcher import Watcher

                return Watcher.connect(address, token_file, keys)

            return command(*args, connect=None if address is None else connect, **options)

        for option in reversed(
            (
                click.option(
                    "--server",
                    metavar="ADDR",
                    required=required,
                    help="Look at a session of the server at ADDR, wherever it runs; `ptserver sessions` lists them.",
                ),
                click.option(
                    "--token-file",
                    metavar="FILE",
                    help="The server's token, or its watchers'.",
                ),
                click.option("--keys", metavar="DIR", help="Speak TLS with the keys in DIR."),
            )
        ):
            with_connect = option(with_connect)
        return with_connect

    return decorate


def process_number(target: str) -> int:
    """Return the number of a process that a user named.

    Raises:
        click.UsageError: it is none.
    """
    if not target.isdecimal() or not int(target):
        raise click.UsageError(
            f"{target!r} is no number of a process; for a session name its server, with --server"
        )
    return int(target)
