"""Registers of an emulated processor: a few at once, or all of a thread that does not run.

Everything goes through Unicorn's C functions, of `stepping.unicorn_api`.

Thread rules: as for `stepping.emulator.Processor`.
"""

import ctypes
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepping.emulator import Processor


class Registers:
    """Some registers, moved together. Their values are unsigned 64-bit numbers (`size` 8) or raw bytes."""

    def __init__(self, api: Any, ids: list[int], size: int = 8) -> None:
        self._api = api
        self.count = len(ids)
        self._ids = (ctypes.c_int * self.count)(*ids)
        self._size = size
        self._buffer = ctypes.create_string_buffer(size * self.count)
        base = ctypes.addressof(self._buffer)
        self._pointers = (ctypes.c_void_p * self.count)(*(base + size * i for i in range(self.count)))
        self._numbers = (ctypes.c_uint64 * (size * self.count // 8)).from_buffer(self._buffer)

    def read(self, engine: ctypes.c_void_p) -> list[int]:
        """Return the processor's."""
        self._api.uc_reg_read_batch(engine, self._ids, self._pointers, self.count)
        return list(self._numbers)

    def write(self, engine: ctypes.c_void_p, values: list[int]) -> None:
        """Set the processor's."""
        self._numbers[:] = values  # type: ignore[assignment]
        self._api.uc_reg_write_batch(engine, self._ids, self._pointers, self.count)

    def read_bytes(self, engine: ctypes.c_void_p) -> bytes:
        """Return the processor's, one after the other."""
        self._api.uc_reg_read_batch(engine, self._ids, self._pointers, self.count)
        return self._buffer.raw

    def write_bytes(self, engine: ctypes.c_void_p, values: bytes) -> None:
        """Set the processor's, one after the other."""
        self._buffer.raw = values
        self._api.uc_reg_write_batch(engine, self._ids, self._pointers, self.count)

    def read_context(self, context: ctypes.c_void_p) -> list[int]:
        """Return those of *context*."""
        self._api.uc_context_reg_read_batch(context, self._ids, self._pointers, self.count)
        return list(self._numbers)

    def read_context_bytes(self, context: ctypes.c_void_p) -> bytes:
        """Return those of *context*, one after the other."""
        self._api.uc_context_reg_read_batch(context, self._ids, self._pointers, self.count)
        return self._buffer.raw

    def write_context(self, context: ctypes.c_void_p, values: list[int]) -> None:
        """Set those of *context*."""
        for index, value in enumerate(values):
            self._numbers[index] = value
        self._api.uc_context_reg_write_batch(context, self._ids, self._pointers, self.count)

    def write_context_bytes(self, context: ctypes.c_void_p, values: bytes) -> None:
        """Set those of *context*, one after the other."""
        self._buffer.raw = values
        self._api.uc_context_reg_write_batch(context, self._ids, self._pointers, self.count)


class Context:
    """One set of all registers, outside the processor: a thread that does not run.

    Valid as long as its `Processor` is.
    """

    __slots__ = ("_make", "_processor", "handle")

    def __init__(self, processor: "Processor") -> None:
        self.handle = ctypes.c_void_p()
        self._processor = processor
        processor.allocate(self.handle)

    def free(self) -> None:
        """Give up the memory; the context must not be used any more."""
        self._processor.api.uc_context_free(self.handle)

    def save(self) -> None:
        """Take over what the processor holds. In a syscall, the program counter is that after it."""
        processor = self._processor
        self._processor.api.uc_context_save(processor.engine, self.handle)
        if processor.pc_lags_bytes:
            self.pc += processor.pc_lags_bytes

    def load(self) -> None:
        """Put this into the processor. In a syscall, that one goes on as this thread then."""
        processor = self._processor
        if processor.pc_lags_bytes:
            pc = self.pc
            self.pc = pc - processor.pc_lags_bytes
            self._processor.api.uc_context_restore(processor.engine, self.handle)
            self.pc = pc
        else:
            self._processor.api.uc_context_restore(processor.engine, self.handle)

    def copy_from(self, other: "Context") -> None:
        """Become equal to *other*."""
        size = self._processor.api.uc_context_size(self._processor.engine)
        ctypes.memmove(self.handle, other.handle, size)

    def _get(self, register: int) -> int:
        number = ctypes.c_uint64(0)
        self._processor.api.uc_context_reg_read(self.handle, register, ctypes.byref(number))
        return number.value

    def _set(self, register: int, value: int) -> None:
        self._processor.api.uc_context_reg_write(self.handle, register, ctypes.byref(ctypes.c_uint64(value)))

    @property
    def pc(self) -> int:
        """The address of the next instruction."""
        return self._get(self._processor.ids.pc)

    @pc.setter
    def pc(self, value: int) -> None:
        self._set(self._processor.ids.pc, value)

    @property
    def sp(self) -> int:
        """The stack pointer."""
        return self._get(self._processor.ids.sp)

    @sp.setter
    def sp(self, value: int) -> None:
        self._set(self._processor.ids.sp, value)

    def set_tls(self, value: int) -> None:
        """Set the register that leads to a thread's own storage."""
        self._set(self._processor.ids.tls, value)

    def get_tls(self) -> int:
        """Return the register that leads to a thread's own storage."""
        return self._get(self._processor.ids.tls)

    def set_result(self, value: int) -> None:
        """Set what a syscall returns (signed or unsigned 64-bit)."""
        self._set(self._processor.ids.result, value & 0xFFFFFFFFFFFFFFFF)

    def read_call(self) -> list[int]:
        """Return the registers of a syscall: its number, then six arguments."""
        return self._processor.call_registers.read_context(self.handle)

    def read_general(self) -> list[int]:
        """Return all general registers, in the order of the architecture's `struct sigcontext`.

        amd64: r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, flags; arm64: x0 to x30, sp, pc, flags (only
        N, Z, C and V).
        """
        return self._processor.general_registers.read_context(self.handle)

    def write_general(self, values: list[int]) -> None:
        """Set what `read_general` returns."""
        self._processor.general_registers.write_context(self.handle, values)

    def read_vectors(self) -> bytes:
        """Return the vector registers, 16 bytes each: 16 on amd64, 32 on arm64."""
        return self._processor.vector_registers.read_context_bytes(self.handle)

    def write_vectors(self, values: bytes) -> None:
        """Set what `read_vectors` returns."""
        self._processor.vector_registers.write_context_bytes(self.handle, values)
