"""The live view of an attached program: what is on the screen, and what the keys do. Draws, and does nothing else.

`View.press` takes keys, `View.show` a new snapshot; `View.render` returns what a window of some size shows.
"""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ptserver.attach.pages import PAGES
from ptserver.attach.snapshot import GoroutineUse, GroupUse, SiteUse, Snapshot, Use
from ptserver.inspection.goroutine_list import FrameRow, is_shown
from ptserver.tracelog.goroutine_summary import format_bytes

HELP = """\
1 goroutines   2 stacks   3 states   4 where created   5 calls        Tab: the next of them
up down PgUp PgDn Home End    choose a line           Enter   its stack (Esc: back)
o / O    order by the next / previous column          r       reverse the order
/ text   only lines with that text (Esc: all)         space   pause, and go on
t        since the last / since the start             h ?     this help
q Ctrl-C detach and leave; the program goes on"""

_CHROME_LINES = 5


class View:
    """The state of the view. quits: the user has had enough; paused: new snapshots are not shown."""

    def __init__(self) -> None:
        self.quits = False
        self.paused = False
        self._snapshot: Snapshot | None = None
        self._page = 0
        self._order = [page.order for page in PAGES]
        self._reversed = False
        self._since_start = False
        self._line = 0
        self._first = 0
        self._height = 1
        self._filter = ""
        self._typing = False
        self._detail: tuple[FrameRow, ...] | None = None
        self._detail_title = ""
        self._help = False

    def show(self, snapshot: Snapshot) -> None:
        """Take a snapshot; it is on the screen unless the view is paused."""
        if not self.paused or self._snapshot is None:
            self._snapshot = snapshot

    # -- keys -------------------------------------------------------------------------------------------------

    def press(self, key: str) -> None:
        """Take a key: a character, or a name as `screen.KEYS` has them."""
        if self._typing:
            self._type(key)
        elif key in ("q", "\x03"):
            self.quits = True
        elif key in ("h", "?"):
            self._help = not self._help
        elif key == "escape":
            self._escape()
        elif key in _MOVES:
            self._move(_MOVES[key](self._height))
        elif key == "enter":
            self._open()
        elif key == "/":
            self._typing, self._filter = True, ""
        elif key in (" ", "p"):
            self.paused = not self.paused
        elif key == "t":
            self._since_start = not self._since_start
        elif key == "r":
            self._reversed = not self._reversed
        elif key in ("o", "O"):
            columns = len(PAGES[self._page].columns)
            self._order[self._page] = (self._order[self._page] + (1 if key == "o" else -1)) % columns
            self._line = 0
        elif key == "tab" or (key.isdecimal() and 0 < int(key) <= len(PAGES)):
            self._page = (self._page + 1) % len(PAGES) if key == "tab" else int(key) - 1
            self._line, self._detail, self._help = 0, None, False

    def _type(self, key: str) -> None:
        if key in ("enter", "escape", "\x03"):
            self._typing = False
            if key != "enter":
                self._filter = ""
        elif key == "backspace":
            self._filter = self._filter[:-1]
        elif len(key) == 1 and key.isprintable():
            self._filter += key
        self._line = 0

    def _escape(self) -> None:
        if self._help or self._detail is not None:
            self._help, self._detail = False, None
        else:
            self._filter = ""

    def _move(self, by: int) -> None:
        self._line = max(0, self._line + by)

    def _open(self) -> None:
        rows = self._rows()
        if not rows or self._snapshot is None:
            return
        row = rows[min(self._line, len(rows) - 1)]
        if isinstance(row, GoroutineUse | GroupUse):
            numbered = isinstance(row, GoroutineUse)
            self._detail_title = f"goroutine {row.goid}" if numbered else f"{row.count} goroutines"  # type: ignore[union-attr]
            self._detail_title += f" [{row.reason or row.state or 'not listed yet'}]"
            self._detail = self.stack(row.stack)

    # -- what is seen -----------------------------------------------------------------------------------------

    def use(self, row: GoroutineUse | SiteUse) -> Use:
        """Return what a row's goroutines used in the time that is shown."""
        return row.total if self._since_start else row.recent

    @property
    def seconds(self) -> float:
        """How long the time is that is shown."""
        assert self._snapshot is not None
        return self._snapshot.interval_ns / 1e9

    def rate(self, count: int) -> str:
        """Return a count as it is shown: by second, or as a sum since the start."""
        if not count:
            return "0"
        if self._since_start:
            return str(count)
        return f"{count / self.seconds:.0f}" if count >= 10 * self.seconds else f"{count / self.seconds:.1f}"

    def bytes(self, count: int) -> str:
        """Return a number of bytes, as `rate` does."""
        return format_bytes(count if self._since_start else round(count / self.seconds))

    def share(self, ns: int) -> str:
        """Return a time as a part of the interval, or in seconds since the start."""
        return f"{ns / 1e9:.2f}s" if self._since_start else f"{100 * ns / 1e9 / self.seconds:.1f}"

    def stack(self, number: int) -> tuple[FrameRow, ...]:
        """Return a stack of the snapshot that is shown, innermost call first; empty if there is none."""
        return self._snapshot.stacks[number] if self._snapshot is not None and number >= 0 else ()

    def render(self, width: int, height: int) -> RenderableType:
        """Return what is to be seen in a window of that many characters."""
        snapshot = self._snapshot
        if snapshot is None:
            return Text("attaching...")
        lines = [*_head(snapshot, width), self._tabs()]
        self._height = max(1, height - _CHROME_LINES - len(snapshot.notes))
        if self._help:
            body: RenderableType = Text(HELP)
        elif self._detail is not None:
            body = _stack_text(self._detail_title, self._detail, self._height)
        else:
            body = self._table(width, self._height)
        return Group(*lines, body, self._foot())

    def print_all(self, width: int, rows: int) -> RenderableType:
        """Return all pages one below the other, each of at most so many rows, for who has no terminal."""
        assert self._snapshot is not None
        parts: list[RenderableType] = [*_head(self._snapshot, width)]
        for self._page in range(len(PAGES)):
            parts += [
                Text(f"\n{PAGES[self._page].name}", style="bold"),
                self._table(width, rows + 1, chosen=False),
            ]
        return Group(*parts)

    def _rows(self) -> Sequence[Any]:
        assert self._snapshot is not None
        page = PAGES[self._page]
        column = page.columns[self._order[self._page]]
        wanted = self._filter.lower()
        rows = [row for row in page.rows(self._snapshot) if not wanted or wanted in self._text(row).lower()]
        rows.sort(key=lambda row: _ordered(column.key(row, self)), reverse=self._reversed)
        return rows

    def _text(self, row: Any) -> str:
        """Return what the filter looks into: the line, and the stack behind it."""
        words = [column.show(row, self) for column in PAGES[self._page].columns]
        words += [frame.function for frame in self.stack(getattr(row, "stack", -1))]
        return " ".join(words)

    def _table(self, width: int, height: int, *, chosen: bool = True) -> Table:
        page, rows = PAGES[self._page], self._rows()
        order = self._order[self._page]
        table = Table(box=None, padding=(0, 1), expand=True, pad_edge=False, header_style="bold")
        columns = [(number, column) for number, column in enumerate(page.columns) if column.width <= width]
        for number, column in columns:
            last = number == len(page.columns) - 1
            table.add_column(
                column.head + ("*" if number == order else ""),
                justify="right" if column.right else "left",
                no_wrap=True,
                overflow="ellipsis",
                ratio=1 if last else None,
            )
        self._line = min(self._line, max(0, len(rows) - 1))
        room = max(1, height - 1)
        self._first = min(max(self._first, self._line - room + 1), self._line) if chosen else 0
        for number, row in enumerate(rows[self._first : self._first + room], self._first):
            # Text, not str: what a program calls its functions is no markup.
            cells = [Text(column.show(row, self)) for _, column in columns]
            table.add_row(*cells, style="reverse" if chosen and number == self._line else "")
        return table

    def _tabs(self) -> Text:
        text = Text(no_wrap=True, overflow="ellipsis")
        for number, page in enumerate(PAGES):
            style = "bold reverse" if number == self._page else ""
            text.append(f" {number + 1} {page.name} ", style=style)
        text.append("  since the start" if self._since_start else "  per second")
        if self._typing or self._filter:
            text.append(f"  /{self._filter}" + ("_" if self._typing else ""), style="bold")
        if self.paused:
            text.append("  PAUSED", style="bold")
        return text

    def _foot(self) -> Text:
        return Text("q leave  h help  Enter stack  o order  / filter  space pause", style="dim", no_wrap=True)


_MOVES: dict[str, Callable[[int], int]] = {
    "up": lambda height: -1,
    "k": lambda height: -1,
    "down": lambda height: 1,
    "j": lambda height: 1,
    "pageup": lambda height: -height,
    "pagedown": lambda height: height,
    "home": lambda height: -(1 << 30),
    "end": lambda height: 1 << 30,
}


def _ordered(key: Any) -> Any:
    """Return a key by which the largest number, or the first word, comes first."""
    return (0, -key) if isinstance(key, int | float) else (1, key)


def _head(snapshot: Snapshot, width: int) -> list[Text]:
    seconds = snapshot.interval_ns / 1e9
    recent = snapshot.recent
    cpu = 100 * recent.cpu_ns / 1e9 / seconds
    errors = f", {recent.errors / seconds:.0f} failed" if recent.errors else ""
    lost = f", {snapshot.lost} LOST" if snapshot.lost else ""
    stopped = f"stopped {snapshot.stops} times, {snapshot.stopped_ns / 1e6:.1f} ms at most"
    states = ", ".join(
        f"{count} {state}" for state, count in sorted(snapshot.states.items(), key=lambda item: -item[1])
    )
    age = f" ({snapshot.listed_ns_ago / 1e9:.0f} s ago)" if snapshot.listed_ns_ago > 3 * 10**9 else ""
    lines = [
        f"{snapshot.title}  {snapshot.goroutines} goroutines{age}  {snapshot.threads} threads  "
        f"{cpu:.0f}% of {snapshot.cores} cores' {100 * snapshot.cores}%",
        f"{recent.calls / seconds:.0f} calls/s{errors}{lost}  "
        f"in {format_bytes(round(recent.read_bytes / seconds))}/s  "
        f"out {format_bytes(round(recent.written_bytes / seconds))}/s  {stopped if snapshot.stops else ''}",
        states,
    ]
    found = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
    found[0].stylize("bold")
    notes = (*snapshot.notes, *((snapshot.ended,) if snapshot.ended else ()))
    return found + [Text(note, style="italic", no_wrap=True, overflow="ellipsis") for note in notes]


def _stack_text(title: str, stack: tuple[FrameRow, ...], height: int) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{title}\n", style="bold")
    lines = [frame for frame in stack if is_shown(frame.function)] or list(stack)
    room = max(1, (height - 2) // 2)
    for frame in lines[:room]:
        text.append(f"{frame.function}\n").append(f"    {frame.file}:{frame.line}\n", style="dim")
    if len(lines) > room:
        text.append(f"{len(lines) - room} more calls\n", style="dim")
    if not lines:
        text.append("no stack is known; it began after the last list\n")
    return text
