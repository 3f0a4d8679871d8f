"""`ptserver dump`: write a core dump of a running process."""

import click


@click.command("dump", no_args_is_help=True)
@click.argument("pid", type=click.IntRange(min=1))
@click.option("-o", "--output", metavar="CORE", help="Where to; by default core.PID.")
@click.option("-q", "--quiet", is_flag=True, help="Do not say what was done.")
def dump_command(pid: int, output: str | None, *, quiet: bool) -> None:
    """Write a core dump of the process PID, which goes on running.

    It is stopped only while its memory is copied: some milliseconds for a small program. gdb and delve open the
    core, and so do `ptserver goroutines` and `ptserver stack`. It holds the program's secrets, so only its owner
    may read it.

    \b
    ptserver dump 1234 -o core
    gdb ./main core
    """
    from ptserver.inspection.core_dump import dump_process

    path = output or f"core.{pid}"
    dumped = dump_process(pid, path)
    if not quiet:
        click.echo(
            f"{path}: {dumped.memory_bytes / 1e6:.1f} MB and {dumped.threads} threads of process {dumped.pid} "
            f"({dumped.name}), which was stopped for {dumped.stop_s * 1e3:.1f} ms",
            err=True,
        )
