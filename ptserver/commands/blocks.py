"""`ptserver blocks`: show the basic blocks of a program, and what they may touch."""

import click

from ptserver.commands.inspect_arguments import printing


@click.command("blocks", no_args_is_help=True)
@click.option("--json", "as_json", is_flag=True, help="Write JSON, one object a line.")
@click.option("--no-cache", is_flag=True, help="Decode the program anew, and keep nothing.")
@click.option("--force", is_flag=True, help="Try Go versions that are not supported, by their DWARF.")
@click.argument("program")
@click.argument("function", required=False)
def blocks_command(program: str, function: str | None, *, as_json: bool, no_cache: bool, force: bool) -> None:
    """Show the basic blocks of the Go program PROGRAM, for amd64 or arm64.

    Without FUNCTION, each function has one line: how many blocks it has, how many of them are local, and in how many
    runs. With FUNCTION, a name or a pattern with * and ?, its blocks are shown: what they may touch, how they are
    left, and their source lines.

    A local block touches nothing but the stack and the program's variables, and makes no syscall. What was decoded
    is kept in $XDG_CACHE_HOME/ptserver/blocks.

    \b
    ptserver blocks ./main
    ptserver blocks ./main main.main
    ptserver blocks --json ./main 'net/http.*'
    """
    from goabi.binary import GoBinary
    from ptserver.blocks.listing import encoder, format_function, make_row, select_functions
    from ptserver.blocks.of_program import open_blocks
    from ptserver.inspection.find_process import InspectError

    encode = encoder()
    found = False
    with GoBinary.open(program, force=force) as binary, printing() as write:
        blocks = open_blocks(binary, cached=not no_cache)
        for one in select_functions(binary, function):
            found = True
            row = make_row(binary, blocks, one, details=function is not None)
            write(encode(row) if as_json else format_function(row))
        blocks.save()
        if not found:
            raise InspectError(f"{program} has no function {function}")
