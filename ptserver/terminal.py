"""The user's terminal, as a stub host passes it on: raw while a session runs, its size, and its type.

Source: termios(3), tty_ioctl(4).
"""

import os
import sys
import termios
import tty
from types import TracebackType

from ptserver.messages import Terminal


def user_terminal() -> Terminal | None:
    """Return the terminal of standard input and output, None if they are not both the same one."""
    try:
        if os.ttyname(0) != os.ttyname(1):
            return None
        size = os.get_terminal_size(0)
    except OSError:
        return None
    return Terminal(size.lines, size.columns, os.environ.get("TERM", ""))


class RawTerminal:
    """While entered, keys go to the program uninterpreted: the terminal at the server interprets them."""

    def __init__(self) -> None:
        self._saved: list[object] | None = None

    def __enter__(self) -> "RawTerminal":
        sys.stdout.flush()
        self._saved = termios.tcgetattr(0)
        tty.setraw(0, termios.TCSADRAIN)
        return self

    def suspend(self, interpreted: bool) -> None:
        """Let this terminal interpret keys meanwhile, so that Ctrl-C is a signal of this machine."""
        if interpreted and self._saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._saved)  # type: ignore[arg-type]
        elif self._saved is not None:
            tty.setraw(0, termios.TCSADRAIN)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._saved)  # type: ignore[arg-type]
