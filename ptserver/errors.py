"""The errors of this package. Each message is one line that a user can act on."""

from typing import Self


class PtServerError(Exception):
    """Root of this package's errors. `exit_status` is what the command line exits with."""

    exit_status = 70


class AddressError(PtServerError):
    """An address of a server does not follow `HOST:PORT`, `[HOST]:PORT` or `unix:PATH`."""

    exit_status = 64


class ConnectError(PtServerError):
    """A server does not answer at its address."""

    exit_status = 69


class UntrustedError(ConnectError):
    """The peer cannot prove who it is, or we cannot; or it would have to be trusted unseen."""

    exit_status = 77


class RefusedError(PtServerError):
    """The server answered, and refuses the session. `code` is `Refused.code`."""

    exit_status = 77

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ProtocolError(PtServerError):
    """The peer sent what the protocol does not allow: a malformed, oversize or unexpected message."""

    exit_status = 76


class ConnectionLostError(PtServerError):
    """The connection ended before the session did."""

    exit_status = 69


class ServerLoadError(PtServerError):
    """`--server NAME` or `module:Class` names nothing that can serve."""

    exit_status = 64


class LaunchError(PtServerError):
    """The program cannot be started: not found, not executable, not an ELF file for this machine."""

    exit_status = 126


class ProgramNotFoundError(LaunchError):
    """There is no such program."""

    exit_status = 127


class TokenError(PtServerError):
    """The file of a token cannot be read."""

    exit_status = 66


class KeysError(PtServerError):
    """A folder of keys for TLS cannot be used, or not be made."""

    exit_status = 66


class ConfinementError(PtServerError):
    """An option that confines sessions is wrong, or does not go with another."""

    exit_status = 64


class RulesError(PtServerError):
    """A rule of what is local and what is remote is wrong, or its file cannot be read."""

    exit_status = 64


class CannotConfineError(PtServerError):
    """Sessions cannot be confined as they should be, on this machine or by this user."""

    exit_status = 77


class ServerMistakeError(PtServerError):
    """A server's own code raised an exception, or returned what is no outcome."""

    @classmethod
    def of(cls, server: type, method: str, error: Exception) -> Self:
        """Return the error for what *method* of the class *server* raised."""
        return cls(f"{server.__name__}.{method} raised {type(error).__name__}: {error}")


class UnsupportedInstructionError(PtServerError):
    """An instruction can be executed on remote memory neither by the emulator nor by the processor.

    pid: the program, which, executed natively, is left stopped as it was before that instruction.
    """

    exit_status = 71

    def __init__(self, pid: int, text: str) -> None:
        super().__init__(text)
        self.pid = pid
