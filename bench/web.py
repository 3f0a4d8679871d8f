"""How many HTTP requests a server answers that runs natively and behind a connection: a Go program, and caddy.

50 connections ask, from a program of their own that runs natively; errors end the measurement. caddy serves this
module, some 3 kB, which it sends by sendfile(2); `apt-get install caddy` brings it.
"""

import json
import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from bench.measure import BenchError, output, program

_CONNECTIONS = 50
_PATIENCE_SECONDS = 30.0


def requests_per_second(prefix: Sequence[str], requests: int) -> float:
    """Return how fast a Go program answers that *prefix* starts."""
    command = [*prefix, program("web")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            if not select.select([server.stdout], [], [], _PATIENCE_SECONDS)[0]:
                raise BenchError(f"{' '.join(command)} says nothing")
            return _asked(f"http://{server.stdout.readline().strip()}/", requests)
        finally:
            server.terminate()


def caddy() -> str | None:
    """Return where caddy is installed, if it is."""
    return shutil.which("caddy")


def caddy_requests_per_second(prefix: Sequence[str], executable: str, requests: int) -> float:
    """Return how fast caddy answers that *prefix* starts, and that serves this very folder."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder = Path(__file__).resolve().parent
    command = [*prefix, executable, "file-server", "--listen", f"127.0.0.1:{port}", "--root", str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
    ) as server:
        try:
            _await(port)
            return _asked(f"http://127.0.0.1:{port}/{Path(__file__).name}", requests)
        finally:
            server.terminate()


def _asked(url: str, requests: int) -> float:
    told = json.loads(output([program("web"), url, str(_CONNECTIONS), str(requests)]))
    return int(told["count"]) / float(told["seconds"])


def _await(port: int) -> None:
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise BenchError("caddy does not listen") from None
            time.sleep(0.05)
