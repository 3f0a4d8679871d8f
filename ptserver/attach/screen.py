"""The terminal of the live view: its other screen while it lasts, keys one by one, and all as it was afterwards.

A terminal that goes away (a closed window, a lost connection) is no error: it reads as the key `gone`.
"""

import contextlib
import os
import sys
import termios
import tty
from types import TracebackType

from rich.console import Console, ConsoleDimensions, RenderableType
from rich.live import Live

GONE = "gone"

#: What keys send, and what they are called; all others are called what they send.
KEYS = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1b[5~": "pageup",
    b"\x1b[6~": "pagedown",
    b"\x1b[H": "home",
    b"\x1b[F": "end",
    b"\x1b[1~": "home",
    b"\x1b[4~": "end",
    b"\x1b": "escape",
    b"\r": "enter",
    b"\n": "enter",
    b"\t": "tab",
    b"\x7f": "backspace",
    b"\x08": "backspace",
}
_READ_BYTES = 256


class Screen:
    """Standard input and output as a screen, while entered. They must be a terminal."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, legacy_windows=False)
        self._live = Live(
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._saved: list[object] | None = None
        self.gone = False

    def __enter__(self) -> "Screen":
        self._saved = termios.tcgetattr(0)
        tty.setcbreak(0, termios.TCSADRAIN)
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # One that is gone cannot be restored.
        with contextlib.suppress(OSError):
            self._live.stop()
        with contextlib.suppress(termios.error):
            termios.tcsetattr(0, termios.TCSADRAIN, self._saved)  # type: ignore[arg-type]
        if self.gone:
            # What is still in Python's buffer would fail again at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def fileno(self) -> int:
        """Return the descriptor that is readable when keys have come."""
        return 0

    @property
    def size(self) -> tuple[int, int]:
        """The window's width and height in characters."""
        try:
            columns, lines = os.get_terminal_size(
                1
            )  # not what COLUMNS says, which a resized window leaves wrong
        except OSError:
            return self._console.size
        # A terminal that does not know its size has none.
        self._console.size = ConsoleDimensions(columns or 80, lines or 24)
        return self._console.size

    def draw(self, seen: RenderableType) -> None:
        """Put something on the screen."""
        try:
            self._live.update(seen, refresh=True)
        except OSError:
            self.gone = True

    def read_keys(self) -> list[str]:
        """Return the keys that have come, `GONE` if there is no terminal any more."""
        try:
            data = os.read(0, _READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.gone = True
            return [GONE]
        return split_keys(data)


def split_keys(data: bytes) -> list[str]:
    """Return the names of the keys that sent *data*; sequences of keys without a name are left out."""
    keys = []
    while data:
        name = next((sent for sent in sorted(KEYS, key=len, reverse=True) if data.startswith(sent)), None)
        if name == b"\x1b" and data[1:2] in (b"[", b"O"):
            end = next((at for at in range(2, len(data)) if 0x40 <= data[at] <= 0x7E), len(data))
            data = data[end + 1 :]
        elif name is not None:
            keys.append(KEYS[name])
            data = data[len(name) :]
        else:
            length = 1 if data[0] < 0x80 else 2 if data[0] < 0xE0 else 3 if data[0] < 0xF0 else 4
            keys.append(data[:length].decode("utf-8", "replace"))
            data = data[length:]
    return keys
