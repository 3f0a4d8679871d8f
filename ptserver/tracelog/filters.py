"""Which calls are traced: the expressions of `-e`.

EXPRESSION  [trace=] [!] ITEM {, ITEM}     `!` at the front: all calls but these
ITEM        NAME        a syscall
            ?NAME       the same, but no error if there is no such call (on some architecture)
            %SET        calls of a kind, see `SETS`
            runtime     those that Go's runtime makes by itself, not through package syscall; see `runtime_calls`
            /REGEXP     calls whose name the regular expression is found in
            all, none
"""

import re
from collections.abc import Callable, Iterable

from ptserver.tracelog.errors import FilterError
from stepping.syscalls import SYSCALLS, ArgKind, ResultKind, Syscall, SyscallClass

#: What is traced if nobody says otherwise: all that reaches outside the program.
DEFAULT_FILTER = "%resource"

_PATHS = {ArgKind.PATH}
_DESCRIPTORS = {ArgKind.FD, ArgKind.DIRFD}
_IPC = re.compile(r"(shm|sem|msg)(get|ctl|at|dt|op|snd|rcv|timedop)|mq_")


def _of_class(*classes: SyscallClass) -> Callable[[Syscall], bool]:
    return lambda row: row.klass in classes


def _with_argument(kinds: set[ArgKind]) -> Callable[[Syscall], bool]:
    return lambda row: any(arg.kind in kinds for arg in row.args)


def _has_decoder(row: Syscall, *decoders: str) -> bool:
    return any(arg.decoder in decoders for arg in row.args)


#: The sets of calls by name: who belongs follows from the syscall table.
SETS: dict[str, Callable[[Syscall], bool]] = {
    "file": _with_argument(_PATHS),
    "desc": lambda row: (
        row.result is ResultKind.FD
        or _with_argument(_DESCRIPTORS)(row)
        or _has_decoder(row, "fd_pair", "pollfds", "fd_set")
    ),
    "network": _of_class(SyscallClass.NET),
    "process": lambda row: row.klass is SyscallClass.PROCESS or row.name in ("exit", "exit_group"),
    "signal": lambda row: (
        row.klass is SyscallClass.SIGNAL or _has_decoder(row, "signal") or row.name.startswith("signalfd")
    ),
    "memory": _of_class(SyscallClass.MEMORY),
    "ipc": lambda row: bool(_IPC.match(row.name)),
    "identity": _of_class(SyscallClass.IDENTITY),
    "system": _of_class(SyscallClass.SYSTEM),
    "thread": _of_class(SyscallClass.THREAD),
    "time": _of_class(SyscallClass.TIME),
    "resource": lambda row: row.klass.is_resource or row.only_if is not None,
}
#: What Go's runtime calls by itself, in Go 1.21 to 1.27.
RUNTIME_CALLS = frozenset(
    (
        "read write close openat pipe2 nanosleep gettid getpid kill tgkill setitimer timer_create timer_settime "
        "timer_delete mincore clock_gettime rt_sigprocmask rt_sigaction mmap munmap madvise futex sigaltstack "
        "sched_yield sched_getaffinity access faccessat connect socket brk exit exit_group clone arch_prctl"
    ).split()
)
_ALIASES = {"net": "network", "creds": "identity", "clock": "time"}


def parse_filter(expression: str) -> frozenset[str]:
    """Return the names of the calls that *expression* asks for.

    Raises:
        FilterError: it names what does not exist (with names that are close), or does not follow the grammar.
    """
    text = expression.strip()
    kind, equals, rest = text.partition("=")
    if equals and not kind.startswith("/"):
        if kind not in ("trace", "t"):
            raise FilterError(f"-e {expression}: unknown qualifier {kind!r}; only trace= is known")
        text = rest.strip()
    inverted = text.startswith("!")
    names: set[str] = set()
    for item in _split(text.removeprefix("!")):
        names |= _names_of(item, expression)
    return frozenset(SYSCALLS) - names if inverted else frozenset(names)


def parse_filters(expressions: Iterable[str], default: str = DEFAULT_FILTER) -> frozenset[str]:
    """Return the names that any of *expressions* asks for; those of *default* if there are none.

    Raises:
        FilterError: as `parse_filter`.
    """
    return frozenset().union(*(parse_filter(expression) for expression in list(expressions) or [default]))


def runtime_calls(expressions: Iterable[str]) -> frozenset[str]:
    """Return the calls that are wanted of Go's runtime itself: `RUNTIME_CALLS` if an item is `runtime`."""
    for expression in expressions:
        if "runtime" in _items(expression):
            return RUNTIME_CALLS
    return frozenset()


def _items(expression: str) -> list[str]:
    text = expression.strip()
    return _split(text.removeprefix("trace=").removeprefix("t=").strip())


def _split(text: str) -> list[str]:
    """Return the items between commas; a regular expression may have commas inside brackets of any kind."""
    items, depth, item = [], 0, ""
    for char in text:
        if char in "{[(" and item.startswith("/"):
            depth += 1
        elif char in "}])" and depth:
            depth -= 1
        if char == "," and not depth:
            items.append(item)
            item = ""
        else:
            item += char
    return [stripped for stripped in (part.strip() for part in (*items, item))]


def _names_of(item: str, expression: str) -> set[str]:
    if not item:
        raise FilterError(f"-e {expression}: a name is missing; write for example -e trace=openat,%network")
    if item in ("all", "none"):
        return set(SYSCALLS) if item == "all" else set()
    if item == "runtime":
        return set()
    if item.startswith("%"):
        name = _ALIASES.get(item[1:], item[1:])
        if name not in SETS:
            raise FilterError(f"-e {expression}: no set {item}{_suggest(name, SETS, '%')}")
        member = SETS[name]
        return {row.name for row in SYSCALLS.values() if member(row)}
    if item.startswith("/"):
        try:
            found = re.compile(item[1:]).search
        except re.error as error:
            raise FilterError(f"-e {expression}: {item} is no regular expression: {error}") from error
        names = {name for name in SYSCALLS if found(name)}
        if not names:
            raise FilterError(f"-e {expression}: no system call's name matches {item}")
        return names
    name = item.removeprefix("?")
    if name in SYSCALLS:
        return {name}
    if item.startswith("?"):
        return set()
    raise FilterError(f"-e {expression}: no system call {name!r}{_suggest(name, SYSCALLS, '')}")


def _suggest(name: str, known: Iterable[str], sign: str) -> str:
    from difflib import get_close_matches  # only a mistake needs it

    close = get_close_matches(name, list(known), n=3, cutoff=0.6)
    if not close:
        return f"; known are {', '.join(sign + each for each in SETS)}" if sign else ""
    return f"; did you mean {', '.join(sign + each for each in close)}?"
