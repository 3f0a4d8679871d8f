"""A processor of another make, or of this one, in software: the only module that imports Unicorn.

`Processor` executes code of one architecture in memory that its user provides, until it is told to stop or cannot
go on. It knows no operating system: what a syscall means, which memory there is, and which of many register sets
(`Context`) is in it at a time is its user's business.

Why it is written against Unicorn's C functions and not its Python classes: a syscall costs a handful of calls of
these functions, and each costs five times as much by way of the classes. The functions that run no guest code are
called without giving up the interpreter's lock (PyDLL), which halves their price again.

Thread rules: one thread owns a Processor; `stop` may be called from any.
"""

import ctypes
import threading
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Any, NamedTuple

from unicorn import arm64_const, unicorn_const, x86_const
from unicorn.unicorn_py3 import unicorn as binding

from stepping.emulation.exits import HostCode, find_switch
from stepping.emulation.makes import MAKES
from stepping.emulation.registers import Registers
from stepping.errors import SteppingError
from stepping.syscalls.model import Arch

#: What may be done to memory, as mmap(2) numbers it and as Unicorn does.
READ, WRITE, EXEC = 1, 2, 4

#: Addresses at and above this do not exist. An arm64 processor without address translation, which is what Unicorn
#: emulates, has no more than its physical addresses, and the one used here has 44 bits of them.
ADDRESS_LIMIT = 1 << 44


class EmulatorError(SteppingError):
    """Unicorn cannot do what it was asked to do: the text says what, and Unicorn's reason."""


class TrapKind(Enum):
    """Why the processor cannot go on."""

    MEMORY = "memory"  #: nothing is mapped there, or not for this use
    INSTRUCTION = "instruction"  #: it does not know the instruction
    BREAKPOINT = "breakpoint"  #: int3, brk
    ARITHMETIC = "arithmetic"  #: a division that has no result
    OTHER = "other"  #: an exception that no program raises; `detail` is its number


class Trap(NamedTuple):
    """The processor stands at an instruction that it could not execute; nothing of it has happened.

    address: of the memory access (`MEMORY`); access: `READ`, `WRITE` or `EXEC`; mapped: something is mapped there,
    but not for this use; detail: Unicorn's number of the error or exception.
    """

    kind: TrapKind
    address: int = 0
    access: int = 0
    mapped: bool = False
    detail: int = 0


class Stopped(NamedTuple):
    """`Processor.stop` was called, or the budget was used up; the processor can go on."""


Stop = Trap | Stopped
STOPPED = Stopped()

_API: Any = ctypes.PyDLL(binding.uclib._name, handle=binding.uclib._handle)
_LONG_API: Any = binding.uclib

_INTERRUPT_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
_SYSCALL_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_SKIP_HOOK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_BLOCK_HOOK = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.POINTER(ctypes.c_int32)
)
_MEMORY_HOOK = ctypes.CFUNCTYPE(
    ctypes.c_bool,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_uint64,
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_void_p,
)

_MEMORY_ACCESS = {
    unicorn_const.UC_MEM_READ_UNMAPPED: (READ, False),
    unicorn_const.UC_MEM_READ_PROT: (READ, True),
    unicorn_const.UC_MEM_WRITE_UNMAPPED: (WRITE, False),
    unicorn_const.UC_MEM_WRITE_PROT: (WRITE, True),
    unicorn_const.UC_MEM_FETCH_UNMAPPED: (EXEC, False),
    unicorn_const.UC_MEM_FETCH_PROT: (EXEC, True),
}


class _Ids(NamedTuple):
    """Unicorn's numbers of the registers that are often asked for alone."""

    pc: int
    sp: int
    tls: int
    result: int


class _Failures:
    """Catches what a callback raises, stops the processor, and keeps it for `Processor.run` to raise."""

    def __init__(self, engine: ctypes.c_void_p) -> None:
        self._engine = engine
        self.raised: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, where: TracebackType | None
    ) -> bool:
        if raised is not None:
            self.raised = raised
            _API.uc_emu_stop(self._engine)
        return True


class Processor:
    """Executes code of *arch*. `on_syscall()` is called at each syscall, in the middle of `run`.

    There, `read_call` tells the call and `set_result` answers it; or the registers are exchanged by
    `Context.save` and `Context.load`, and the processor goes on with those. `ticks`, if given, is called for the
    processor's own clock (rdtsc) and returns its count. `budgeted`: `run` counts what it executes.

    It holds some 40 MB, most of it code that it has made; `close` gives them up.
    """

    def __init__(
        self,
        arch: Arch,
        on_syscall: Callable[[], None],
        ticks: Callable[[], int] | None = None,
        *,
        budgeted: bool = False,
    ) -> None:
        self.arch = arch
        self.make = make = MAKES[arch]
        self.api = _API
        self.engine = ctypes.c_void_p()
        #: How far the program counter that Unicorn shows is behind: not 0 only in a syscall of amd64.
        self.pc_lags_bytes = 0
        self._on_syscall = on_syscall
        self._ticks = ticks
        self._trap: Trap | None = None
        self._lock = threading.Lock()
        self._closed = False
        engine = [getattr(unicorn_const, name) for name in make.engine]
        _check(_API.uc_open(*engine, ctypes.byref(self.engine)), "start")
        self._failures = _Failures(self.engine)
        constants = {"x86_const": x86_const, "arm64_const": arm64_const}[make.constants]
        self._control(unicorn_const.UC_CTL_CPU_MODEL, getattr(constants, make.model))

        def ids(names: str) -> list[int]:
            return [getattr(constants, make.prefix + name) for name in names.split()]

        self.ids = _Ids(*ids(f"{make.pc} {make.sp} {make.tls} {make.result}"))
        self.call_registers = Registers(_API, ids(make.call))
        self.general_registers = Registers(_API, ids(make.general))
        self.vector_registers = Registers(_API, ids(make.vectors), 16)
        self._result = ctypes.c_uint64()
        self._result_pointer = ctypes.byref(self._result)
        self._hooks: list[object] = []
        self._budget = ctypes.c_int32(0x7FFFFFFF)
        self._wants_stop = False
        self._in_hook = False
        self._host_code = self._leave_out_checks()
        self._add_hooks(budgeted)

    def close(self) -> None:
        """Give up everything; contexts are void then."""
        with self._lock:
            if not self._closed:
                self._closed = True
                _API.uc_close(self.engine)

    def allocate(self, context: ctypes.c_void_p) -> None:
        """Make room for one more set of registers."""
        error = _API.uc_context_alloc(self.engine, ctypes.byref(context))
        _check(error, "make room for a thread's registers")

    def run(self, pc: int, budget_bytes: int = 0) -> Stop:
        """Execute from *pc* on, and say why it ended.

        budget_bytes: how many bytes of code to execute, more or less, if the processor is `budgeted`.

        Raises:
            Whatever `on_syscall` raised.
        """
        self._trap = None
        if budget_bytes:
            self._budget.value = budget_bytes
        error = _LONG_API.uc_emu_start(self.engine, pc, 0xFFFFFFFFFFFFFFFF, 0, 0)
        self.pc_lags_bytes = 0
        self._in_hook = False
        failure = self._failures.raised
        if failure is not None:
            self._failures.raised = None
            raise failure
        if self._trap is not None:
            return self._trap
        if error == unicorn_const.UC_ERR_OK:
            return STOPPED
        if error == unicorn_const.UC_ERR_INSN_INVALID:
            return Trap(TrapKind.INSTRUCTION, detail=error)
        raise EmulatorError(f"the emulator cannot run code at {pc:#x}: {_reason(error)}")

    def stop(self) -> None:
        """Make `run` return soon; does nothing if it does not run. Any thread may call it."""
        with self._lock:
            if self._closed:
                return
            if self._host_code is not None or self._in_hook:
                _API.uc_emu_stop(self.engine)
            else:
                self._wants_stop = True

    def map(self, start: int, size: int, protection: int, host_address: int) -> None:
        """Let the program see *size* bytes of this process's memory at *host_address* as its own at *start*.

        All are multiples of 4096. protection: `READ`, `WRITE`, `EXEC`, or'ed, not 0.
        """
        error = _API.uc_mem_map_ptr(
            self.engine,
            ctypes.c_uint64(start),
            ctypes.c_uint64(size),
            protection,
            ctypes.c_void_p(host_address),
        )
        _check(error, f"map {size:#x} bytes at {start:#x}")

    def unmap(self, start: int, size: int) -> None:
        """Take away what `map` gave: all of it or a part, of one or more mappings that adjoin."""
        error = _API.uc_mem_unmap(self.engine, ctypes.c_uint64(start), ctypes.c_uint64(size))
        _check(error, f"unmap {size:#x} bytes at {start:#x}")

    def read_call(self) -> list[int]:
        """Return the registers of the syscall that is being made: its number, then six arguments."""
        return self.call_registers.read(self.engine)

    def set_result(self, value: int) -> None:
        """Let the syscall that is being made return *value* (signed or unsigned 64-bit)."""
        self._result.value = value
        _API.uc_reg_write(self.engine, self.ids.result, self._result_pointer)

    def set_tls(self, value: int) -> None:
        """Set the register that leads to the running thread's own storage."""
        self._result.value = value
        _API.uc_reg_write(self.engine, self.ids.tls, self._result_pointer)

    def _control(self, what: int, value: int) -> None:
        command = what | 1 << 26 | unicorn_const.UC_CTL_IO_WRITE << 30
        _check(
            _LONG_API.uc_ctl(self.engine, ctypes.c_int(command), ctypes.c_int(value)), "choose a processor"
        )

    def _leave_out_checks(self) -> HostCode | None:
        """See `exits`: return None if it cannot be done here."""
        check = getattr(_API, "check_exit_request" + self.make.suffix, None)
        if check is None:
            return None
        offset = find_switch(_address_of(check))
        engine = self.engine.value
        if offset is None or engine is None or ctypes.string_at(engine + offset, 1) != b"\0":
            return None
        ctypes.memset(engine + offset, 1, 1)
        return HostCode()

    def _hook(self, kind: int, function: Any, *more: ctypes.c_int, data: Any = None) -> None:
        handle = ctypes.c_size_t()
        error = _LONG_API.uc_hook_add(
            self.engine,
            ctypes.byref(handle),
            kind,
            ctypes.c_void_p(function if isinstance(function, int) else _address_of(function)),
            data,
            ctypes.c_uint64(1),
            ctypes.c_uint64(0),
            *more,
        )
        _check(error, "install a hook")
        self._hooks.append(function)

    def _add_hooks(self, budgeted: bool) -> None:
        memory_hook: Any = _MEMORY_HOOK(self._memory_hook)
        self._hooks.append(memory_hook)
        code = self._host_code
        if code is not None:
            leave = getattr(_API, "helper_check_exit_request" + self.make.suffix)
            memory_hook = code.fault_hook(_address_of(memory_hook), _address_of(leave))
        self._hook(unicorn_const.UC_HOOK_MEM_INVALID, memory_hook)
        self._hook(unicorn_const.UC_HOOK_INTR, _INTERRUPT_HOOK(self._interrupt_hook))
        if self.arch == "amd64":
            instruction = ctypes.c_int(x86_const.UC_X86_INS_SYSCALL)
            self._hook(unicorn_const.UC_HOOK_INSN, _SYSCALL_HOOK(self._syscall_hook), instruction)
            if self._ticks is not None:
                instruction = ctypes.c_int(x86_const.UC_X86_INS_RDTSC)
                self._hook(unicorn_const.UC_HOOK_INSN, _SKIP_HOOK(self._rdtsc_hook), instruction)
        if code is None:
            self._hook(
                unicorn_const.UC_HOOK_BLOCK, _BLOCK_HOOK(self._block_hook), data=ctypes.byref(self._budget)
            )
        elif budgeted:
            stop = code.budget_hook(_address_of(_API.uc_emu_stop))
            self._hook(unicorn_const.UC_HOOK_BLOCK, stop, data=ctypes.byref(self._budget))

    def _block_hook(self, _engine: int, _pc: int, size: int, budget: Any) -> None:
        """Do at the start of each block what `exits` has machine code for."""
        budget[0] -= size
        if self._wants_stop or budget[0] < 0:
            self._wants_stop = False
            budget[0] = 0x7FFFFFFF
            _API.uc_emu_stop(self.engine)

    def _syscall_hook(self, _engine: int, _data: int) -> None:
        with self._failures:
            self.pc_lags_bytes = 2
            self._in_hook = True
            self._on_syscall()
            self._in_hook = False
            self.pc_lags_bytes = 0

    def _interrupt_hook(self, _engine: int, number: int, _data: int) -> None:
        with self._failures:
            make = self.make
            if number == make.syscall:
                self._in_hook = True
                self._on_syscall()
                self._in_hook = False
                return
            if number in make.aborts:
                address = ctypes.c_uint64()
                _API.uc_reg_read(self.engine, arm64_const.UC_ARM64_REG_FAR_EL1, ctypes.byref(address))
                self._trap = Trap(TrapKind.MEMORY, address.value, READ, False, number)
            elif number in make.breakpoints:
                self._trap = Trap(TrapKind.BREAKPOINT, detail=number)
            elif number in make.arithmetic:
                self._trap = Trap(TrapKind.ARITHMETIC, detail=number)
            else:
                self._trap = Trap(TrapKind.OTHER, detail=number)
            _API.uc_emu_stop(self.engine)

    def _memory_hook(
        self, _engine: int, access: int, address: int, _size: int, _value: int, _data: int
    ) -> bool:
        wanted, mapped = _MEMORY_ACCESS.get(access, (READ, False))
        self._trap = Trap(TrapKind.MEMORY, address, wanted, mapped, access)
        _API.uc_emu_stop(self.engine)
        return False

    def _rdtsc_hook(self, _engine: int, _data: int) -> int:
        with self._failures:
            assert self._ticks is not None
            count = self._ticks()
            for register, half in (
                (x86_const.UC_X86_REG_RAX, count & 0xFFFFFFFF),
                (x86_const.UC_X86_REG_RDX, count >> 32 & 0xFFFFFFFF),
            ):
                self._result.value = half
                _API.uc_reg_write(self.engine, register, self._result_pointer)
        return 1


def _reason(error: int) -> str:
    text: bytes = _LONG_API.uc_strerror(error)
    return text.decode()


def _address_of(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


def _check(error: int, what: str) -> None:
    if error != unicorn_const.UC_ERR_OK:
        raise EmulatorError(f"the emulator cannot {what}: {_reason(error)}")
