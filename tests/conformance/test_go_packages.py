"""Go's own tests of packages that use the system, served over TCP: they end as natively, but for a list.

The list with its reasons is in docs/differences.md, which is compared with what happens.
"""

import tempfile
from pathlib import Path

import pytest

from tests.conformance.go_tests import (
    COMBINATORIAL,
    DOWNLOADS,
    LONG,
    LONGER_PACKAGES,
    PACKAGES,
    Results,
    arguments,
    build_tests,
    differences,
    documented,
    folder_of,
    read_results,
)
from tests.conformance.modes import MODES, NATIVE, Mode, base_environment
from tests.leftovers import none_left
from tests.running import started

TCP = next(mode for mode in MODES if mode.name == "tcp")
MACHINES = next(mode for mode in MODES if mode.name == "machines")


def results(package: str, mode: Mode, scratch: Path, *options: str) -> Results:
    """The server, like the tests, works in the package's folder; what it logs goes to *scratch*."""
    program = build_tests(package)
    scratch.mkdir()
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:  # short: the tests make socket names below it
        env = base_environment() | {"TMPDIR": temporary}
        with none_left(), mode.start(folder_of(package), env, scratch) as place:
            command = [*place.prefix, program, *arguments(options)]
            with started(command, program, env=place.env, cwd=place.cwd, popen=place.popen) as running:
                ended = running.finish(seconds=1000)
    (scratch / "output").write_bytes(ended.stdout + ended.stderr)
    return read_results(ended.stdout + ended.stderr)


def compare(package: str, tmp_path: Path, *options: str, mode: Mode = TCP) -> None:
    native = results(package, NATIVE, tmp_path / "native", *options)
    failed = [name for name, outcome in native.outcomes.items() if outcome == "FAIL"]
    assert native.outcomes
    assert not failed
    served = results(package, mode, tmp_path / "served", *options)
    expected = [name for name in documented(package) if name in native.outcomes]
    assert sorted(differences(native, served)) == sorted(expected)


@pytest.mark.parametrize("package", PACKAGES)
def test_go_tests_end_as_natively_but_for_the_documented_ones(package: str, tmp_path: Path) -> None:
    compare(package, tmp_path, *([f"-test.skip={LONG}"] if package == "os" else []))


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("package", LONGER_PACKAGES)
def test_those_that_take_longer_too(package: str, tmp_path: Path) -> None:
    compare(package, tmp_path, f"-test.skip={DOWNLOADS}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_combinatorial_ones_too(tmp_path: Path) -> None:
    compare("os", tmp_path, f"-test.run={COMBINATORIAL}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_long_ones_of_os_too(tmp_path: Path) -> None:
    compare("os", tmp_path, f"-test.run={LONG}", f"-test.skip={COMBINATORIAL}")


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("package", PACKAGES + LONGER_PACKAGES)
def test_and_between_two_machines(package: str, tmp_path: Path) -> None:
    compare(package, tmp_path, f"-test.skip={DOWNLOADS}", mode=MACHINES)


@pytest.mark.parametrize("package", PACKAGES + LONGER_PACKAGES)
def test_every_documented_difference_has_a_reason(package: str) -> None:
    assert all(len(reason) > 10 for reason in documented(package).values())
