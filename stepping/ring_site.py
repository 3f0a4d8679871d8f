"""Finds the place in a Go program where the ring's routine goes: Syscall6, and what the routine must know of g.

Not trusted: the program's file. Its function table may say anything, so the code is compared with what Go's
assembler makes of Syscall6 in every version from 1.21 to 1.27, to the byte.

Source: internal/runtime/syscall/linux/asm_linux_amd64.s (Go 1.27); runtime/runtime2.go.
"""

from typing import NamedTuple

from goabi.binary import GoBinary
from goabi.errors import GoAbiError, MemoryFaultError
from stepping.errors import SteppingError, TraceeGoneError
from stepping.maps import read_maps
from stepping.syscall6 import AFTER_OFFSET, CALL_OFFSET, SIGNATURE
from stepping.tracee_memory import TraceeMemory

AFTER_BYTES = 6

_CGO = "it uses cgo, and the ring sees no calls made by C code"
_LIBC_NAMES = ("libc.so", "libc-", "ld-musl")


class NoRingError(SteppingError):
    """The ring cannot be used for this program; `reason` says why, in a few words for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"no ring for this program: {reason}")
        self.reason = reason


class RingSite(NamedTuple):
    """Where the routine goes. Addresses are the running program's.

    entry: Syscall6; goid_offset, m_offset: in struct g; procid_offset: of the thread id in struct m;
    load_bias: what was added to link-time addresses; go_version: such as ``go1.27.3``; has_c_code: it uses cgo, so it
    may make calls that the ring does not see.
    """

    entry: int
    goid_offset: int
    m_offset: int
    procid_offset: int
    load_bias: int
    go_version: str
    has_c_code: bool = False

    @property
    def call(self) -> int:
        """The address of the syscall instruction."""
        return self.entry + CALL_OFFSET

    @property
    def after(self) -> int:
        """The address of the compare after it."""
        return self.entry + AFTER_OFFSET


def find_site(pid: int, *, with_c_code: bool = False) -> RingSite:
    """Return where the routine goes in process *pid*, which runs or is stopped at its exec.

    with_c_code: whether it will do though the ring does not see all calls: those that C code makes.

    Raises:
        NoRingError: it is no Go program for amd64 of a supported version, or has C code.
        TraceeGoneError: there is no such process.
    """
    try:
        with GoBinary.open(f"/proc/{pid}/exe", prefer_table=True) as binary:
            return _find_site(pid, binary, with_c_code=with_c_code)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TraceeGoneError(pid) from error
    except PermissionError as error:
        raise NoRingError(f"its file cannot be read ({error.strerror})") from error
    except GoAbiError as error:
        raise NoRingError(str(error).removeprefix(f"/proc/{pid}/exe: ")) from error


def check_file(path: str, *, with_c_code: bool = False) -> None:
    """Look whether the program in a file is one for the ring, before it is started. with_c_code: as `find_site`.

    Raises:
        NoRingError: it is not; the message says why.
    """
    try:
        with GoBinary.open(path, prefer_table=True) as binary:
            _check_binary(binary, with_c_code=with_c_code)
    except OSError as error:
        raise NoRingError(f"its file cannot be read ({error.strerror})") from error
    except GoAbiError as error:
        raise NoRingError(str(error)) from error


def read_entry(memory: TraceeMemory, site: RingSite) -> bytes:
    """Return what stands at Syscall6 now: `SIGNATURE`, or the same with patches."""
    return memory.read(site.entry, len(SIGNATURE))


def _find_site(pid: int, binary: GoBinary, *, with_c_code: bool) -> RingSite:
    entry = _check_binary(binary, with_c_code=with_c_code)
    has_c_code = _uses_cgo(binary) or any(name in vma.path for vma in read_maps(pid) for name in _LIBC_NAMES)
    if has_c_code and not with_c_code:
        raise NoRingError(_CGO)
    layouts = binary.layouts
    bias = _load_bias(pid, binary)
    return RingSite(
        entry=entry + bias,
        goid_offset=layouts["g"].offset("goid"),
        m_offset=layouts["g"].offset("m"),
        procid_offset=layouts["m"].offset("procid"),
        load_bias=bias,
        go_version=str(binary.version),
        has_c_code=has_c_code,
    )


def _uses_cgo(binary: GoBinary) -> bool:
    return binary.functions.find_function_by_name("_cgo_topofstack") is not None


def _check_binary(binary: GoBinary, *, with_c_code: bool) -> int:
    """Return the link-time address of Syscall6."""
    if binary.elf.header.arch != "amd64":
        raise NoRingError(f"it is built for {binary.elf.header.arch}; the ring is for amd64")
    if _uses_cgo(binary) and not with_c_code:
        raise NoRingError(_CGO)
    binary.check_supported()
    function = binary.syscall6
    if function is None:
        raise NoRingError("it has no function Syscall6")
    try:
        code = binary.elf.read(function.entry, len(SIGNATURE))
    except MemoryFaultError as error:
        raise NoRingError("its Syscall6 cannot be read") from error
    if code != SIGNATURE:
        raise NoRingError(f"its Syscall6 is not the one that {binary.version} is known to have")
    return function.entry


def _load_bias(pid: int, binary: GoBinary) -> int:
    if not binary.elf.header.is_pie:
        return 0
    # The kernel says where it starts the program: AT_ENTRY.
    try:
        with open(f"/proc/{pid}/auxv", "rb") as file:
            raw = file.read()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TraceeGoneError(pid) from error
    words = memoryview(raw).cast("Q")
    for kind, value in zip(words[::2], words[1::2], strict=False):
        if kind == 9:
            return binary.elf.load_bias(value)
    raise NoRingError("the kernel does not say where it was loaded")
