"""Which files below /proc tell about a program, and what it reads there."""

import os
from types import SimpleNamespace

import pytest

from ptserver.hosts.own_files import host_content, merged_stat, merged_status, own_file, shadow_content

OWN = 4321


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (b"/proc/self/maps", (OWN, b"maps")),
        (b"/proc/thread-self/status", (OWN, b"status")),
        (b"/proc/17/exe", (17, b"exe")),
        (b"/proc/self/fd/3", None),
        (b"/proc/self/../self/maps", None),
        (b"/proc/selfish/maps", None),
        (b"/proc/0/maps", None),
        (b"/proc/self/maps\n", None),
        (b"/procself/maps", None),
        (b"maps", None),
        (b"", None),
    ],
)
def test_files_about_a_process_are_known_by_their_whole_path(
    path: bytes, found: tuple[int, bytes] | None
) -> None:
    assert own_file(path, OWN) == found


def test_the_host_tells_about_the_programs_processes_alone() -> None:
    here = SimpleNamespace(id=OWN, pid=os.getpid())
    by_id = {OWN: here}
    assert host_content(b"/proc/self/cmdline", here, by_id)  # type: ignore[arg-type]
    assert host_content(f"/proc/{OWN}/comm".encode(), here, by_id)  # type: ignore[arg-type]
    assert host_content(b"/proc/1/cmdline", here, by_id) is None  # type: ignore[arg-type]
    assert host_content(b"/proc/self/mountinfo", here, by_id) is None  # type: ignore[arg-type]
    assert host_content(b"/proc/self/mem", here, by_id) is None  # type: ignore[arg-type]


def test_a_status_has_the_shadows_ids_and_the_hosts_memory() -> None:
    host = b"Name:\tprogram\nPid:\t5\nPPid:\t4\nUid:\t0\t0\nVmRSS:\t12 kB\nThreads:\t7\n"
    shadow = b"Name:\tptserver\nPid:\t900\nPPid:\t899\nUid:\t33\t33\nVmRSS:\t99 kB\nThreads:\t1\n"
    assert merged_status(host, shadow) == (
        b"Name:\tprogram\nPid:\t900\nPPid:\t899\nUid:\t33\t33\nVmRSS:\t12 kB\nThreads:\t7\n"
    )


def test_a_stat_has_the_shadows_ids_whatever_the_name_is() -> None:
    host = b"5 (a) b (c) S 4 5 5 0 -1 77 1 2\n"
    shadow = b"900 (ptserver) R 899 900 890 34816 900 66 3 4\n"
    assert merged_stat(host, shadow) == b"900 (a) b (c) S 899 900 890 34816 900 77 1 2\n"
    assert merged_stat(b"nonsense", shadow) == b"nonsense"


def test_the_shadow_believes_the_host_about_its_own_program_only() -> None:
    own = os.getpid()
    assert shadow_content(b"/proc/self/maps", own, b"told") == b"told"
    assert shadow_content(b"/etc/passwd", own, b"told") is None
    assert shadow_content(b"/proc/self/exe", own, b"told") is None
    status = shadow_content(b"/proc/self/status", own, b"Name:\tx\nPid:\t1\n")
    assert status == f"Name:\tx\nPid:\t{own}\n".encode()
