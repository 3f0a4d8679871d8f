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
