"""A disk that is nearly full and slow: what does a program do then?"""

import errno
import random

from ptserver.server import Call, Delay, Outcome, Proceed, RuntimeServer, Session


class FaultInjection(RuntimeServer):
    """A `fraction` of the writes to files fail with ENOSPC, and reads take longer.

    The same `seed` gives the same sequence of failures, for a program that writes in the same order.
    """

    name = "fault_injection"
    fraction = 0.1
    read_delay_seconds = 0.005
    seed = 1

    def session_started(self, session: Session) -> None:
        """Begin the sequence of failures."""
        self._random = random.Random(self.seed)

    def write(self, call: Call) -> Outcome:
        """Fail sometimes."""
        path = call.path_of(call.fd)
        is_file = path.startswith("/") and not path.startswith("/dev/")
        if is_file and self._random.random() < self.fraction:
            return call.fail(errno.ENOSPC)
        return call.proceed()

    def read(self, call: Call) -> Outcome:
        """Read later."""
        return Delay(self.read_delay_seconds, Proceed())

    pwrite64 = writev = pwritev = write
    pread64 = readv = preadv = read
