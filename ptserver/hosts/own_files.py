"""The files below /proc that tell about a program's own processes: what comes from the host, what from the shadow.

    /proc/(self|thread-self|ID)/NAME

    host       memory, threads, arguments, environment, name and state are those of the process at the stub host
    shadow     descriptors, folder, root, mounts, namespaces, input and output: the shadow's, opened as any file
    both       ``status`` and ``stat``: the host's, with ids, credentials and limits of the shadow's
    ``exe``    is the program, by the path that it was started by

The host sends what such a file holds with the call that opens it, as buffer `CONTENT`; no call has so many arguments.

Not trusted, at the server: the host, which tells its own program what it likes.
Source: proc(5).
"""

import re
from collections.abc import Mapping

from ptserver.hosts.pending_call import Process

#: Where an opening call carries what the host knows.
CONTENT = 5
#: Calls that open files by their name, and the index of that.
OPENING: Mapping[str, int] = {"open": 0, "openat": 1, "openat2": 1}

_OF_HOST = frozenset(
    b"auxv cmdline comm environ maps numa_maps personality sched schedstat smaps smaps_rollup stat statm status"
    b" syscall timers wchan".split()
)
_PATH = re.compile(rb"/proc/(self|thread-self|[1-9][0-9]{0,9})/([a-z_]+)\Z")
_MAX_BYTES = 4 << 20
#: The lines of ``status`` that the shadow knows.
_OF_SHADOW = frozenset(
    b"Tgid Ngid Pid PPid TracerPid Uid Gid FDSize Groups NStgid NSpid NSpgid NSsid Umask CapInh CapPrm CapEff CapBnd"
    b" CapAmb NoNewPrivs Seccomp Seccomp_filters".split()
)
#: The fields of ``stat``, counted from after the name, that the shadow knows: parent, group, session, terminal.
_STAT_OF_SHADOW = (1, 2, 3, 4, 5)


def own_file(path: bytes, own: int) -> tuple[int, bytes] | None:
    """Return the process id and the name of a file that tells about a process; *own* is the caller's."""
    if not path.startswith(b"/proc/"):
        return None
    match = _PATH.match(path)
    if match is None:
        return None
    who = match[1]
    return (own if who in (b"self", b"thread-self") else int(who)), match[2]


def host_content(path: bytes, caller: Process, by_id: Mapping[int, Process]) -> bytes | None:
    """Return what the host has to say about the file that *caller* opens; None if it is the shadow's alone."""
    found = own_file(path, caller.id)
    if found is None or found[1] not in _OF_HOST:
        return None
    process = by_id.get(found[0])
    if process is None:
        return None
    try:
        with open(f"/proc/{process.pid}/{found[1].decode()}", "rb") as file:
            return file.read(_MAX_BYTES)
    except OSError:
        return None


def shadow_content(path: bytes, own: int, content: bytes) -> bytes | None:
    """Return what the program reads there, from the host's *content*; None if the path is no such file."""
    found = own_file(path, own)
    if found is None or found[1] not in _OF_HOST:
        return None
    pid, name = found
    if name not in (b"status", b"stat"):
        return content
    try:
        with open(f"/proc/{pid}/{name.decode()}", "rb") as file:
            ours = file.read()
    except OSError:
        return content
    return merged_status(content, ours) if name == b"status" else merged_stat(content, ours)


def merged_status(host: bytes, shadow: bytes) -> bytes:
    """Return the host's ``status`` with the shadow's identity."""
    known = {line.partition(b":")[0]: line for line in shadow.splitlines(keepends=True)}
    return b"".join(_chosen(line, known) for line in host.splitlines(keepends=True))


def _chosen(line: bytes, known: Mapping[bytes, bytes]) -> bytes:
    name = line.partition(b":")[0]
    return known.get(name, line) if name in _OF_SHADOW else line


def merged_stat(host: bytes, shadow: bytes) -> bytes:
    """Return the host's ``stat`` with the shadow's ids."""
    name, fields = _split(host)
    pid, known = shadow.partition(b" ")[0], _split(shadow)[1]
    if len(fields) <= max(_STAT_OF_SHADOW) or len(known) <= max(_STAT_OF_SHADOW):
        return host
    for index in _STAT_OF_SHADOW:
        fields[index] = known[index]
    return b" ".join([pid, name, *fields]) + b"\n"


def _split(stat: bytes) -> tuple[bytes, list[bytes]]:
    """Return the name in its parentheses, and the fields after it."""
    head, _, rest = stat.rpartition(b") ")
    return head.partition(b" ")[2] + b")", rest.split()
