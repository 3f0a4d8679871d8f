"""The command line: finds the command, and turns every expected error into one line and an exit status."""

import gc
import importlib
import os
import sys
import traceback

import click

from ptserver import __version__

#: Where each command is; imported when it is used, so that none pays for another's libraries.
_COMMANDS = {
    "run": "ptserver.commands.run:run_command",
    "trace": "ptserver.commands.trace:trace_command",
    "attach": "ptserver.commands.attach:attach_command",
    "goroutines": "ptserver.commands.goroutines:goroutines_command",
    "stack": "ptserver.commands.stack:stack_command",
    "dump": "ptserver.commands.dump:dump_command",
    "blocks": "ptserver.commands.blocks:blocks_command",
    "step": "ptserver.commands.step:step_command",
    "serve": "ptserver.commands.serve:serve_command",
    "keys": "ptserver.commands.keys:keys_command",
    "remote": "ptserver.commands.remote:remote_command",
    "sessions": "ptserver.commands.sessions:sessions_command",
    "ps": "ptserver.commands.ps:ps_command",
    "top": "ptserver.commands.top:top_command",
    "migrate": "ptserver.commands.migrate:migrate_command",
    "drain": "ptserver.commands.migrate:drain_command",
    "join": "ptserver.commands.migrate:join_command",
    "build": "ptserver.commands.build:build_command",
    "go": "ptserver.commands.go:go_command",
}

_EPILOG = """\b
Exit status: that of the program, and a program that dies by a signal makes ptserver die by it. Before there is a
program, and when a session breaks:
  64   the command line, an address, a filter or a server's name is wrong
  65   a file is damaged, or of another version
  66   a file, process or token cannot be read
  69   a server does not answer or was lost; a trace's source or a Go toolchain is unsuitable
  70   a server's own code failed, or ptserver has a mistake
  71   an instruction cannot be executed on remote memory; the program, or a core of it, is left
  73   a log cannot be written where it should be
  74   an input or output error, a full disk for one
  76   the peer does not follow the protocol
  77   the server, or the kernel, refuses
  126  the program cannot be executed here, or is not what it should be
  127  there is no such program, or no Go

Completion for the shell: eval "$(_PTSERVER_COMPLETE=bash_source ptserver)", or zsh_source, fish_source.
"""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = _COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, name = target.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], _COMMANDS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(_COMMANDS)}"
            ctx.fail(f"no command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ptserver")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Run Go programs under a split runtime: here, with a server that gives them what they ask of the world.

    \b
    ptserver run ./main                            natively
    ptserver run --server localhost:11235 ./main   with the files and environment of a server
    ptserver run --trace ./main                    with a log of its system calls
    ptserver serve passthrough --listen localhost:11235     be that server
    ptserver remote --listen localhost:11235       execute the programs of others
    ptserver run --on localhost:11235 ./main       there, with the files and environment of here
    ptserver keys DIR db1.example                  what both need to do so between machines
    ptserver build ./cmd/main                      a program that insists on a server
    """


def main() -> None:
    """Run the `ptserver` command and exit."""
    # Nothing that is made at the start is garbage, and looking for some takes a tenth of it.
    gc.set_threshold(20_000, 20, 20)
    debug = bool(os.environ.get("PTSERVER_DEBUG")) or "--debug" in sys.argv[1:2]
    try:
        status = cli.main(standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        status = 64
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "ptserver"
        print(f"ptserver: {error.format_message()} (see `{where} --help`)", file=sys.stderr)
        status = 64
    except (click.exceptions.Abort, KeyboardInterrupt):
        status = 130
    except Exception as error:  # noqa: BLE001 - the one place where an error ends the program
        status = _exit_status(error)
        if debug:
            traceback.print_exc()
        kind = f"internal error: {type(error).__name__}: " if status is None else ""
        hint = "; ptserver --debug shows where" if status is None and not debug else ""
        print(f"ptserver: {kind}{_text_of(error)}{hint}", file=sys.stderr)
    sys.exit(70 if status is None else status)


def _text_of(error: Exception) -> str:
    """Return what an error says; of a file that cannot be used, without the number that Python puts first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"cannot use {os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


def _exit_status(error: Exception) -> int | None:
    """Return the status for an expected error, None for a mistake in ptserver."""
    from goabi.errors import GoAbiError
    from ptserver.errors import PtServerError
    from stepping.errors import SteppingError

    match error:
        case PtServerError():
            return error.exit_status
        case SteppingError():
            return 77
        case GoAbiError():
            return 126
        case click.ClickException():
            return 64
        case OSError():
            return 74
    return None
