"""Servers that watch and intercept remote variables."""

from ptserver.server import Call, MemoryAccess, Outcome, RuntimeServer


class Watching(RuntimeServer):
    goroutines = True

    def memory_get(self, access: MemoryAccess) -> bytes | None:
        if access.variable == "main.untouched":
            return (4711).to_bytes(access.size, "little")
        return None

    def memory_set(self, access: MemoryAccess) -> bytes | None:
        if access.variable == "main.flag":
            access.session.log(f"set {access.variable} to {access.value}")
        return None

    def memory_atomic(self, access: MemoryAccess) -> bytes | None:
        if access.operation == "exchange":
            access.session.log(f"goroutine {access.goid} exchanges {access.variable}[{access.offset}]")
            return (99).to_bytes(8, "little")
        return None


class Wrong(RuntimeServer):
    def memory_atomic(self, access: MemoryAccess) -> bytes | None:
        return b"12345"


class Proceeding(RuntimeServer):
    def write(self, call: Call) -> Outcome:
        return call.proceed()

    def read(self, call: Call) -> Outcome:
        return call.proceed()

    def fstat(self, call: Call) -> Outcome:
        return call.proceed()
