"""A runtime server that writes down what it is told of goroutines."""

import os
from typing import ClassVar

import msgspec

from ptserver.server import Call, GoroutineStatistics, Outcome, RuntimeServer, Session


class Statistics(RuntimeServer):
    goroutines: ClassVar = True
    statistics_seconds: ClassVar = 0.1

    def read(self, call: Call) -> Outcome:
        return call.proceed()

    def goroutine_statistics(self, session: Session, statistics: GoroutineStatistics) -> None:
        with open(os.environ["STATISTICS_LOG"], "ab") as file:
            file.write(msgspec.json.encode(statistics) + b"\n")
