"""Checks of remote variables: sessions share them by name, and their operations are what they are called."""

import itertools
import os
from collections.abc import Callable

from ptserver.conformance.caller import Caller
from ptserver.conformance.checks import Check, Server, check, require, skip
from ptserver.messages import MemoryAtomic, MemoryDeclare, MemoryGet, MemoryResult, MemorySet, Message
from stepping.remote_memory import AtomicOperation

_GROUP = "memory"
_numbers = itertools.count(1)


def _ask(client: Caller, make: Callable[[int], Message]) -> MemoryResult:
    """Send the message that *make* makes with an id, and return its answer."""
    number = next(_numbers)
    client.send(make(number))
    found: list[MemoryResult] = []

    def answered() -> bool:
        found.extend(one for one in client.others if isinstance(one, MemoryResult) and one.id == number)
        return bool(found)

    client.wait_for("answer about a remote variable", answered)
    client.others.remove(found[0])
    return found[0]


def _declare(client: Caller, name: str, initial: bytes) -> MemoryResult:
    if not client.welcome.memory:
        skip("the server keeps no remote variables")
    return _ask(client, lambda number: MemoryDeclare(number, name, initial))


def _get(client: Caller, name: str, offset: int, size: int) -> MemoryResult:
    return _ask(client, lambda number: MemoryGet(number, name, offset, size))


def _atomic(
    client: Caller, name: str, offset: int, operation: AtomicOperation, operand: bytes, expected: bytes = b""
) -> MemoryResult:
    return _ask(client, lambda number: MemoryAtomic(number, name, offset, operation, operand, expected))


def _await_answers(client: Caller, count: int) -> None:
    """Take in *count* answers, and forget them."""

    def answered() -> bool:
        return sum(isinstance(message, MemoryResult) for message in client.others) == count

    client.wait_for(f"{count} answers about remote variables", answered)
    client.others.clear()


def _new_name() -> str:
    return f"conformance.{os.getpid()}.{next(_numbers)}"


def _word(value: int, size: int = 8) -> bytes:
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")


@check(_GROUP, "the first session's value is the variable's, and later ones see what became of it")
def _shared(server: Server) -> None:
    name = _new_name()
    with server.session() as first, server.session() as second:
        require(_declare(first, name, b"abcdefgh").data == b"abcdefgh", "a new variable has another value")
        result = _ask(first, lambda number: MemorySet(number, name, 2, b"XY"))
        require(not result.error and not result.data, "a write is answered with data or an error")
        require(_declare(second, name, b"12345678").data == b"abXYefgh", "a later session has its own value")
        require(_get(second, name, 1, 4).data == b"bXYe", "a read gives other bytes")
    with server.session() as third:
        require(_declare(third, name, bytes(8)).data == b"abXYefgh", "the value went with its sessions")


@check(_GROUP, "atomic operations, of all sizes")
def _operations(server: Server) -> None:
    name = _new_name()
    with server.session() as client:
        _declare(client, name, bytes(32))
        for size in (1, 2, 4, 8, 16):
            value = 0
            steps: list[tuple[AtomicOperation, int, int, int]] = [
                ("add", 5, 0, 5),
                ("add", -7, 0, -2),
                ("and", 0x5E, 0, 0x5E),
                ("or", 0x21, 0, 0x7F),
                ("xor", 0x0F, 0, 0x70),
                ("exchange", 9, 0, 9),
                ("compare_exchange", 11, 10, 9),
                ("compare_exchange", 11, 9, 11),
            ]
            for operation, operand, expected, after in steps:
                compared = _word(expected, size) if operation == "compare_exchange" else b""
                old = _atomic(client, name, 16, operation, _word(operand, size), compared)
                require(
                    old.data == _word(value, size), f"{operation} of {size} bytes tells another old value"
                )
                value = after
                now = _get(client, name, 16, size).data
                require(now == _word(value, size), f"{operation} of {size} bytes leaves {now.hex()}")
            _ask(client, lambda number: MemorySet(number, name, 0, bytes(32)))
        require(_get(client, name, 0, 32).data == bytes(32), "an operation touched its neighbours")


@check(_GROUP, "additions of several sessions at once are all made")
def _concurrent(server: Server) -> None:
    name = _new_name()
    with server.session() as one, server.session() as other:
        _declare(one, name, bytes(8))
        _declare(other, name, bytes(8))
        ids = [next(_numbers) for _ in range(400)]
        for number in ids:
            (one, other)[number % 2].send(MemoryAtomic(number, name, 0, "add", _word(1)))
        for client in (one, other):
            _await_answers(client, len(ids) // 2)
        require(_get(one, name, 0, 8).data == _word(len(ids)), "additions were lost, or made twice")


@check(_GROUP, "what is out of bounds is answered with an error, and the session goes on")
def _errors(server: Server) -> None:
    name = _new_name()
    with server.session() as client:
        _declare(client, name, bytes(8))
        for what, result, error in [
            ("a variable that nobody has", _get(client, _new_name(), 0, 1), "ENOENT"),
            ("a read beyond the end", _get(client, name, 4, 8), "ERANGE"),
            ("a read of nothing", _get(client, name, 0, 0), "ERANGE"),
            ("a write beyond the end", _ask(client, lambda n: MemorySet(n, name, 8, b"x")), "ERANGE"),
            ("an operation beyond the end", _atomic(client, name, 1, "add", bytes(8)), "ERANGE"),
            ("an operation on three bytes", _atomic(client, name, 0, "add", bytes(3)), "EINVAL"),
            (
                "a comparison of other sizes",
                _atomic(client, name, 0, "compare_exchange", bytes(8), bytes(4)),
                "EINVAL",
            ),
            ("another size", _declare(client, name, bytes(4)), "EEXIST"),
            ("no size", _declare(client, _new_name(), b""), "EINVAL"),
        ]:
            require(
                result.error == error, f"{what} is answered with {result.error or 'success'}, not {error}"
            )
        require(_get(client, name, 0, 8).data == bytes(8), "a refused access changed something")


CHECKS: tuple[Check, ...] = (_shared, _operations, _concurrent, _errors)
