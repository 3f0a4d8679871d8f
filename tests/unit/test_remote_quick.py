"""The shortest way to serve an access: what it takes and leaves alone, and where a thread is when a store fails."""

import signal
import struct

import pytest

from stepping import ptrace_api
from stepping.errors import SteppingError
from stepping.registers import AMD64
from stepping.remote_memory import AtomicOperation, RemoteMap, RemoteVariable
from stepping.remote_plans import Plan, plan_of
from stepping.remote_quick import Known, QuickAccess
from stepping.stops import FAULT_CODES
from stepping.tracee import Tracee
from stepping.x86_instructions import decode_instruction

_STATUS = signal.SIGSEGV << 8 | 0x7F
_CODE_AT, _DATA_AT = 0x1000, 0x8000
_PC, _RAX = AMD64.index["rip"], AMD64.index["rax"]
#: mov [_DATA_AT], rax; mov [_DATA_AT + 8], rax
_STORES = [b"\x48\x89\x04\x25" + struct.pack("<i", _DATA_AT + at) for at in (0, 8)]
_MAPERR = min(FAULT_CODES)


class Memory:
    """Code at one address."""

    def __init__(self, code: bytes) -> None:
        self._code = code

    def read(self, address: int, size: int) -> bytes:
        assert address == _CODE_AT
        return self._code[:size]

    def write(self, address: int, data: bytes) -> None:
        raise AssertionError


class Store:
    """Keeps what is set, of which the access number *fails* fails."""

    def __init__(self, fails: int = 0) -> None:
        self.kept: list[tuple[int, bytes]] = []
        self._fails = fails

    def get(self, variable: RemoteVariable, offset: int, size: int) -> bytes:
        raise AssertionError

    def set(self, variable: RemoteVariable, offset: int, data: bytes) -> None:
        if len(self.kept) + 1 == self._fails:
            raise SteppingError("lost")
        self.kept.append((offset, data))

    def atomic(
        self,
        variable: RemoteVariable,
        offset: int,
        operation: AtomicOperation,
        operand: bytes,
        expected: bytes,
    ) -> bytes:
        raise AssertionError


class Threads:
    """What the kernel would say of one thread, and hear."""

    def __init__(self, code: int = _MAPERR, address: int = _DATA_AT) -> None:
        self.fault = code, address
        self.values = [0] * len(AMD64.names)
        self.values[_PC], self.values[_RAX] = _CODE_AT, 7
        self.read: list[int] = []
        self.written: list[int] = []
        self.goes_on = False

    def read_fault(self, _tid: int) -> tuple[int, int]:
        return self.fault

    def read_general(self, _tid: int) -> list[int]:
        self.read = self.values[:]
        return self.read

    def write_general(self, _tid: int) -> None:
        self.written = self.read


def _plan(code: bytes) -> Plan:
    plan = plan_of(decode_instruction(code))
    assert plan is not None
    return plan


def _serve(
    monkeypatch: pytest.MonkeyPatch, threads: Threads, store: Store, code: bytes = b"".join(_STORES)
) -> tuple[bool, Tracee, list[int]]:
    def go_on(_tid: int) -> None:
        threads.goes_on = True

    monkeypatch.setattr(ptrace_api, "StoppedThreads", lambda size: threads)
    monkeypatch.setattr(ptrace_api, "cont", go_on)
    remote = RemoteMap([RemoteVariable(_DATA_AT, 16, "pair")], Memory(code), store)
    known = Known(b"".join(_STORES), [_plan(one) for one in _STORES])
    quick = QuickAccess(remote, lambda pc: known if pc == _CODE_AT else None)
    tracee, told = Tracee(1, 1, AMD64), list[int]()
    try:
        return quick.serve(tracee, _STATUS, told.append), tracee, told
    except SteppingError:
        return False, tracee, told


def test_all_of_a_block_is_executed_in_one_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, store = Threads(), Store()
    is_served, tracee, told = _serve(monkeypatch, threads, store)
    assert (is_served, threads.goes_on, tracee.status) == (True, True, None)
    assert store.kept == [(0, (7).to_bytes(8, "little")), (8, (7).to_bytes(8, "little"))]
    assert told == [_CODE_AT, _CODE_AT + 8]
    assert threads.written[_PC] == _CODE_AT + 16


@pytest.mark.parametrize(
    ("threads", "code"),
    [
        (Threads(code=0), b"".join(_STORES)),  # somebody has sent the signal
        (Threads(address=_DATA_AT + 4096), b"".join(_STORES)),
        (Threads(), b"\x90" * 16),  # other code by now
    ],
    ids=["sent", "elsewhere", "changed"],
)
def test_what_it_leaves_alone(monkeypatch: pytest.MonkeyPatch, threads: Threads, code: bytes) -> None:
    store = Store()
    is_served, tracee, _ = _serve(monkeypatch, threads, store, code)
    assert (is_served, threads.goes_on, threads.written, store.kept) == (False, False, [], [])
    assert tracee.status is None


@pytest.mark.parametrize("fails", [1, 2])
def test_a_store_that_fails_leaves_the_thread_at_its_access(
    monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    threads, store = Threads(), Store(fails)
    is_served, tracee, _ = _serve(monkeypatch, threads, store)
    assert (is_served, threads.goes_on, len(store.kept)) == (False, False, fails - 1)
    assert tracee.is_stopped
    assert tracee.pending_signal == (signal.SIGSEGV if fails == 1 else 0)
    assert (threads.written[_PC] if threads.written else _CODE_AT) == _CODE_AT + 8 * (fails - 1)
