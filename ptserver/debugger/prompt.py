"""The debugger's prompt: reads commands from a terminal, a script or the command line, and prints the answers."""

import contextlib
import signal
import sys
from collections.abc import Iterable, Iterator

from ptserver.debugger.commands import COMMANDS, EXPECTED_ERRORS, Commands, Quit
from ptserver.debugger.debugger import Debugger
from ptserver.debugger.show import show_stop
from ptserver.debugger.target import Target

_PROMPT = "(ptserver) "


def run_prompt(target: Target, commands: Iterable[str] | None, *, attached: bool) -> int:
    """Execute commands until the user leaves or there are no more; return the exit status.

    commands: lines to execute, which are echoed; an error ends them, with status 1. None: read them from standard
    input. At the end a program that was launched is ended, and one that was attached to is let go.
    """
    debugger = Debugger(target)
    executor = Commands(debugger)
    keyboard = _Keyboard()
    detach = attached
    status = 0
    try:
        with _interrupting(target, keyboard):
            print(show_stop(debugger), flush=True)
            for line in _echoed(commands) if commands is not None else keyboard.iter_lines():
                try:
                    answer = executor.execute(line)
                    if answer:
                        print(answer, flush=True)
                except EXPECTED_ERRORS as error:
                    print(f"error: {error}", flush=True)
                    if commands is not None:
                        status = 1
                        break
    except Quit as wish:
        detach = detach or wish.detach
    finally:
        debugger.view.close()
        if not debugger.exited:
            target.detach() if detach else target.kill()
    return status


def _echoed(commands: Iterable[str]) -> Iterator[str]:
    for line in commands:
        print(_PROMPT + line, flush=True)
        yield line


class _Keyboard:
    """What the user types. `is_read`: a line is being typed now."""

    def __init__(self) -> None:
        self.is_read = False

    def iter_lines(self) -> Iterator[str]:
        """Yield lines up to the end of input; an empty one repeats the one before, as debuggers do."""
        interactive = sys.stdin.isatty()
        if interactive:
            _complete_by_tab()
        last = ""
        while True:
            try:
                self.is_read = True
                line = input(_PROMPT if interactive else "")
            except EOFError:
                if interactive:
                    print()
                return
            except KeyboardInterrupt:
                print()
                continue
            finally:
                self.is_read = False
            if not interactive:
                print(_PROMPT + line, flush=True)
            elif not line.strip():
                line = last
            last = line
            yield line


def _complete_by_tab() -> None:
    with contextlib.suppress(ImportError):
        import readline

        def complete(text: str, state: int) -> str | None:
            found = [name for name in COMMANDS if name.startswith(text)]
            return found[state] if state < len(found) else None

        readline.set_completer(complete)
        readline.parse_and_bind("tab: complete")


@contextlib.contextmanager
def _interrupting(target: Target, keyboard: _Keyboard) -> Iterator[None]:
    """Let ^C stop the program while that runs, and give up a line while that is typed."""

    def handle(*_: object) -> None:
        if keyboard.is_read:
            raise KeyboardInterrupt
        target.interrupt()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
