"""Logs what a program asks of the world, a line per call, in strace's manner.

Over a connection each call is logged with its result, when it has one. In the host's own process calls are only
observed, as they begin; `ptserver run --trace` tells more there.
"""

from typing import ClassVar

from ptserver.call import Call, index_of
from ptserver.outcomes import Done
from ptserver.server import OBSERVE, Interest, RuntimeServer
from stepping.syscalls.decode import format_arguments, format_call


class TraceLogger(RuntimeServer):
    """Changes nothing; its trace is the log of its sessions."""

    name = "tracelogger"
    goroutines = True
    interests: ClassVar[dict[str, Interest]] = dict.fromkeys(
        ("%file", "%net", "%process", "%identity", "%system"), OBSERVE
    )

    def observe(self, call: Call) -> None:
        """Log a call whose result will not be known here."""
        if call.session.resources == "host":
            arguments = format_arguments(call.syscall, call.args, call.ins, {}, None, 0)
            call.session.log(f"{_caller(call)} {call.name}({arguments})")

    def finished(self, call: Call, done: Done) -> None:
        """Log a call and its result."""
        outs = {
            index_of(call.syscall, name): data for name, data in done.outs.items() if data or not done.errno
        }
        line = format_call(call.syscall, call.args, call.ins, outs, done.value, done.errno)
        call.session.log(f"{_caller(call)} {line}")


def _caller(call: Call) -> str:
    return f"[{call.tid} g{call.goid}]" if call.goid else f"[{call.tid}]"
