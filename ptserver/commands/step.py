"""`ptserver step`: debug a program by instructions, blocks and lines, at a prompt or by gdb."""

import sys
from typing import Literal, TextIO

import click


@click.command("step", context_settings={"allow_interspersed_args": False}, no_args_is_help=True)
@click.option("--pid", type=click.IntRange(min=1), help="Debug this running process instead of a program.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "native", "emulate"]),
    default="auto",
    show_default=True,
    help="What executes the program: the processor, or an emulated one. auto: an emulated one for programs of "
    "another architecture.",
)
@click.option("--seed", type=int, help="Make an emulated run repeatable.")
@click.option("--gdb", metavar="ADDR", help="Let gdb debug it, which connects to HOST:PORT or unix:PATH.")
@click.option(
    "-c",
    "--command",
    "commands",
    multiple=True,
    metavar="CMD",
    help="Execute CMD instead of asking; repeatable.",
)
@click.option("-x", "--script", type=click.File(), help="Execute the commands in this file, one a line.")
@click.option(
    "--trace",
    type=click.Choice(["insn", "block", "mem"]),
    help="Run PROGRAM to its end, and log each instruction, block, or access to memory.",
)
@click.option(
    "-o", "--output", metavar="FILE", help="Where the log of --trace goes, instead of standard error."
)
@click.option("--json", "as_json", is_flag=True, help="Write the log of --trace as JSON, one object a line.")
@click.argument("program", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def step_command(
    ctx: click.Context,
    pid: int | None,
    engine: str,
    seed: int | None,
    gdb: str | None,
    commands: tuple[str, ...],
    script: TextIO | None,
    trace: Literal["insn", "block", "mem"] | None,
    output: str | None,
    as_json: bool,
    program: str | None,
    arguments: tuple[str, ...],
) -> None:
    """Debug PROGRAM with ARGUMENTS, or a running process, from its next instruction on.

    Commands are read from the terminal, or from standard input; `help` lists them. The program's own standard input
    is empty then; with --command, --script or --gdb it has ours.

    A breakpoint says which goroutine came there, and steps follow that goroutine, into another thread if need be. A
    single step runs one thread alone; all threads run while a call is stepped over and until `continue` or `out` end.

    \b
    ptserver step ./main
    ptserver step -c 'break main.go:12' -c continue -c registers -c stack ./main
    ptserver step --engine=emulate --seed 1 ./main
    ptserver step --gdb localhost:1234 ./main-arm64
    ptserver step --trace=insn -o log ./main
    ptserver step --pid 1234
    """
    if (pid is None) == (program is None):
        raise click.UsageError("name either a program or a process (--pid)")
    if pid is not None and (engine == "emulate" or seed is not None):
        raise click.UsageError("a running process cannot be emulated")
    if gdb is not None and (commands or script is not None):
        raise click.UsageError("--gdb leaves no commands to execute here")
    from ptserver.running.run import RunOptions

    if trace is None and (output is not None or as_json):
        raise click.UsageError("--output and --json belong to --trace")
    if trace is not None:
        if gdb is not None or commands or script is not None or program is None:
            raise click.UsageError(
                "--trace runs a program to its end: it goes with no --gdb, --pid or commands"
            )
        from ptserver.program import find_program
        from ptserver.running.logged import run_logged

        path, header = find_program(program, emulated=engine != "native")
        argv = RunOptions(program, arguments).argv
        emulated = engine == "emulate"
        ctx.exit(
            run_logged(
                path, header, argv, trace, emulated=emulated, seed=seed, output=output, as_json=as_json
            )
        )
    from ptserver.debugger.launch import attach_target, launch_target
    from ptserver.debugger.prompt import run_prompt

    lines = None
    if commands or script is not None:
        lines = [*commands, *([line.rstrip("\n") for line in script] if script is not None else [])]
    if pid is not None:
        target = attach_target(pid)
    else:
        assert program is not None
        argv = RunOptions(program, arguments).argv
        typed = lines is None and gdb is None
        target = launch_target(
            program,
            argv,
            emulated=engine == "emulate",
            native=engine == "native",
            seed=seed,
            empty_stdin=typed,
        )
    if gdb is not None:
        from ptserver.gdb.listen import serve_gdb

        serve_gdb(gdb, target, attached=pid is not None)
        return
    sys.stdout.flush()
    ctx.exit(run_prompt(target, lines, attached=pid is not None))
