"""What differs between architectures in how Linux treats a thread, as data and two functions each."""

from dataclasses import dataclass
from typing import Protocol

from stepping.emulation.address_space import AddressSpace
from stepping.emulation.registers import Context
from stepping.syscalls.model import Arch


class SignalFrame(Protocol):
    """How a signal's frame lies on the stack of one architecture."""

    def push(
        self,
        context: Context,
        space: AddressSpace,
        top: int,
        info: bytes,
        mask: int,
        stack: tuple[int, int, int],
        restorer: int,
        fault_address: int,
    ) -> int:
        """Write the frame of a signal below *top*, and set sp, the return address and the arguments.

        info: the siginfo, 128 bytes; mask: the blocked signals to be restored; stack: (sp, flags, size) of the
        alternate stack, as sigaltstack(2) tells it; restorer: where the handler returns to.

        Returns:
            The new stack pointer.

        Raises:
            MemoryFaultError: there is no stack.
        """

    def pop(self, context: Context, space: AddressSpace) -> int:
        """Restore what `push` saved, from the frame at the stack pointer; return the mask.

        Raises:
            MemoryFaultError: there is no frame.
        """


@dataclass(frozen=True, slots=True)
class Abi:
    """The facts of one architecture.

    hwcap: AT_HWCAP; platform: AT_PLATFORM, which is also uname's machine; syscall_bytes: the length of the
    instruction; sigreturn: code that ends a signal handler whose program brings none itself; tls_argument
    and child_tid_argument: of clone(2), by index.
    """

    arch: Arch
    platform: bytes
    hwcap: int
    syscall_bytes: int
    sigreturn: bytes
    tls_argument: int
    child_tid_argument: int
    frame: SignalFrame


def abi_of(arch: Arch) -> Abi:
    """Return the facts of *arch*."""
    if arch == "amd64":
        from stepping.emulation.abi_amd64 import AMD64_ABI

        return AMD64_ABI
    from stepping.emulation.abi_arm64 import ARM64_ABI

    return ARM64_ABI
