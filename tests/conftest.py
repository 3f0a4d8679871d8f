"""What holds for every test: no core files, no time limits on examples, and no process that outlives the run."""

import os
import resource
import signal
import uuid
from pathlib import Path

import hypothesis
import pytest

#: An environment variable that every process started by a test inherits, so that leftovers can be found.
MARK = "PTSERVER_TEST_RUN"

#: The same examples in every run, so that a change fails for what it changed; `make test-slow` looks for new ones.
hypothesis.settings.register_profile(
    "same", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "search", parent=hypothesis.settings.get_profile("same"), derandomize=False
)
hypothesis.settings.load_profile("same")


def marked_processes(value: str) -> list[str]:
    """Return "pid command line" of the processes, other than this one, whose environment has MARK=value."""
    wanted = f"{MARK}={value}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                found.append(f"{folder.name} {b' '.join(words).decode(errors='replace')}")
        except OSError:
            pass  # it ended, or it is another user's
    return found


def pytest_configure(config: pytest.Config) -> None:
    os.environ[MARK] = uuid.uuid4().hex
    # Each ptserver that a test starts would otherwise compile its modules anew: half a second of processor time.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # A shell's background jobs ignore these, and so would the programs, which are to die of them.
    for signo in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(signo) is signal.SIG_IGN:
            signal.signal(signo, signal.default_int_handler if signo == signal.SIGINT else signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def pytest_sessionfinish(session: pytest.Session) -> None:
    left = marked_processes(os.environ[MARK])
    if left:
        print("\nprocesses left behind by the tests:", *left, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def run_mark() -> str:
    """The value of `MARK` in this run's processes."""
    return os.environ[MARK]


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of keys as `ptserver keys` makes it: of a server at db1.example and this machine, and of a client."""
    from ptserver.keys import make_keys

    folder = tmp_path_factory.mktemp("keys") / "mutual"
    make_keys(folder, ["db1.example"], days=1, token=False)
    return folder
