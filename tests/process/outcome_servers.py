"""Runtime servers that answer in every way there is; tests run real programs under them."""

import errno
import os

from ptserver.server import (
    Call,
    Delay,
    Done,
    Fail,
    OpenBytes,
    Outcome,
    Proceed,
    Return,
    RuntimeServer,
    observe,
)
from ptserver.session import Session


class Virtual(RuntimeServer):
    """A file that is nowhere."""

    def openat(self, call: Call) -> Outcome:
        if call.path == "/virtual/greeting":
            return call.open_bytes(b"hello from nowhere\n")
        return call.proceed()


class Redirects(RuntimeServer):
    """Another file than the one asked for."""

    def openat(self, call: Call) -> Outcome:
        if call.path == "/asked/for":
            return call.proceed(path=os.environ["REDIRECT_TO"])
        return call.proceed()


class Refuses(RuntimeServer):
    """Refuses a file, in both ways."""

    def openat(self, call: Call) -> Outcome:
        if call.path == "/etc/passwd":
            return call.fail(errno.EACCES)
        if call.path == "/etc/group":
            raise OSError(errno.EDQUOT, "as an exception")
        return call.proceed()


class Louder(RuntimeServer):
    """Changes what was read, after it was read; and what is written, before it is."""

    def read(self, call: Call) -> Outcome:
        def louder(done: Done) -> Outcome | None:
            return None if done.errno else Return(done.value, {"buf": done.outs.get("buf", b"").upper()})

        return call.proceed(louder)

    def write(self, call: Call) -> Outcome:
        return call.proceed(buf=call.buf.replace(b"CAT", b"DOG"))


class Slow(RuntimeServer):
    """Opens of one file take a while; only their own thread waits."""

    def openat(self, call: Call) -> Outcome:
        if call.path == "slow":
            return Delay(1.0, Fail(errno.EIO))
        if call.path == "slower":
            return Delay(1.5)
        return Proceed()


class OpensEmpty(RuntimeServer):
    """Says how a descriptor is given: with the flag that was asked."""

    def openat(self, call: Call) -> Outcome:
        return OpenBytes(b"", call.flags) if call.path.startswith("empty") else call.proceed()


class Hooks(RuntimeServer):
    """Logs every hook, in order."""

    def session_started(self, session: Session) -> None:
        session.log(f"started {session.program.path} {session.resources}")

    @observe
    def openat(self, call: Call) -> None:
        if call.path == "/etc/hostname":
            call.session.log(f"openat {call.dirfd} {call.flags & os.O_ACCMODE} {call.pid == call.tid}")

    def chdir(self, call: Call) -> Outcome:
        return call.proceed()

    def readlink(self, call: Call) -> Outcome:
        return call.proceed()

    def finished(self, call: Call, done: Done) -> None:
        call.session.log(f"finished {call.name} {done.value} {done.errno} {done.outs}")

    def exited(self, session: Session, status: int | None, signo: int) -> None:
        session.log(f"exited {status} {signo}")

    def session_ended(self, session: Session) -> None:
        session.log("ended")


class Signals(RuntimeServer):
    """Sends a signal to a program that opens a certain file."""

    def openat(self, call: Call) -> Outcome:
        if call.path == "/signal/me":
            call.session.signal(10)
            return call.fail(errno.ENOENT)
        return call.proceed()


class Threads(RuntimeServer):
    """Hears of threads."""

    def thread_event(self, session: Session, tid: int, event: str) -> None:
        session.log(f"thread {event}")
