"""The two machines that other tests use: that they are two, that their link does as told, that nothing is left."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.leftovers import none_left
from tests.two_machines import TwoMachines, skip_without_machines, two_machines

pytestmark = skip_without_machines

_ECHO = """
import socket
listener = socket.create_server(("", 5000))
print("up", flush=True)
connection, _ = listener.accept()
while data := connection.recv(1 << 20):
    connection.sendall(data)
"""
#: Says a line whenever its own comes back, and at last how long the last one took.
_TALK = """
import socket, sys, time
connection = socket.create_connection(("there", 5000))
for line in sys.stdin.buffer:
    start = time.monotonic()
    connection.sendall(line)
    received = b""
    while not received.endswith(b"\\n"):
        received += connection.recv(1 << 20)
    print(f"{time.monotonic() - start:.6f}", flush=True)
"""


class Talk:
    """A program here that has lines echoed by one there."""

    def __init__(self, machines: TwoMachines) -> None:
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._echo = machines.there.popen([sys.executable, "-c", _ECHO], **options)
        assert self._echo.stdout.readline() == "up\n"
        self._talk = machines.here.popen([sys.executable, "-c", _TALK], **options)

    def say(self, text: str) -> None:
        self._talk.stdin.write(text + "\n")
        self._talk.stdin.flush()

    def seconds(self) -> float:
        return float(self._talk.stdout.readline())

    def close(self) -> None:
        for process in (self._talk, self._echo):
            process.kill()
            with process:
                pass


def test_they_differ_in_all_that_makes_a_machine(tmp_path: Path) -> None:
    script = "uname -n; cat /etc/hostname; cat /mnt/name; hostname -I; ls -d /proc/[0-9]* | wc -l"
    with none_left(), two_machines(tmp_path) as machines:
        for machine in (machines.here, machines.there):
            (machine.files / "name").write_text(f"the file of {machine.name}\n")
            lines = machine.run(["sh", "-c", script]).splitlines()
            name = machine.name
            assert lines[:3] == [name, name, f"the file of {name}"]
            assert lines[3].split()[0] == machine.address
            assert int(lines[4]) < 10
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", 5000)):
            pass
    assert "10.77.0.1 here" not in Path("/etc/hosts").read_text()


@pytest.mark.parametrize("delay_ms", [0, 1, 20])
def test_a_round_trip_takes_twice_the_delay(tmp_path: Path, delay_ms: int) -> None:
    with none_left(), two_machines(tmp_path, delay_ms=delay_ms) as machines:
        talk = Talk(machines)
        talk.say("hello")
        assert talk.seconds() >= 2 * delay_ms / 1000
        talk.close()


def test_a_link_is_stalled_cut_slowed_and_joined(tmp_path: Path) -> None:
    with none_left(), two_machines(tmp_path, controlled=True) as machines:
        link, talk = machines.link, Talk(machines)
        talk.say("connects")
        talk.seconds()
        for hold in (link.stall, link.cut):
            hold()
            start = time.monotonic()
            talk.say("is held")
            link.join()
            assert talk.seconds() >= time.monotonic() - start - 60  # TCP repeats what was lost
        link.slow(1_000_000)
        talk.say("x" * 200_000)
        assert talk.seconds() >= 0.2
        talk.close()


def test_nothing_is_left_when_a_test_fails(tmp_path: Path) -> None:
    devices = set(os.listdir("/sys/class/net"))

    def test_that_fails() -> None:
        with two_machines(tmp_path, delay_ms=1) as machines:
            machines.there.popen(["sh", "-c", "sleep 1000 & sleep 1000"])
            raise ZeroDivisionError

    with none_left(), pytest.raises(ZeroDivisionError):
        test_that_fails()
    assert set(os.listdir("/sys/class/net")) == devices
    assert "here-files" not in Path("/proc/self/mounts").read_text()
