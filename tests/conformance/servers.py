"""Runtime servers whose programs must behave as if they were alone."""

import os

from ptserver.server import IGNORE, OBSERVE, SERVE, Call, Done, Outcome, RuntimeServer
from stepping.syscalls import ArgKind

_RESOURCES = ("%file", "%net", "%process", "%identity", "%system")


#: A signal may interrupt a call while its server decides, and a shell does not expect EINTR of fork.
_LEFT_ALONE = dict.fromkeys(("fork", "vfork", "clone", "clone3"), IGNORE)


class Observing(RuntimeServer):
    """Hears of every call that reaches outside the program."""

    interests = dict.fromkeys(_RESOURCES, OBSERVE) | _LEFT_ALONE

    def __init__(self) -> None:
        self.calls = 0

    def observe(self, call: Call) -> None:
        repr(call)
        self.calls += 1


class Proceeding(RuntimeServer):
    """Is asked about every call that reaches outside, and lets each go on unchanged."""

    interests = dict.fromkeys(_RESOURCES, SERVE) | _LEFT_ALONE


class Executing(RuntimeServer):
    """Has the stub host make the calls in the program's place, where it can, because it looks at results."""

    interests = dict.fromkeys(_RESOURCES, SERVE)

    def finished(self, call: Call, done: Done) -> None:
        fills = {ArgKind.OUT, ArgKind.INOUT, ArgKind.IOV_OUT, ArgKind.REQUEST_ARG}
        offered = {arg.name for arg in call.syscall.args if arg.kind in fills}
        assert set(done.outs) <= offered


class Answering(RuntimeServer):
    """Answers some calls by itself, with what the kernel would have said."""

    def uname(self, call: Call) -> Outcome:
        with open("/proc/sys/kernel/domainname", encoding="ascii") as file:
            words = (*os.uname(), file.read().strip())
        return call.answer(0, buf=b"".join(word.encode().ljust(65, b"\0") for word in words))

    def getcwd(self, call: Call) -> Outcome:
        folder = os.fsencode(os.readlink(f"/proc/{call.pid}/cwd")) + b"\0"
        if len(folder) > min(call.size, 4096):
            return call.proceed()
        return call.answer(len(folder), buf=folder)

    def readlinkat(self, call: Call) -> Outcome:
        if not call.path.startswith("/") or call.path.startswith("/proc/"):
            return call.proceed()
        target = os.fsencode(os.readlink(call.path))[: call.bufsiz]
        return call.answer(len(target), buf=target)

    def mkdirat(self, call: Call) -> Outcome:
        if call.dirfd != -100:
            return call.proceed()
        with open(f"/proc/{call.pid}/status", encoding="ascii", errors="replace") as file:
            umask = next(int(line[6:], 8) for line in file if line.startswith("Umask:"))
        path = os.path.join(f"/proc/{call.pid}/cwd", call.path)
        mine = os.umask(umask)
        try:
            os.mkdir(path, call.mode & 0o7777)
        finally:
            os.umask(mine)
        return call.answer()

    def getuid(self, call: Call) -> Outcome:
        return call.answer(os.getuid())
