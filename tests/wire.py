"""The cable between two machines of `tests.two_machines`: a process that carries packets, later or not at all.

    python -m tests.wire PID PID          the processes whose network namespaces it joins

It makes a TUN device `wire0` in either namespace and passes each packet on after a delay. What it does changes by
lines on standard input, each of which it answers with "ok":

    delay SECONDS     each way; 0 at the start
    cut               packets vanish from now on, those under way too: as when a machine loses its power
    stall             packets are kept, and delivered after `join`: as when a machine or a path hangs
    slow BYTES        so many bytes a second each way at most
    join              neither of these any more

As netem it knows nothing of connections, so all protocols pass and TCP itself deals with what happens. Unlike netem
it needs no kernel module. At most `QUEUE_BYTES` are under way in each direction; what is more is lost.

Thread rules: one thread. Source: the kernel's Documentation/networking/tuntap.rst, <linux/if_tun.h>.
"""

import collections
import ctypes
import fcntl
import os
import select
import struct
import sys
import time

DEVICE = "wire0"
MTU_BYTES = 65535
QUEUE_BYTES = 64 << 20

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000


class Direction:
    """Packets from *source* to *sink*, in order, each at its time."""

    def __init__(self, source: int, sink: int) -> None:
        self.source = source
        self.sink = sink
        self.due: float | None = None
        self._queue: collections.deque[tuple[float, bytes]] = collections.deque()
        self._queued_bytes = 0
        self._free_at = 0.0  # when a slow wire has sent what it was given

    def take(self, delay: float, bytes_per_second: float) -> None:
        """Read what is there."""
        while True:
            try:
                packet = os.read(self.source, MTU_BYTES)
            except BlockingIOError:
                return
            if self._queued_bytes + len(packet) > QUEUE_BYTES:
                continue
            now = time.monotonic()
            if bytes_per_second:
                self._free_at = max(self._free_at, now) + len(packet) / bytes_per_second
                now = self._free_at
            self._queue.append((now + delay, packet))
            self._queued_bytes += len(packet)
            self.due = self._queue[0][0]

    def deliver(self) -> None:
        """Write what is due."""
        now = time.monotonic()
        while self._queue and self._queue[0][0] <= now:
            _, packet = self._queue.popleft()
            self._queued_bytes -= len(packet)
            try:
                os.write(self.sink, packet)
            except OSError:
                pass  # the device is down, or has too much already: lost, as packets are
        self.due = self._queue[0][0] if self._queue else None

    def lose(self) -> None:
        """Forget what is under way."""
        self._queue.clear()
        self._queued_bytes = 0
        self.due = None


def device_of(pid: int) -> int:
    """Return a TUN device that was made in the network namespace of process *pid*."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/proc/{pid}/ns/net") as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    return fd


def main() -> None:
    first, second = map(device_of, map(int, sys.argv[1:3]))
    ways = (Direction(first, second), Direction(second, first))
    state, delay, bytes_per_second = "join", 0.0, 0.0
    print("ok", flush=True)
    commands = bytearray()
    while True:
        dues = [way.due for way in ways if way.due is not None and state != "stall"]
        timeout = max(0.0, min(dues) - time.monotonic()) if dues else None
        ready, _, _ = select.select([0, *(way.source for way in ways)], [], [], timeout)
        for way in ways:
            if way.source in ready:
                way.take(delay, bytes_per_second)
            if state == "cut":
                way.lose()
            elif state == "join":
                way.deliver()
        if 0 not in ready:
            continue
        data = os.read(0, 4096)
        if not data:
            return
        commands += data
        *lines, rest = commands.split(b"\n")
        commands = bytearray(rest)
        for line in lines:
            word, _, value = line.decode().partition(" ")
            match word:
                case "delay":
                    delay = float(value)
                case "slow":
                    bytes_per_second = float(value)
                case "cut" | "stall":
                    state = word
                case "join":
                    state, bytes_per_second = word, 0.0
                case _:
                    raise ValueError(f"no command {word!r}")
            print("ok", flush=True)


if __name__ == "__main__":
    main()
