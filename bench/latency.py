"""`python -m bench.latency [--json] [--quick] [--repeat N]`: reading from another machine, beside ssh, rsync, sshfs.

The machines are namespaces (`tests.two_machines`), with 0 or 1 ms of delay each way between them; "loopback" is
within one of them. Each round does everything once, in turn, so that what slows the machine for a while slows all;
the figures are medians. ssh and rsync run from start to end, with the connection; of ptserver there are both: the
program's own time, and that from start to end. Between machines all of them encrypt; on loopback ptserver does not.
Needs root, openssh-server and rsync; sshfs is left out where it, or the kernel's FUSE, is missing. It is mounted,
walked and unmounted each time.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.figures import options
from bench.measure import PTSERVER, BenchError, program
from tests.conformance.modes import base_environment, serving
from tests.two_machines import Machine, TwoMachines, two_machines, why_no_machines

_PORT = "2222"
_MIB = 1 << 20


class Row(NamedTuple):
    """A line of the table: the median, and its ratio to the way that it is compared with."""

    where: str
    subject: str
    way: str
    seconds: float
    mb_per_second: float | None
    ratio: float
    compared_with: str

    def __str__(self) -> str:
        speed = " " * 13 if self.mb_per_second is None else f"{self.mb_per_second:8.0f} MB/s"
        line = f"{self.where:<10} {self.subject:<5} {self.way:<26} {self.seconds:8.3f} s {speed}"
        return f"{line} {self.ratio:6.2f} times {self.compared_with}"


def make_files(folder: Path, size: int, folders: int) -> None:
    """Make a file of *size* bytes, and a tree of *folders* with 100 files each."""
    piece = os.urandom(_MIB)
    with (folder / "large").open("wb") as file:
        for _ in range(size // _MIB):
            file.write(piece)
    for number in range(folders):
        where = folder / "tree" / f"folder{number}"
        where.mkdir(parents=True)
        for entry in range(100):
            (where / f"file{entry}").write_bytes(b"x" * entry)


@contextlib.contextmanager
def ssh_server(machine: Machine, address: str, keys: Path) -> Iterator[list[str]]:
    """Run an sshd in *machine*; give the words of an ssh command that reaches it."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None or shutil.which("rsync") is None:
        raise BenchError("openssh-server and rsync are needed: apt-get install openssh-server rsync")
    if not (keys / "host").exists():
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name], check=True)
    machine.run(["mount", "-t", "tmpfs", "tmpfs", "/run"])
    machine.run(["mkdir", "/run/sshd"])
    settings = {
        "Port": _PORT,
        "ListenAddress": address,
        "HostKey": keys / "host",
        "AuthorizedKeysFile": keys / "user.pub",
        "StrictModes": "no",
        "PidFile": "none",
        "UsePAM": "no",
        "Subsystem": "sftp internal-sftp",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    process = machine.popen([sshd, "-D", "-e", "-f", "/dev/null", *options], stderr=subprocess.DEVNULL)
    try:
        host = [f"-p{_PORT}", "-i", str(keys / "user"), "-oStrictHostKeyChecking=no", "-oLogLevel=ERROR"]
        yield ["ssh", *host, "-oUserKnownHostsFile=/dev/null"]
    finally:
        process.terminate()
        process.wait()


def seconds(machine: Machine, words: Sequence[str | Path]) -> float:
    """Return how long a command took in *machine*."""
    start = time.perf_counter()
    with machine.popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=base_environment()
    ) as process:
        _, error = process.communicate()
    if process.returncode:
        raise BenchError(f"{words} ended with {process.returncode}: {error.decode()}")
    return time.perf_counter() - start


def own_seconds(machine: Machine, words: Sequence[str | Path]) -> float:
    """Return how long a program says that it took."""
    return float(json.loads(machine.run(words, env=base_environment()))["seconds"])


Way = tuple[str, Callable[[], float]]


def sshfs_walk(tree: str, address: str, ssh: list[str]) -> list[str] | None:
    """Return a command that mounts *tree* of *address* by sshfs and walks it; None where that cannot be."""
    if shutil.which("sshfs") is None or not os.path.exists("/dev/fuse"):
        return None
    script = (
        'd=$(mktemp -d); sshfs -o "ssh_command=$1" "$2" "$d"; "$3" walk "$d"; fusermount3 -u "$d"; rmdir "$d"'
    )
    return ["sh", "-ec", script, "sh", " ".join(ssh), f"{address}:{tree}", str(program("reads"))]


def ways(files: Path, client: Machine, address: str, run: list[str], ssh: list[str]) -> dict[str, list[Way]]:
    """Return what is compared, by subject. run: how ptserver runs a program; ssh: how ssh is called."""
    reads, large, tree = program("reads"), str(files / "large"), str(files / "tree")
    remote_shell = ["-e", " ".join(ssh)]
    by_sshfs = sshfs_walk(tree, address, ssh)
    mounted = [] if by_sshfs is None else [("sshfs", lambda: seconds(client, by_sshfs))]
    return {
        "read": [
            ("ssh cat", lambda: seconds(client, [*ssh, address, "cat", large])),
            ("ptserver", lambda: own_seconds(client, [*run, reads, "read", large])),
            ("ptserver, with its start", lambda: seconds(client, [*run, reads, "read", large])),
        ],
        "walk": [
            (
                "rsync -n",
                lambda: seconds(client, ["rsync", "-an", *remote_shell, f"{address}:{tree}", "/nowhere"]),
            ),
            *mounted,
            ("ptserver", lambda: own_seconds(client, [*run, reads, "walk", tree])),
            ("ptserver, with its start", lambda: seconds(client, [*run, reads, "walk", tree])),
        ],
    }


def measure(files: Path, where: str, machines: TwoMachines, scratch: Path, repeat: int) -> Iterator[Row]:
    """Yield the rows of a table: read and walk, at *where*."""
    client = machines.here
    server, address = (
        (client, "127.0.0.1") if where == "loopback" else (machines.there, machines.there.address)
    )
    listening, connecting = (
        ((), ()) if where == "loopback" else (machines.listening_keys, machines.connecting_keys)
    )
    with (
        ssh_server(server, address, scratch) as ssh,
        serving(
            "passthrough", f"{address}:0", cwd="/", env=base_environment(), log=scratch / "log", options=listening,
            popen=server.popen,
        ) as (at, _),
    ):  # fmt: skip
        run = [PTSERVER, "run", "--server", at, *connecting]
        subjects = ways(files, client, address, run, ssh)
        size = (files / "large").stat().st_size / 1e6
        for subject, compared in subjects.items():
            rounds = [[way() for _, way in compared] for _ in range(repeat)]
            for index, (name, _) in enumerate(compared):
                median = statistics.median(each[index] for each in rounds)
                ratio = statistics.median(each[index] / each[0] for each in rounds)
                speed = size / median if subject == "read" else None
                yield Row(where, subject, name, median, speed, ratio, compared[0][0])


def main() -> None:
    """Print the table."""
    given = options("latency", "Measure what is read from another machine.", rounds=3).parse_args()
    if reason := why_no_machines():
        print(json.dumps([]) if given.json else f"absent here: {reason}")
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files, keys = Path(folder) / "files", Path(folder) / "keys"
        files.mkdir()
        keys.mkdir()
        make_files(files, (16 if given.quick else 256) * _MIB, 6 if given.quick else 100)
        for where, delay_ms in (("loopback", 0.0), ("0 ms", 0.0), ("1 ms", 1.0)):
            scratch = Path(folder) / where
            scratch.mkdir()
            with two_machines(scratch, delay_ms=delay_ms) as machines:
                for row in measure(files, where, machines, keys, 1 if given.quick else given.repeat):
                    rows.append(row._asdict())
                    if not given.json:
                        print(row, flush=True)
    if given.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
