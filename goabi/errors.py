"""The errors of this package: one root, facts as attributes, one line that a user can act on.

An operating-system error of opening a file (`OSError`) is not translated: its own text is the clear one.
"""


class GoAbiError(Exception):
    """The root of all that this package raises about the binaries and memory it reads."""


class ElfError(GoAbiError):
    """A file that cannot be used as an ELF executable. `path` is the file's name as given."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class NotElfError(ElfError):
    """The file is not ELF at all: a script, a text, an empty file, a directory."""


class TruncatedElfError(ElfError):
    """The file is ELF, but shorter than its own headers say, or its headers contradict each other."""


class WrongArchError(ElfError):
    """The file is ELF for a machine that is neither amd64 nor arm64 (or 32-bit, or big-endian)."""


class WrongElfTypeError(ElfError):
    """The file is ELF but of another type than asked for, say an object file."""


class MemoryFaultError(GoAbiError):
    """Memory that cannot be read or written. `addr` is the first address that failed, as far as is known."""

    def __init__(self, addr: int, size_bytes: int, what: str = "not mapped") -> None:
        super().__init__(f"cannot access {size_bytes} bytes of memory at {addr:#x}: {what}")
        self.addr = addr
        self.size_bytes = size_bytes


class NotGoError(GoAbiError):
    """The program was not built by Go (or by a Go before 1.18): nothing here applies to it."""


class GoVersionError(GoAbiError):
    """A Go version that cannot be parsed, or that this package has no knowledge of."""


class BuildInfoError(GoAbiError):
    """The build information inside the binary is damaged."""


class PclntabError(GoAbiError):
    """The table of functions and lines (pclntab) is damaged or of an unknown format."""


class ModuledataError(GoAbiError):
    """The linker's moduledata record cannot be found or contradicts itself."""


class DwarfError(GoAbiError):
    """The debugging information is damaged, or lacks what was asked for."""


class LayoutError(GoAbiError):
    """A runtime structure or field whose place in memory is not known for this binary."""


class RuntimeDataError(GoAbiError):
    """Go's runtime structures in memory contradict themselves (or are being changed while read)."""


class ValueDecodeError(GoAbiError):
    """A value of the program cannot be decoded as its type says."""


class CoreError(GoAbiError):
    """A core dump that is damaged or lacks what was asked for."""
