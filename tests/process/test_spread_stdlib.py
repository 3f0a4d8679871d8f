"""Go's own tests of its standard library, spread over hosts with threads that move anywhere: as natively, test by
test.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conformance.modes import base_environment
from tests.gofixtures import CACHE, DEFAULT_GO, goroot, toolchain
from tests.process.commands import ptserver

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0),
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel accesses needs privileges"),
]

_RESULT = re.compile(r"^\s*--- (PASS|FAIL|SKIP): (\S+)", re.MULTILINE)

PACKAGES = (
    "sort",
    "container/heap",
    "container/list",
    "container/ring",
    "strings",
    "math/big",
    "encoding/json",
    "context",
    "regexp",
    "sync/atomic",
    "sync",
    "time",
    "net/http",
)
_SECONDS = 3600


def _test_program(package: str) -> Path:
    """Return the package's tests as a static program."""
    target = CACHE / "stdlib" / f"{package.replace('/', '_')}-{DEFAULT_GO}.test"
    if not target.exists():
        subprocess.run(
            [toolchain(), "test", "-c", "-o", target, package],
            check=True,
            env=os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": ""},
            cwd=goroot(),
        )
    return target


@pytest.mark.parametrize("hosts", ["local", "local,local"])
@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_passes_the_tests_that_it_passes_natively(package: str, hosts: str) -> None:
    program = _test_program(package)
    folder = goroot() / "src" / package
    words = ["-test.short", "-test.v", f"-test.timeout={_SECONDS}s", "-test.parallel=2"]
    native = subprocess.run(
        [program, *words], capture_output=True, text=True, cwd=folder, env=base_environment(), check=False
    )
    expected = dict(_matches(native.stdout))
    status, out, err = ptserver(
        *(
            "run",
            "--spread",
            hosts,
            "--straight",
            "all",
            "--place",
            "random:1",
            "--check-memory",
            "5",
            program,
            *words,
        ),
        cwd=folder,
        env={"GOMAXPROCS": "3"},
        timeout=_SECONDS,
    )
    found = dict(_matches(out))
    wrong = {name: found.get(name) for name, result in expected.items() if found.get(name) != result}
    assert not wrong, out[-4000:] + err[-2000:]
    assert status == native.returncode, err


def _matches(out: str) -> list[tuple[str, str]]:
    return [(name, result) for result, name in _RESULT.findall(out)]
