"""A processor of another make, or of this one, in software, for whole programs.

`Processor` executes code of one architecture in memory that its user provides, until it is told to stop or cannot
go on. It knows no operating system: what a syscall means, which memory there is, and which of many register sets
(`Context`) is in it at a time is its user's business.

Thread rules: one thread owns a Processor; `stop` may be called from any.
"""

import ctypes
import mmap
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from stepping.emulation.exits import HostCode, find_switch
from stepping.emulation.makes import MAKES
from stepping.emulation.registers import Context, Registers
from stepping.syscalls.model import Arch
from stepping.unicorn_api import (
    API,
    BLOCK_HOOK,
    CODE_HOOK,
    FILL_HOOK,
    INTERRUPT_HOOK,
    LONG_API,
    MEMORY_HOOK,
    SKIP_HOOK,
    SYSCALL_HOOK,
    EmulatorError,
    Failures,
    address_of,
    arm64_const,
    check,
    control,
    reason,
    unicorn_const,
    x86_const,
)

#: What may be done to memory, as mmap(2) numbers it and as Unicorn does.
READ, WRITE, EXEC = 1, 2, 4

#: Addresses at and above this do not exist: more than any program uses, and little enough to be reserved whole.
ADDRESS_LIMIT = 1 << 44

_PAGE_BITS = 12
_TABLE_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE


class TrapKind(Enum):
    """Why the processor cannot go on."""

    MEMORY = "memory"  #: nothing is mapped there, or not for this use
    INSTRUCTION = "instruction"  #: it does not know the instruction
    BREAKPOINT = "breakpoint"  #: int3, brk
    ARITHMETIC = "arithmetic"  #: a division that has no result
    OTHER = "other"  #: an exception that no program raises; `detail` is its number


class Trap(NamedTuple):
    """The processor stands at an instruction that it could not execute; nothing of it has happened.

    address: of the memory access (`MEMORY`); access: `READ`, `WRITE` or `EXEC`; detail: Unicorn's number of the
    error or exception.
    """

    kind: TrapKind
    address: int = 0
    access: int = 0
    detail: int = 0


class Stopped(NamedTuple):
    """`Processor.stop` was called, or the budget was used up; the processor can go on."""


Stop = Trap | Stopped
STOPPED = Stopped()

_ACCESSES = (READ, WRITE, EXEC)
_ENGINE_BYTES = 0x3800  # most of Unicorn's struct uc_struct, which has some more

#: Where a load is tried that fails, and what from.
_PROBE_PAGE, _PROBE_TARGET = 0x10000, 0x0ABC_DEF1_2345_6780 % ADDRESS_LIMIT


class _Ids(NamedTuple):
    """Unicorn's numbers of the registers that are often asked for alone."""

    pc: int
    sp: int
    tls: int
    result: int


class Processor:
    """Executes code of *arch*. `on_syscall()` is called at each syscall, in the middle of `run`.

    There, `read_call` tells the call and `set_result` answers it; or the registers are exchanged by
    `Context.save` and `Context.load`, and the processor goes on with those. `ticks`, if given, is called for the
    processor's own clock (rdtsc) and returns its count. `budgeted`: `run` counts what it executes.

    All memory is given by `attach`; none of it can be touched before `allow`.
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
        self.api = API
        self.engine = ctypes.c_void_p()
        #: How far the program counter that Unicorn shows is behind: not 0 only in a syscall of amd64.
        self.pc_lags_bytes = 0
        self._on_syscall = on_syscall
        self._ticks = ticks
        self._trap: Trap | None = None
        self._lock = threading.Lock()
        self._closed = False
        engine = [getattr(unicorn_const, name) for name in make.engine]
        check(API.uc_open(*engine, ctypes.byref(self.engine)), "start")
        self._failures = Failures(self.engine)
        constants = {"x86_const": x86_const, "arm64_const": arm64_const}[make.constants]
        control(self.engine, unicorn_const.UC_CTL_CPU_MODEL, ctypes.c_int(getattr(constants, make.model)))

        def ids(names: str) -> list[int]:
            return [getattr(constants, make.prefix + name) for name in names.split()]

        self.ids = _Ids(*ids(f"{make.pc} {make.sp} {make.tls} {make.result}"))
        self.call_registers = Registers(API, ids(make.call))
        self.general_registers = Registers(API, ids(make.general))
        self.vector_registers = Registers(API, ids(make.vectors), 16)
        self._result = ctypes.c_uint64()
        self._result_pointer = ctypes.byref(self._result)
        self._hooks: list[object] = []
        self._budget = ctypes.c_int32(0x7FFFFFFF)
        self._wants_stop = False
        self._in_hook = False
        self._is_stepping = False
        self._refused = ctypes.c_int32(0)
        self._fault_address: ctypes.c_uint64 | None = None
        self._table = mmap.mmap(-1, ADDRESS_LIMIT >> _PAGE_BITS, flags=_TABLE_FLAGS)
        self._table_at = ctypes.addressof(ctypes.c_char.from_buffer(self._table))
        self._without_checks = ctypes.c_ubyte(0)
        self._host_code = self._leave_out_checks()
        # No address ends a run: Unicorn would look up the one given to uc_emu_start, and find it inaccessible.
        control(self.engine, unicorn_const.UC_CTL_UC_USE_EXITS, ctypes.c_int(1))
        control(self.engine, unicorn_const.UC_CTL_TLB_TYPE, ctypes.c_int(unicorn_const.UC_TLB_VIRTUAL))
        self._add_hooks(budgeted)

    def close(self) -> None:
        """Give up everything; contexts are void then."""
        with self._lock:
            if not self._closed:
                self._closed = True
                API.uc_close(self.engine)

    def after_fork(self) -> None:
        """Be the copy in a new process, where no other thread can call `stop` yet."""
        self._lock = threading.Lock()

    def allocate(self, context: ctypes.c_void_p) -> None:
        """Make room for one more set of registers."""
        error = API.uc_context_alloc(self.engine, ctypes.byref(context))
        check(error, "make room for a thread's registers")

    def run(self, pc: int, budget_bytes: int = 0, *, once: bool = False) -> Stop:
        """Execute from *pc* on, and say why it ended.

        budget_bytes: how many bytes of code to execute, more or less, if the processor is `budgeted`.
        once: execute one instruction.

        Raises:
            Whatever `on_syscall` raised.
        """
        self._trap = None
        if budget_bytes:
            self._budget.value = budget_bytes
        error = self._run_once(pc) if once else LONG_API.uc_emu_start(self.engine, pc, 0, 0, 0)
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
        if error == unicorn_const.UC_ERR_EXCEPTION and self._fault_address is not None:
            return Trap(TrapKind.MEMORY, self._fault_address.value, _ACCESSES[self._refused.value], error)
        if error == unicorn_const.UC_ERR_INSN_INVALID:
            return Trap(TrapKind.INSTRUCTION, detail=error)
        raise EmulatorError(f"the emulator cannot run code at {pc:#x}: {reason(error)}")

    def run_watched(self, pc: int, on_access: Callable[[bool, int, int], None]) -> Stop:
        """Execute one instruction, as `run` does; *on_access* (written, address, size) is called before each access.

        Raises:
            Whatever *on_access* raised; the instruction may have been executed then.
        """

        def memory_hook(_e: int, access: int, address: int, size: int, _v: int, _d: int) -> None:
            with self._failures:
                on_access(access == unicorn_const.UC_MEM_WRITE, address, size)

        both = unicorn_const.UC_HOOK_MEM_READ | unicorn_const.UC_HOOK_MEM_WRITE
        handle = self._hook(both, MEMORY_HOOK(memory_hook))
        try:
            return self.run(pc, once=True)
        finally:
            LONG_API.uc_hook_del(self.engine, handle)
            self._hooks.pop()

    def _run_once(self, pc: int) -> int:
        """Execute one instruction, which is translated anew: with what counts it, and looks whether to stop."""
        self.forget_code(pc, 1)
        checks = self._without_checks.value
        with self._lock:
            self._is_stepping = True  # a stop would come after an access, in the middle of the instruction
        self._without_checks.value = 0
        error: int = LONG_API.uc_emu_start(self.engine, pc, 0, 0, 1)
        self._without_checks.value = checks
        self._is_stepping = False
        self.forget_code(pc, 1)
        return error

    def stop(self) -> None:
        """Make `run` return soon; does nothing if it does not run, or returns anyway. Any thread may call it."""
        with self._lock:
            if self._closed or self._is_stepping:
                return
            if self._host_code is not None or self._in_hook:
                API.uc_emu_stop(self.engine)
            else:
                self._wants_stop = True

    def attach(self, host_address: int) -> None:
        """Let all memory of the program be this process's, at *host_address* and as many bytes as `ADDRESS_LIMIT`."""
        error = API.uc_mem_map_ptr(
            self.engine,
            ctypes.c_uint64(0),
            ctypes.c_uint64(ADDRESS_LIMIT),
            READ | WRITE | EXEC,
            ctypes.c_void_p(host_address),
        )
        check(error, "map the program's memory")
        self._find_fault_address(host_address)

    def watch(self, address: int, reached: Callable[[], None]) -> None:
        """Call *reached* before the instruction at *address*, each time. To be called before any code runs."""

        def code_hook(_engine: int, _pc: int, _size: int, _data: int) -> None:
            with self._failures:
                reached()

        self._hook(unicorn_const.UC_HOOK_CODE, CODE_HOOK(code_hook), within=(address, address))

    def observe(
        self, on_instruction: Callable[[int], None], on_access: Callable[[bool, int, int], None] | None = None
    ) -> None:
        """Call *on_instruction* (address) before each instruction, and *on_access* (written, address, size) for each
        access to memory. To be called before any code runs; it slows everything down a hundred times.
        """

        def code_hook(_engine: int, pc: int, _size: int, _data: int) -> None:
            with self._failures:
                on_instruction(pc)

        self._hook(unicorn_const.UC_HOOK_CODE, CODE_HOOK(code_hook))
        if on_access is not None:
            tell = on_access

            def memory_hook(_e: int, access: int, address: int, size: int, _v: int, _d: int) -> None:
                with self._failures:
                    tell(access == unicorn_const.UC_MEM_WRITE, address, size)

            both = unicorn_const.UC_HOOK_MEM_READ | unicorn_const.UC_HOOK_MEM_WRITE
            self._hook(both, MEMORY_HOOK(memory_hook))

    def allow(self, start: int, size: int, protection: int) -> None:
        """Let the program touch *size* bytes at *start*, which it must not touch now, as *protection* says.

        start, size: multiples of 4096; protection: `READ`, `WRITE`, `EXEC`, or'ed.
        """
        if protection & (WRITE | EXEC):
            protection |= READ
        ctypes.memset(self._table_at + (start >> _PAGE_BITS), protection, size >> _PAGE_BITS)

    def forget_code(self, start: int, size: int) -> None:
        """Translate the code in *size* bytes at *start* anew: somebody else has changed it."""
        ends = ctypes.c_uint64(start), ctypes.c_uint64(start + size)
        control(self.engine, unicorn_const.UC_CTL_TB_REMOVE_CACHE, *ends)

    def forbid(self, start: int, size: int) -> None:
        """Do not let the program touch *size* bytes at *start* any more."""
        pages = self._table_at + (start >> _PAGE_BITS)
        had_code = EXEC & ctypes.string_at(pages, 1)[0]
        ctypes.memset(pages, 0, size >> _PAGE_BITS)
        if had_code:
            self.forget_code(start, size)
        control(self.engine, unicorn_const.UC_CTL_TLB_FLUSH)

    def resize_cache(self) -> None:
        """Let the cache of page protections grow or shrink to what the program touches.

        Unicorn does that only when it empties the cache, which a program that maps nothing never makes it do.
        """
        control(self.engine, unicorn_const.UC_CTL_TLB_FLUSH)

    @property
    def pc(self) -> int:
        """Where the processor is: in a syscall, behind it."""
        API.uc_reg_read(self.engine, self.ids.pc, self._result_pointer)
        return self._result.value + self.pc_lags_bytes

    def read_call(self) -> list[int]:
        """Return the registers of the syscall that is being made: its number, then six arguments."""
        return self.call_registers.read(self.engine)

    def set_result(self, value: int) -> None:
        """Let the syscall that is being made return *value* (signed or unsigned 64-bit)."""
        self._result.value = value
        API.uc_reg_write(self.engine, self.ids.result, self._result_pointer)

    def set_tls(self, value: int) -> None:
        """Set the register that leads to the running thread's own storage."""
        self._result.value = value
        API.uc_reg_write(self.engine, self.ids.tls, self._result_pointer)

    def _find_fault_address(self, host_address: int) -> None:
        """Learn where the engine keeps the address of the last access that failed: provoke one, and look for it."""
        make = self.make
        ctypes.memmove(host_address + _PROBE_PAGE, make.load, len(make.load))
        self.allow(_PROBE_PAGE, 1 << _PAGE_BITS, READ | EXEC)
        context = Context(self)
        context.save()
        before = context.read_general()
        context.write_general([_PROBE_TARGET] * (len(before) - 1) + before[-1:])  # but for the flags
        context.load()
        error = LONG_API.uc_emu_start(self.engine, _PROBE_PAGE, 0, 0, 0)
        context.write_general(before)
        context.load()
        context.free()
        self.forbid(_PROBE_PAGE, 1 << _PAGE_BITS)
        ctypes.memset(host_address + _PROBE_PAGE, 0, len(make.load))
        engine = self.engine.value or 0
        words = (ctypes.c_uint64 * (_ENGINE_BYTES // 8)).from_address(engine)
        found = [offset for offset, word in enumerate(words) if word == _PROBE_TARGET]
        if error == unicorn_const.UC_ERR_OK or len(found) != 1:
            raise EmulatorError(
                "this build of Unicorn does not tell which access failed; install version 2.1.4"
            )
        self._fault_address = ctypes.c_uint64.from_address(engine + 8 * found[0])

    def _leave_out_checks(self) -> HostCode | None:
        """See `exits`: return None if it cannot be done here."""
        check = getattr(API, "check_exit_request" + self.make.suffix, None)
        if check is None:
            return None
        offset = find_switch(address_of(check))
        engine = self.engine.value
        if offset is None or engine is None or ctypes.string_at(engine + offset, 1) != b"\0":
            return None
        self._without_checks = ctypes.c_ubyte.from_address(engine + offset)
        self._without_checks.value = 1
        return HostCode()

    def _hook(
        self,
        kind: int,
        function: Any,
        *more: ctypes.c_int,
        data: Any = None,
        within: tuple[int, int] = (1, 0),
    ) -> ctypes.c_size_t:
        """Install a hook; return Unicorn's name for it.

        within: its first and last address; everywhere, if the last one comes first.
        """
        handle = ctypes.c_size_t()
        error = LONG_API.uc_hook_add(
            self.engine,
            ctypes.byref(handle),
            kind,
            ctypes.c_void_p(function if isinstance(function, int) else address_of(function)),
            data,
            *map(ctypes.c_uint64, within),
            *more,
        )
        check(error, "install a hook")
        self._hooks.append(function)
        return handle

    def _add_hooks(self, budgeted: bool) -> None:
        code = self._host_code
        fill: Any = FILL_HOOK(self._fill_hook) if code is None else code.fill_hook(self._table_at)
        self._hook(unicorn_const.UC_HOOK_TLB_FILL, fill, data=ctypes.byref(self._refused))
        self._hook(unicorn_const.UC_HOOK_INTR, INTERRUPT_HOOK(self._interrupt_hook))
        if self.arch == "amd64":
            instruction = ctypes.c_int(x86_const.UC_X86_INS_SYSCALL)
            self._hook(unicorn_const.UC_HOOK_INSN, SYSCALL_HOOK(self._syscall_hook), instruction)
            if self._ticks is not None:
                instruction = ctypes.c_int(x86_const.UC_X86_INS_RDTSC)
                self._hook(unicorn_const.UC_HOOK_INSN, SKIP_HOOK(self._rdtsc_hook), instruction)
        if code is None:
            self._hook(
                unicorn_const.UC_HOOK_BLOCK, BLOCK_HOOK(self._block_hook), data=ctypes.byref(self._budget)
            )
        elif budgeted:
            stop = code.budget_hook(address_of(API.uc_emu_stop))
            self._hook(unicorn_const.UC_HOOK_BLOCK, stop, data=ctypes.byref(self._budget))

    def _block_hook(self, _engine: int, _pc: int, size: int, budget: Any) -> None:
        """Do at the start of each block what `exits` has machine code for."""
        budget[0] -= size
        if self._wants_stop or budget[0] < 0:
            self._wants_stop = False
            budget[0] = 0x7FFFFFFF
            API.uc_emu_stop(self.engine)

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
            if number in make.breakpoints:
                self._trap = Trap(TrapKind.BREAKPOINT, detail=number)
            elif number in make.arithmetic:
                self._trap = Trap(TrapKind.ARITHMETIC, detail=number)
            else:
                self._trap = Trap(TrapKind.OTHER, detail=number)
            API.uc_emu_stop(self.engine)

    def _fill_hook(self, _engine: int, address: int, access: int, page: Any, _data: int) -> bool:
        """Do for a page that is not cached what `exits` has machine code for."""
        index, wanted = address >> _PAGE_BITS, access - unicorn_const.UC_MEM_READ
        protection = self._table[index] if index < len(self._table) else 0
        if not protection >> wanted & 1:
            self._refused.value = wanted
            return False
        page[0].physical, page[0].protection = address, protection
        return True

    def _rdtsc_hook(self, _engine: int, _data: int) -> int:
        with self._failures:
            assert self._ticks is not None
            count = self._ticks()
            for register, half in (
                (x86_const.UC_X86_REG_RAX, count & 0xFFFFFFFF),
                (x86_const.UC_X86_REG_RDX, count >> 32 & 0xFFFFFFFF),
            ):
                self._result.value = half
                API.uc_reg_write(self.engine, register, self._result_pointer)
        return 1
