"""Unicorn over the memory of a stopped thread: registers go in and come out, memory is fetched as it is touched.

Every access of an instruction is asked of the engine's `EngineMemory` at that moment and written there, so nothing
that is kept can be out of date, and whoever provides the memory decides byte by byte where it lives. Only code is
kept, page by page, until `forget`.

The writes of an instruction are made when it is complete: one that faults has done nothing.

Unicorn knows no AVX, and takes some instructions of newer processors for others. What it must not execute is told
by `stepping.x86_instructions.Unit`; the engine itself refuses nothing.

Only amd64. Thread rules: one thread owns an engine.
Source: Intel SDM volume 1 (EFLAGS), volume 2 (FXSAVE).
"""

import ctypes
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Protocol

from stepping.emulation.makes import MAKES
from stepping.emulation.registers import Registers as UnicornRegisters
from stepping.registers import AMD64, Registers
from stepping.unicorn_api import (
    API,
    CODE_HOOK,
    INTERRUPT_HOOK,
    LONG_API,
    MEMORY_FAULT_HOOK,
    MEMORY_HOOK,
    EmulatorError,
    Failures,
    address_of,
    check,
    control,
    reason,
    unicorn_const,
    x86_const,
)

READ, WRITE, EXEC = 1, 2, 4

#: Bytes of the register set that `load_vectors` and `read_vectors` carry: the FXSAVE image.
VECTOR_SET_BYTES = 512

_PAGE_BYTES = 4096
_MAX_PAGES = 256
_STATUS_FLAGS = 0xCD5  # CF, PF, AF, ZF, SF, DF, OF
_RESUME_FLAG = 1 << 16
_XMM_AT, _MXCSR_AT = 160, 24

_GENERAL = (
    *(
        "rax",
        "rbx",
        "rcx",
        "rdx",
        "rsi",
        "rdi",
        "rbp",
        "rsp",
        "r8",
        "r9",
        "r10",
        "r11",
        "r12",
        "r13",
        "r14",
        "r15",
    ),
    *("fs_base", "gs_base", "eflags"),
)
_READS = frozenset({unicorn_const.UC_MEM_READ_UNMAPPED, unicorn_const.UC_MEM_READ_PROT})
_WRITES = frozenset({unicorn_const.UC_MEM_WRITE_UNMAPPED, unicorn_const.UC_MEM_WRITE_PROT})
_SEVERAL_HOOKS = unicorn_const.UC_HOOK_MEM_INVALID


class EngineMemory(Protocol):
    """Where the accesses of emulated instructions go."""

    def read(self, address: int, size: int) -> bytes:
        """Return *size* bytes. Raises: MemoryFaultError."""

    def write(self, address: int, data: bytes) -> None:
        """Put *data* there. Raises: MemoryFaultError."""

    def allowed(self, address: int) -> int:
        """Return what may be done with the page at *address*: `READ`, `WRITE`, `EXEC` or'ed, 0 for nothing."""


class Fault(Exception):
    """The instruction may not do what it tries; nothing of it has happened.

    address: of the memory that it must not touch; access: `READ`, `WRITE`, `EXEC`, or 0 if it is not about memory.
    """

    def __init__(self, text: str, address: int = 0, access: int = 0) -> None:
        super().__init__(text)
        self.address = address
        self.access = access


class TraceeEngine:
    """Executes amd64 code in *memory*. Load registers, run, read registers."""

    def __init__(self, memory: EngineMemory) -> None:
        self._memory = memory
        self._engine = ctypes.c_void_p()
        make = MAKES["amd64"]
        mode = [getattr(unicorn_const, name) for name in make.engine]
        check(API.uc_open(*mode, ctypes.byref(self._engine)), "start")
        model = ctypes.c_int(getattr(x86_const, make.model))
        control(self._engine, unicorn_const.UC_CTL_CPU_MODEL, model)
        self._failures = Failures(self._engine)
        self._general = UnicornRegisters(API, [_id(name) for name in _GENERAL])
        self._xmm = UnicornRegisters(API, [_id(f"xmm{number}") for number in range(16)], 16)
        self._places = [AMD64.index[name] for name in _GENERAL]
        self._number = ctypes.c_uint64()
        self._pages: dict[int, int] = {}
        self._code: dict[int, bytes] = {}
        self._writes: list[tuple[int, int]] = []
        self._buffer = ctypes.create_string_buffer(64)
        self._before: Callable[[int], bool] | None = None
        self._fault: Fault | None = None
        self._hooks: list[object] = []
        self._hook(unicorn_const.UC_HOOK_MEM_READ, MEMORY_HOOK(self._on_read))
        self._hook(unicorn_const.UC_HOOK_MEM_WRITE, MEMORY_HOOK(self._on_write))
        self._hook(_SEVERAL_HOOKS, MEMORY_FAULT_HOOK(self._on_fault))
        self._hook(unicorn_const.UC_HOOK_INTR, INTERRUPT_HOOK(self._on_interrupt))
        self._hook(unicorn_const.UC_HOOK_CODE, CODE_HOOK(self._on_instruction))

    def close(self) -> None:
        """Give up the engine's memory."""
        if self._engine.value:
            API.uc_close(self._engine)
            self._engine.value = None

    def forget(self) -> None:
        """Fetch all code anew, and ask anew what may be touched."""
        for page in self._pages:
            API.uc_mem_unmap(self._engine, ctypes.c_uint64(page), ctypes.c_size_t(_PAGE_BYTES))
        self._pages.clear()
        self._code.clear()

    def release(self, kept: AbstractSet[int]) -> None:
        """Ask anew what may be touched, but for the pages *kept* and for code."""
        stale = [page for page, allowed in self._pages.items() if not allowed & EXEC and page not in kept]
        for page in stale:
            API.uc_mem_unmap(self._engine, ctypes.c_uint64(page), ctypes.c_size_t(_PAGE_BYTES))
            del self._pages[page]

    def load(self, registers: Registers) -> None:
        """Take over the general registers."""
        values = registers.values()
        numbers = [values[place] for place in self._places]
        numbers[-1] &= _STATUS_FLAGS
        self._general.write(self._engine, numbers)

    def load_vectors(self, image: bytes) -> None:
        """Take over the XMM registers and MXCSR from an FXSAVE image."""
        self._xmm.write_bytes(self._engine, image[_XMM_AT : _XMM_AT + 256])
        self._number.value = int.from_bytes(image[_MXCSR_AT : _MXCSR_AT + 4], "little")
        API.uc_reg_write(self._engine, x86_const.UC_X86_REG_MXCSR, ctypes.byref(self._number))

    def read(self, registers: Registers) -> Registers:
        """Return *registers*, which were loaded, as they are now, but for the program counter."""
        changed = registers.copy()
        values = changed.values()
        numbers = self._general.read(self._engine)
        flags = values[self._places[-1]] & ~(_STATUS_FLAGS | _RESUME_FLAG)
        numbers[-1] = numbers[-1] & _STATUS_FLAGS | flags
        for place, number in zip(self._places, numbers, strict=True):
            values[place] = number
        changed.pc = self.pc
        return changed

    def read_vectors(self, image: bytes) -> bytes:
        """Return the FXSAVE *image* with the XMM registers and MXCSR as they are now."""
        self._number.value = 0
        API.uc_reg_read(self._engine, x86_const.UC_X86_REG_MXCSR, ctypes.byref(self._number))
        status = self._number.value.to_bytes(8, "little")[:4]
        head = image[:_MXCSR_AT] + status + image[_MXCSR_AT + 4 : _XMM_AT]
        return head + self._xmm.read_bytes(self._engine) + image[_XMM_AT + 256 :]

    @property
    def pc(self) -> int:
        """The address of the next instruction."""
        API.uc_reg_read(self._engine, x86_const.UC_X86_REG_RIP, ctypes.byref(self._number))
        return self._number.value

    def execute(self, pc: int, code: bytes) -> None:
        """Execute the one instruction *code* at *pc*, wherever it leads (of a repeated one, all of it).

        Raises:
            Fault: it cannot be; nothing has happened, but for the repetitions that were complete.
            Whatever the memory raises.
        """
        self.put_code(pc, code)
        self._before = lambda next_pc: next_pc == pc
        self._start(pc, pc + len(code))
        self._complete()

    def run(self, pc: int, before: Callable[[int], bool]) -> None:
        """Execute from *pc* until *before*, called with the address of each next instruction, returns False.

        At that moment all that came before is complete.

        Raises:
            Fault: an instruction, at `pc`, cannot be executed; nothing of it has happened.
            Whatever the memory, or *before*, raises.
        """
        self._before = before
        self._start(pc, 0xFFFF_FFFF_FFFF_FFFF)

    def _start(self, pc: int, until: int) -> None:
        self._writes.clear()
        self._fault = None
        error = LONG_API.uc_emu_start(
            self._engine, ctypes.c_uint64(pc), ctypes.c_uint64(until), ctypes.c_uint64(0), ctypes.c_size_t(0)
        )
        failure, fault = self._failures.raised, self._fault
        if failure is not None:
            self._failures.raised = None
            raise failure
        if fault is not None:
            raise fault
        if error != unicorn_const.UC_ERR_OK:
            raise Fault(f"the emulator cannot execute it: {reason(error)}")

    def _complete(self) -> None:
        """Make the writes of the instruction that is complete."""
        if self._writes:
            writes = self._writes[:]
            self._writes.clear()
            for address, size in writes:
                self._memory.write(address, self._read_own(address, size))

    def _read_own(self, address: int, size: int) -> bytes:
        """Return what an instruction has left in the engine's own memory."""
        # The hook is told a value, too, but of movbe it is the wrong way round.
        API.uc_mem_read(self._engine, ctypes.c_uint64(address), self._buffer, ctypes.c_uint64(size))
        return self._buffer.raw[:size]

    def put_code(self, pc: int, code: bytes) -> None:
        """Have *code*, an instruction, in the engine's memory at *pc*."""
        if self._code.get(pc) == code and pc & -_PAGE_BYTES in self._pages:
            return
        if len(self._pages) > _MAX_PAGES // 2:
            self.forget()
        for page in range(pc & -_PAGE_BYTES, pc + len(code), _PAGE_BYTES):
            if page not in self._pages:
                self._map(page, READ | EXEC)
                self._fill(page)
        API.uc_mem_write(self._engine, ctypes.c_uint64(pc), code, ctypes.c_uint64(len(code)))
        self._code[pc] = code

    def _map(self, page: int, protection: int) -> None:
        if len(self._pages) >= _MAX_PAGES:
            raise EmulatorError(f"an instruction touches more than {_MAX_PAGES} pages")
        error = API.uc_mem_map(
            self._engine, ctypes.c_uint64(page), ctypes.c_size_t(_PAGE_BYTES), ctypes.c_uint32(protection)
        )
        check(error, "map memory")
        self._pages[page] = protection

    def _hook(self, kind: int, function: object) -> None:
        handle = ctypes.c_size_t()
        error = LONG_API.uc_hook_add(
            *(self._engine, ctypes.byref(handle), kind, ctypes.c_void_p(address_of(function)), None),
            *(ctypes.c_uint64(1), ctypes.c_uint64(0)),
        )
        check(error, "install a hook")
        self._hooks.append(function)

    # What Unicorn calls.

    def _on_instruction(self, _engine: int, pc: int, _size: int, _data: int) -> None:
        with self._failures:
            self._complete()
            if self._before is not None and not self._before(pc):
                API.uc_emu_stop(self._engine)

    def _on_read(self, _engine: int, _kind: int, address: int, size: int, _value: int, _data: int) -> None:
        with self._failures:
            if self._failures.raised is None and not self._pages.get(address & -_PAGE_BYTES, 0) & EXEC:
                last = address + size - 1 & -_PAGE_BYTES
                if last not in self._pages and not self._admit(last, READ):
                    return  # the access itself will fault there
                data = self._memory.read(address, size)
                API.uc_mem_write(self._engine, ctypes.c_uint64(address), data, ctypes.c_uint64(size))

    def _on_write(self, _engine: int, _kind: int, address: int, size: int, _value: int, _data: int) -> None:
        if self._failures.raised is None:
            self._writes.append((address, size))

    def _on_fault(self, _engine: int, kind: int, address: int, size: int, _value: int, _data: int) -> bool:
        """Map what is touched for the first time; return whether the access may be tried again."""
        with self._failures:
            access = READ if kind in _READS else WRITE if kind in _WRITES else EXEC
            for page in range(address & -_PAGE_BYTES, address + max(size, 1), _PAGE_BYTES):
                if not self._admit(page, access):
                    touched = max(address, page)
                    self._fault = Fault(f"no {_NAMES[access]} access to {touched:#x}", touched, access)
                    return False
            return True
        return False

    def _admit(self, page: int, access: int) -> bool:
        allowed = self._memory.allowed(page)
        if not allowed & access:
            return False
        known = self._pages.get(page)
        if known is not None and known & access:
            return True
        if access != EXEC:
            if known is not None:  # it is code, and to be written: what was translated may be wrong then
                self._fault = Fault(f"the code at {page:#x} is written to", page, 0)
                return False
            self._map(page, READ | WRITE)
            return True
        if known is None:
            self._map(page, READ | EXEC)
        else:
            error = API.uc_mem_protect(
                self._engine,
                ctypes.c_uint64(page),
                ctypes.c_size_t(_PAGE_BYTES),
                ctypes.c_uint32(READ | EXEC),
            )
            check(error, "protect memory")
            self._pages[page] = READ | EXEC
        self._fill(page)
        return True

    def _fill(self, page: int) -> None:
        """Fetch a page of code, which may hold constants too."""
        code = self._memory.read(page, _PAGE_BYTES)
        API.uc_mem_write(self._engine, ctypes.c_uint64(page), code, ctypes.c_uint64(_PAGE_BYTES))

    def _on_interrupt(self, _engine: int, number: int, _data: int) -> None:
        self._fault = Fault(_EXCEPTIONS.get(number, f"it raises the processor's exception {number}"))
        self._writes.clear()
        API.uc_emu_stop(self._engine)


_NAMES = {READ: "read", WRITE: "write", EXEC: "execute"}
_EXCEPTIONS = {0: "the division has no result", 3: "it is a breakpoint", 6: "it is no valid instruction"}


def _id(name: str) -> int:
    number: int = getattr(x86_const, f"UC_X86_REG_{'RFLAGS' if name == 'eflags' else name.upper()}")
    return number
