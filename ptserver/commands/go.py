"""`ptserver go`: the go command with two more words, `-buildmode=remote` and `go remote`."""

import os

import click


@click.command(
    "go",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    add_help_option=False,
    short_help="The go command, with -buildmode=remote and `go remote`.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [ARGUMENTS]")
@click.pass_context
def go_command(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Run the go command, which knows two more words here.

    `ptserver go build -buildmode=remote main.go` builds with the stub, as `ptserver build` does (so do the other go
    commands that make programs: install, run, test). `ptserver go remote ./main ARGUMENTS` runs a
    program as `ptserver run ./main ARGUMENTS` does; `ptserver go remote` alone waits for programs, as
    `ptserver remote` does. All else is the go command's own.
    """
    subcommand, rest = (arguments[0], arguments[1:]) if arguments else ("", ())
    if subcommand == "remote" and not rest:
        from ptserver.commands.remote import remote_command

        ctx.exit(remote_command.main(args=[], prog_name="ptserver go remote", standalone_mode=False) or 0)
    if subcommand == "remote":
        from ptserver.commands.run import run_command

        ctx.exit(
            run_command.main(args=list(rest), prog_name="ptserver go remote", standalone_mode=False) or 0
        )

    from ptserver.stub.build import asks_for_stub, run_go

    if asks_for_stub(rest, interspersed=subcommand == "test"):
        ctx.exit(run_go(subcommand, rest))

    from ptserver.stub.toolchain import GoUnsuitableError, find_go

    command = find_go()
    try:
        os.execv(command, ["go", *arguments])
    except OSError as error:
        raise GoUnsuitableError(f"cannot run {command}: {error.strerror}") from error
