"""Runtime servers with mistakes in them."""

from typing import ClassVar

from ptserver.server import Call, Outcome, RuntimeServer
from ptserver.session import Session


class Raises(RuntimeServer):
    def openat(self, call: Call) -> Outcome:
        return call.answer(1 // 0)


class NoOutcome(RuntimeServer):
    def openat(self, call: Call) -> Outcome:
        return "hello"  # type: ignore[return-value]


class UnknownBuffer(RuntimeServer):
    def openat(self, call: Call) -> Outcome:
        return call.answer(0, nonesuch=b"data")


class UnknownInterest(RuntimeServer):
    interests: ClassVar = {"opennat": "serve"}


class CannotStart(RuntimeServer):
    def __init__(self) -> None:
        raise RuntimeError("no database")

    def openat(self, call: Call) -> Outcome:
        return call.proceed()


class FailsAtStart(RuntimeServer):
    def session_started(self, session: Session) -> None:
        raise RuntimeError("no database")

    def openat(self, call: Call) -> Outcome:
        return call.proceed()
