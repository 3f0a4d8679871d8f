"""The stub host in this process, where a whole program under `ptserver run` could not show it surely."""

import subprocess
import sys

from tests.conformance.modes import base_environment
from tests.gofixtures import ROOT

#: Waits until the program has ended, then makes its host: a short program is as quick as that on a busy machine.
LATE_HOST = """
import os, select, sys
from ptserver.hosts.signals import HostSignals
from ptserver.hosts.local import LocalHost
from ptserver.machine import native_arch, this_machine
from ptserver.messages import Program as Facts
from ptserver.hosts.policy import filter_rules
from ptserver.session import Session
from stepping.launch import Program, launch
from stepping.seccomp import assemble
from tests.conformance.servers import Answering

arch = native_arch()
bpf = assemble(filter_rules({"uname": "serve"}, "ignore", arch), arch)
signals = HostSignals()
launched = launch(Program("/bin/sh", [b"sh", b"-c", b"exit 5"], [], bpf, blocked=signals.original_mask))
select.select([launched.pidfd], [], [])
session = Session("1", Facts("/bin/sh", ("sh",)), this_machine(), "host",
                  log=print, send_signal=lambda signo: None, keep_descriptor=lambda fd: fd)
host = LocalHost(launched, signals, arch, Answering(), session)
status = host.run()
host.close()
print(os.waitstatus_to_exitcode(status))
"""


def test_a_program_that_ends_before_its_host_looks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE_HOST],
        cwd=ROOT,
        env=base_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("5\n", "")


def test_the_command_is_as_robust() -> None:
    """Programs that end at once, one after the other, under a server of which they call nothing."""
    for status in range(10):
        done = subprocess.run(
            ["ptserver", "run", "--server", "bench.servers:Elsewhere", "/bin/sh", "-c", f"exit {status}"],
            env=base_environment(),
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (status, b"")
