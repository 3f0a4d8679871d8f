"""`ptserver stack`: show the stack of one goroutine, or of all."""

import click

from ptserver.commands.inspect_arguments import inspect_arguments, printing


@click.command("stack", no_args_is_help=True)
@click.option("-r", "--runtime", is_flag=True, help="Show the runtime's calls, too.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON, one object a line.")
@inspect_arguments
@click.argument("goid", type=click.IntRange(min=1), required=False)
def stack_command(
    target: str,
    exe: str | None,
    goid: int | None,
    *,
    force: bool,
    no_stop: bool,
    runtime: bool,
    as_json: bool,
) -> None:
    """Show the stack of goroutine GOID of the process PID or the core dump CORE; without GOID, of all.

    Of one goroutine, more is shown: how long it has waited, its thread, its profiler labels, and the channels
    that it waits for.

    \b
    ptserver stack 1234
    ptserver stack 1234 18
    ptserver stack --runtime core.1234 18
    """
    from ptserver.goroutine_list import Selection, encoder, format_details, format_trace
    from ptserver.goroutine_rows import RowMaker
    from ptserver.inspection import InspectError, inspect_target

    encode = encoder()
    with inspect_target(target, exe, force=force, stop=not no_stop) as inspected, printing() as write:
        maker = RowMaker(inspected, Selection(system=goid is not None), stacks=True)
        if goid is None:
            sightings = inspected.iter_sightings()
        else:
            sighting = inspected.find(goid)
            if sighting is None:
                raise InspectError(f"{inspected.title} has no goroutine {goid}")
            sightings = iter([sighting])
        for row in maker.iter_rows(sightings):
            if as_json:
                write(encode(row))
                continue
            write(format_trace(row, runtime=runtime))
            if goid is not None:
                write(format_details(row))
