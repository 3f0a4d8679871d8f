"""Memory of an emulated program that lives elsewhere: its remote variables, as `stepping.remote_memory` has them.

The processor must not touch the pages that remote variables are on, so an access is a trap of the machine, with
nothing of the instruction done. The instruction is executed then: on amd64 the plainest ones and string copies as
natively (`remote_plans`, `remote_strings`); all others by the processor itself, alone, while the page is open. A
hook sees each access of it first, and brings what is read from the store; what was written is brought to the store
when the instruction is complete.

An atomic instruction (amd64: a lock or xchg; arm64: whichever reads and writes the same bytes, as LSE's and the
second of an exclusive pair do) is one operation of the store: the one that does the same to memory, if there is one,
or a compare-and-exchange of what the instruction makes of the old value, again if another program was faster.

What else lies on those pages stays in the program, and its accesses come here, too: by the same plans on amd64.

Thread rules: the machine's thread.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from stepping.emulation.address_space import PAGE_BYTES, PROT_EXEC, PROT_READ, PROT_WRITE, AddressSpace
from stepping.emulation.makes import MAKES
from stepping.emulator import EXEC, Trap, TrapKind
from stepping.errors import SteppingError
from stepping.registers import AMD64, Registers
from stepping.remote_memory import (
    AtomicOperation,
    RemoteMap,
    RemoteStore,
    RemoteVariable,
    SplitAtomicError,
    apply_atomic,
)

if TYPE_CHECKING:
    from stepping.emulation.machine import Machine
    from stepping.emulation.threads import Thread
    from stepping.remote_atomics import Direct
    from stepping.x86_instructions import Instruction

_READ_WRITE = PROT_READ | PROT_WRITE
_MAX_CODE_BYTES = 15
#: What a call of the machine's own may touch behind an argument, and in what pieces it is brought back.
_LENT_BYTES, _WORD_BYTES = 512, 8
#: `RegisterLayout.names` for Unicorn's; the flags are the last of `Context.read_general`.
_NAMES = [name.lower() for name in MAKES["amd64"].general.split()[:-1]] + ["eflags"]


class UnsupportedRemoteAccessError(SteppingError):
    """An instruction at *pc* touches remote memory in a way that cannot be done there; nothing has happened."""

    def __init__(self, pc: int, code: bytes, why: str) -> None:
        super().__init__(
            f"cannot do what the instruction at {pc:#x} ({code.hex(' ')}) does to remote memory: {why}"
        )
        self.pc = pc


class Elsewhere:
    """The remote *variables* of the program of *machine*, which has them in mapped memory and has run nothing yet.

    asked_by: is called with a thread and a program counter before that one's accesses.
    """

    def __init__(
        self,
        machine: "Machine",
        variables: list[RemoteVariable],
        store: RemoteStore,
        asked_by: Callable[["Thread", int], None],
    ) -> None:
        self._machine = machine
        self._space = machine.space
        self._processor = machine.processor
        self._asked_by = asked_by
        self.remote = RemoteMap(variables, _Local(machine.space), store)
        self._spans = _joined(self.remote.pages)
        for start, end in self._spans:
            self._processor.forbid(start, end - start)
        self._view = _View(self.remote, machine.space)
        local = _Local(machine.space)
        self._neighbours = RemoteMap(_gaps(self._spans, self.remote.variables), local, _LocalStore(local))

    def read(self, address: int, size: int) -> bytes:
        """Return *size* bytes of the program, wherever they live. Whatever the store raises."""
        return self.remote.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Put *data* there, wherever that lives. Whatever the store raises."""
        self.remote.write(address, data)

    def touches(self, address: int, size: int) -> bool:
        """Whether any of *size* bytes at *address* is on a page with remote variables."""
        return self.remote.touches(address, size)

    def calls(self, thread: "Thread") -> None:
        """Hear that *thread* makes a call, which may touch remote memory."""
        self._asked_by(thread, self._processor.pc)

    @contextlib.contextmanager
    def lent(self, args: Iterable[int]) -> Iterator[None]:
        """Let the program's own memory hold what *args* lead to; what is changed there meanwhile is brought back.

        For calls that the machine answers: their arguments lead to a few words each.
        """
        spans = [span for arg in args if arg and (span := self._span(arg)) is not None]
        lent = []
        for start, size in spans:
            data = self.remote.read(start, size)
            self._space.view[start : start + size] = data
            lent.append((start, data))
        yield
        for start, data in lent:
            for at in range(0, len(data), _WORD_BYTES):
                before = data[at : at + _WORD_BYTES]
                after = bytes(self._space.view[start + at : start + at + len(before)])
                if after != before:
                    self.remote.write(start + at, after)

    def _span(self, address: int) -> tuple[int, int] | None:
        if address not in self.remote:
            return None
        end = next(end for start, end in self._spans if start <= address < end)
        return address, min(end - address, _LENT_BYTES)

    def execute(self, thread: "Thread", trap: Trap) -> Trap | None:
        """Execute the instruction at which *thread*, saved, has met *trap*; return what else it must not do.

        A trap that is not about remote memory is returned as it is.

        Raises:
            UnsupportedRemoteAccessError: it cannot be done. Whatever the store raises.
        """
        if trap.access == EXEC or trap.address not in self.remote:
            return trap
        pc = thread.context.pc
        self._asked_by(thread, pc)
        try:
            if self._machine.abi.arch == "amd64":
                return self._execute_amd64(thread, pc)
            return self._run(thread, pc)
        except SplitAtomicError as error:
            raise UnsupportedRemoteAccessError(pc, self._code(pc), f"{error}") from error

    def _execute_amd64(self, thread: "Thread", pc: int) -> Trap | None:
        from stepping.remote_atomics import direct_operation, operand_bytes
        from stepping.remote_plans import plan_of
        from stepping.remote_strings import execute_string
        from stepping.tracee_engine import Fault
        from stepping.x86_instructions import NotAnInstructionError, decode_instruction

        code = self._code(pc)
        try:
            instruction = decode_instruction(code)
        except NotAnInstructionError:
            return self._run(thread, pc)
        registers = _registers(thread)
        plan = plan_of(instruction)
        after = None
        if plan is not None:
            after = plan.execute(registers, self.remote) or plan.execute(registers, self._neighbours)
        if after is None and instruction.is_string:
            try:
                after = execute_string(instruction, registers, self._view)
            except Fault as fault:
                return Trap(TrapKind.MEMORY, fault.address, fault.access)
        if after is not None:
            thread.context.write_general([after[name] for name in _NAMES])
            return None
        if not instruction.is_locked:
            return self._run(thread, pc)
        direct = direct_operation(instruction, registers)
        if direct is None:
            return self._run(thread, pc, is_locked=True)
        registers["fs_base"] = thread.context.get_tls()
        return self._run_direct(thread, pc, instruction, direct, registers, operand_bytes(instruction))

    def _run_direct(
        self,
        thread: "Thread",
        pc: int,
        instruction: "Instruction",
        direct: "Direct",
        registers: Registers,
        size: int,
    ) -> Trap | None:
        """Execute a locked instruction for which the store has an operation: it sees what was there before that."""
        address = instruction.address(registers, pc)
        old = self.remote.atomic(address, *direct)
        assert len(old) == size
        accesses = _Accesses(
            self._space, self.remote, lambda at, count: old[at - address : at - address + count]
        )
        return self._step(thread, pc, accesses)

    def _run(self, thread: "Thread", pc: int, *, is_locked: bool = False) -> Trap | None:
        """Execute one instruction of the processor's own, and bring to the store what it has written."""
        while True:
            accesses = _Accesses(self._space, self.remote, self.remote.read)
            trap = self._step(thread, pc, accesses, keeps=False)
            if trap is not None:
                return trap
            is_atomic = is_locked or (self._machine.abi.arch == "arm64" and accesses.is_exchange)
            if not is_atomic:
                for at, size in accesses.written:
                    self.remote.write(at, bytes(self._space.view[at : at + size]))
            elif not self._exchange(accesses):
                continue
            thread.context.save()
            return None

    def _exchange(self, accesses: "_Accesses") -> bool:
        """Make an atomic instruction's change of memory, if that is still what it was."""
        if not accesses.written:
            return True
        start = min(at for at, _ in accesses.written)
        size = max(at + size for at, size in accesses.written) - start
        new, old = bytes(self._space.view[start : start + size]), accesses.old(start, size)
        return new == old or self.remote.atomic(start, "compare_exchange", new, old) == old

    def _step(self, thread: "Thread", pc: int, accesses: "_Accesses", *, keeps: bool = True) -> Trap | None:
        """Execute the instruction while its pages are open; the thread is as before unless it *keeps* the result."""
        processor, spans = self._processor, self._spans
        for start, end in spans:
            processor.allow(start, end - start, _READ_WRITE)
        thread.context.load()
        try:
            stop = processor.run_watched(pc, accesses.note)
        finally:
            for start, end in spans:
                processor.forbid(start, end - start)
        if isinstance(stop, Trap):
            if stop.kind is TrapKind.MEMORY and self.remote.touches(stop.address, 1):
                raise UnsupportedRemoteAccessError(pc, self._code(pc), "it executes it")
            return stop
        if keeps:
            thread.context.save()
        return None

    def _code(self, pc: int) -> bytes:
        space = self._space
        for size in (_MAX_CODE_BYTES, PAGE_BYTES - pc % PAGE_BYTES):
            if space.allows(pc, min(size, _MAX_CODE_BYTES), PROT_EXEC):
                return bytes(space.view[pc : pc + min(size, _MAX_CODE_BYTES)])
        return b""


class _Accesses:
    """The accesses of one instruction to *remote* memory. read: returns what is at (address, size)."""

    def __init__(self, space: AddressSpace, remote: RemoteMap, read: Callable[[int, int], bytes]) -> None:
        self._space = space
        self._remote = remote
        self._read = read
        self._seen: dict[int, int] = {}
        self.written: list[tuple[int, int]] = []

    def note(self, is_write: bool, address: int, size: int) -> None:
        """Hear of an access that is about to be made."""
        if not self._remote.touches(address, size):
            return
        if is_write:
            self.written.append((address, size))
            return
        data = self._read(address, size)
        self._space.view[address : address + size] = data
        self._seen |= zip(range(address, address + size), data, strict=True)

    @property
    def is_exchange(self) -> bool:
        """Whether all that was written was read before."""
        return bool(self.written) and all(
            at + byte in self._seen for at, size in self.written for byte in range(size)
        )

    def old(self, address: int, size: int) -> bytes:
        """Return what was read at *address*."""
        return bytes(self._seen[at] for at in range(address, address + size))


class _Local:
    """The program's own memory, as a `RemoteMap` wants it: what is asked for was checked."""

    def __init__(self, space: AddressSpace) -> None:
        self._space = space

    def read(self, address: int, size: int) -> bytes:
        return bytes(self._space.view[address : address + size])

    def write(self, address: int, data: bytes) -> None:
        self._space.view[address : address + len(data)] = data


class _LocalStore:
    """The program's own memory, as a `RemoteStore` of variables that are where they were."""

    def __init__(self, memory: _Local) -> None:
        self._memory = memory

    def get(self, variable: RemoteVariable, offset: int, size: int) -> bytes:
        return self._memory.read(variable.address + offset, size)

    def set(self, variable: RemoteVariable, offset: int, data: bytes) -> None:
        self._memory.write(variable.address + offset, data)

    def atomic(
        self,
        variable: RemoteVariable,
        offset: int,
        operation: AtomicOperation,
        operand: bytes,
        expected: bytes = b"",
    ) -> bytes:
        old = self.get(variable, offset, len(operand))
        new = apply_atomic(operation, old, operand, expected)
        if new is not None:
            self.set(variable, offset, new)
        return old


class _View:
    """What `remote_strings` sees."""

    def __init__(self, remote: RemoteMap, space: AddressSpace) -> None:
        self.read = remote.read
        self.write = remote.write
        self._space = space

    def allowed(self, address: int) -> int:
        vma = self._space.find(address)
        return 0 if vma is None or vma.hollow else vma.protection


def _gaps(spans: Iterable[tuple[int, int]], variables: Iterable[RemoteVariable]) -> list[RemoteVariable]:
    """Return what of *spans* is no part of *variables*, which are in order."""
    gaps = []
    ordered = list(variables)
    for start, end in spans:
        for variable in ordered:
            if variable.end <= start or end <= variable.address:
                continue
            if start < variable.address:
                gaps.append(RemoteVariable(start, variable.address - start, ""))
            start = variable.end
        if start < end:
            gaps.append(RemoteVariable(start, end - start, ""))
    return gaps


def _joined(pages: Iterable[int]) -> list[tuple[int, int]]:
    """Return the spans [start, end) that *pages* make up."""
    spans: list[tuple[int, int]] = []
    for page in sorted(pages):
        if spans and spans[-1][1] == page:
            spans[-1] = (spans[-1][0], page + PAGE_BYTES)
        else:
            spans.append((page, page + PAGE_BYTES))
    return spans


def _registers(thread: "Thread") -> Registers:
    found = dict(zip(_NAMES, thread.context.read_general(), strict=True))
    return Registers(AMD64, [found.get(name, 0) for name in AMD64.names])
