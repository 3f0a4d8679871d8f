"""What is changed in Go's runtime while a program is spread: found in every Go, and without effect on results."""

import json
import os
import subprocess

import pytest

from ptserver.spread.adaptations import ADAPTATIONS, AdaptationError, Pace, find_adaptations, parse_names
from tests.conformance.modes import base_environment
from tests.gofixtures import GO_VERSIONS, build
from tests.leftovers import none_left
from tests.process.commands import ptserver


@pytest.mark.parametrize(
    "go", [pytest.param(go, marks=pytest.mark.slow) for go in GO_VERSIONS[:-1]] + [GO_VERSIONS[-1]]
)
@pytest.mark.parametrize("flags", [(), ("-ldflags=-s -w",), ("-buildmode=pie", "-ldflags=-s -w")])
def test_all_are_found_whether_the_program_is_stripped_or_not(go: str, flags: tuple[str, ...]) -> None:
    found = find_adaptations(str(build("hello", go=go, flags=flags)), tuple(ADAPTATIONS), 1_000_000)
    assert found.missing == (("wakeups",) if go == "1.21" else ())
    assert all(len(patch.old) == len(patch.new) for patch in found.patches)


def test_the_runtime_looks_less_often_where_hosts_are_far() -> None:
    assert Pace.of(0) == Pace(40_000, 50_000_000)
    assert Pace.of(1_000_000) == Pace(50_000, 100_000_000)
    assert Pace.of(10_000_000) == Pace(100_000, 200_000_000)
    for round_trip_ns in (0, 1_000_000):
        found = find_adaptations(str(build("hello")), ("sysmon", "slices"), round_trip_ns)
        wanted = {number.to_bytes(4, "little") for number in Pace.of(round_trip_ns)}
        assert {patch.new[-4:] for patch in found.patches} == wanted


def test_a_program_with_the_stub_has_all_of_them() -> None:
    assert find_adaptations(str(build("spread_tasks", stub=True)), tuple(ADAPTATIONS)).missing == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel accesses needs privileges")
def test_a_program_that_the_kernel_places_anywhere_is_adapted_where_it_is() -> None:
    program = build("spread_workers", flags=("-buildmode=pie", "-ldflags=-s -w"))
    with (
        none_left(),
        subprocess.Popen(
            ["ptserver", "run", "--spread", "local", "--place", "stay", program, "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=base_environment(),
        ) as child,
    ):
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline()
        _, out, _ = ptserver("ps", "--json", str(child.pid))
        child.stdin.close()
        child.wait(60)
    assert json.loads(out.splitlines()[0])["unadapted"] == []


def test_a_program_that_is_not_gos_has_none_of_them() -> None:
    found = find_adaptations("/bin/true", tuple(ADAPTATIONS))
    assert found.patches == ()
    assert found.missing == tuple(ADAPTATIONS)


def test_some_can_be_named() -> None:
    assert parse_names("all") == tuple(ADAPTATIONS)
    assert parse_names("none") == ()
    assert parse_names("wakeups,sysmon") == ("wakeups", "sysmon")
    with pytest.raises(AdaptationError, match="no adaptation 'speed': there are sysmon, slices, wakeups"):
        parse_names("sysmon,speed")


@pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel accesses needs privileges")
@pytest.mark.parametrize(
    "adapt", ["none", *(pytest.param(name, marks=pytest.mark.slow) for name in ADAPTATIONS)]
)
def test_a_program_does_the_same_without_the_others(adapt: str) -> None:
    program = build("spread_tasks", stub=True)
    result = ptserver("run", "--spread", "local", "--place", "random:3", "--adapt", adapt, program, "counter")
    assert result == (0, "2000 4000\n", "")
