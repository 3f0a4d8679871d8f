"""Prints what `ptserver.spread.listing` found, as tables for people or as JSON lines."""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from goabi.goroutine import GoStatus
from ptserver.inspection.goroutine_list import printable
from ptserver.spread.listing import GoroutineAt, Listing, Row

#: How many lines of a table are shown where it has no end.
_MOST_LINES = 20


def encoder() -> Callable[[Row], bytes]:
    """Return a function that gives a row's line of JSON."""
    encode = msgspec.json.Encoder().encode
    return lambda row: encode(row) + b"\n"


def title(listing: Listing) -> str:
    """Return one line on the program."""
    program = listing.program
    text = (
        f"{printable(program.path)}, process {program.pid}, session {program.session}: {program.moves} moves"
    )
    if program.unadapted:
        text += f"; not adapted: {', '.join(map(printable, program.unadapted))}"
    for row in program.unlinked:
        text += f"; hosts {row.host} and {row.other} exchange pages by way of host 0: {printable(row.reason)}"
    return text


def hosts_table(listing: Listing) -> str:
    """Return the hosts, one a line."""
    rows = [
        (
            *map(
                str,
                (host.host, printable(host.address), host.condition, host.running, host.threads, host.pages),
            ),
        )
        for host in listing.hosts
    ]
    return _table(("HOST", "ADDRESS", "STATE", "RUNNING", "THREADS", "PAGES"), rows)


def goroutines_table(listing: Listing, seconds: float = 0.0) -> str:
    """Return the goroutines, those that run first. seconds: how long faults were counted, 0 if they were not."""
    rows = []
    for row in sorted(listing.goroutines, key=lambda row: (row.host is None, -row.faults, row.goid)):
        columns = [str(row.goid), "-" if row.host is None else str(row.host), _state(row)]
        columns += ["-" if row.tid is None else str(row.tid), str(row.moves) if row.tid is not None else "-"]
        if seconds:
            columns.append(_rate(row.faults, seconds) if row.tid is not None else "-")
        rows.append((*columns, printable(row.function)))
    heads = ["GOID", "HOST", "STATE", "THREAD", "MOVES", *(["FAULTS/S"] if seconds else []), "BEGAN IN"]
    return _table(heads, rows[:_MOST_LINES] if seconds else rows)


def faults_table(listing: Listing, seconds: float) -> str:
    """Return what was fetched most in an interval."""
    rows = [
        (_rate(row.reads + row.writes, seconds), _rate(row.writes, seconds), printable(row.symbol))
        for row in listing.faults[:_MOST_LINES]
    ]
    return _table(("FAULTS/S", "WRITES/S", "FOR"), rows)


def _state(row: GoroutineAt) -> str:
    state = row.reason or row.state
    if row.state == GoStatus.SYSCALL.name.lower():
        state = "C code" if row.doing == "runs" else row.doing or state
    return f"{state} (pinned)" if row.pinned else state


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:.0f}" if count >= 10 * seconds or not count else f"{count / seconds:.1f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in lines
    )
