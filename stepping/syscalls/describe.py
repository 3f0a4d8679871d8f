"""Writes the table as the tables of `docs/syscalls.md`: `python -m stepping.syscalls.describe`.

The prose of that page stands in the page itself; what is between its two markers comes from here.
"""

from stepping.syscalls.model import Arch, Syscall, SyscallClass
from stepping.syscalls.table import SYSCALLS

#: What surrounds the generated part of the page.
BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"

_TITLES = {
    SyscallClass.FILE: "names, files, directories, descriptors, pipes, events",
    SyscallClass.NET: "sockets",
    SyscallClass.PROCESS: "children, and signals between processes",
    SyscallClass.IDENTITY: "ids, groups, limits, sessions, host name",
    SyscallClass.SYSTEM: "the machine as a whole",
    SyscallClass.MEMORY: "the address space",
    SyscallClass.THREAD: "threads, futexes, scheduling",
    SyscallClass.SIGNAL: "handlers, masks, signals among the program's threads",
    SyscallClass.TIME: "clocks, timers, sleeping",
    SyscallClass.HOST: "the machine that executes: processors, randomness, accounting",
}


def describe() -> str:
    """Return a table of calls for each class, in Markdown."""
    parts = []
    for klass, title in _TITLES.items():
        rows = [row for row in SYSCALLS.values() if row.klass is klass]
        parts.append(f"### {klass.value}: {title}\n\n| call | amd64 | arm64 | |\n|---|---|---|---|")
        parts[-1] += "".join(f"\n{_line(row)}" for row in rows)
    return "\n\n".join(parts) + "\n"


def _line(row: Syscall) -> str:
    marks = ["waits"] if row.may_wait else []
    if row.bound:
        marks.append("bound")
    if row.only_if is not None:
        condition = row.only_if
        name = row.args[condition.arg].name
        marks.append(f"a resource only if {name} & {condition.mask:#x} is {condition.value:#x}")
    arguments = ", ".join(arg.name for arg in row.args)
    return f"| `{row.name}({arguments})` | {_number(row, 'amd64')} | {_number(row, 'arm64')} | {', '.join(marks)} |"


def _number(row: Syscall, arch: Arch) -> str:
    return str(row.numbers.get(arch, ""))


def page_with_tables(page: str) -> str:
    """Return the text *page* with the part between its markers made anew.

    Raises:
        ValueError: it has no markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no markers")
    return f"{before}{BEGIN}\n\n{describe()}\n{END}{after}"


if __name__ == "__main__":
    print(describe(), end="")
