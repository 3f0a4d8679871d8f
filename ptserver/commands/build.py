"""`ptserver build`: `go build`, with the stub added to the program."""

import click


@click.command(
    "build",
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": [
            "--help"
        ],  # with -h among them every "h" in go's own flags would be taken for it
    },
    short_help="Build a Go program that insists on a runtime server.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[GO BUILD FLAGS] [PACKAGES]")
@click.pass_context
def build_command(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Build a Go program with the stub, which makes it refuse to run without a runtime server.

    All arguments are those of `go build`. The environment variable GOOSREMOTE names the OS abstraction that the
    server must present (default linux). Neither Go's own files nor the program's are changed.

    The exit status is go's own; 64 for what cannot have the stub, 69 for a Go that is not 1.21 to 1.27, and 127 when
    there is no Go.
    """
    from ptserver.stub.build import run_go

    ctx.exit(run_go("build", arguments))
