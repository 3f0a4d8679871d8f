"""The runtime servers that are measured."""

from ptserver.server import Call, Outcome, RuntimeServer, observe

_DATA = b"x" * 100


class Elsewhere(RuntimeServer):
    """Serves a call that the program does not make, so that the listener is on and nothing arrives."""

    def uname(self, call: Call) -> Outcome:
        return call.proceed()


class Observes(RuntimeServer):
    """Watches pread."""

    @observe
    def pread64(self, call: Call) -> None:
        pass


class Answers(RuntimeServer):
    """Answers the program's preads, with a full buffer, and leaves those of its runtime alone."""

    def pread64(self, call: Call) -> Outcome:
        if call.count != len(_DATA):
            return call.proceed()
        return call.answer(len(_DATA), buf=_DATA)
