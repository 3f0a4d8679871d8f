"""The memory of a running process, through /proc/PID/mem.

An open file of it belongs to the address space, not to the number PID: it can never reach another process that
later gets the number, and after an exec it is dead (every access fails). Reads and writes work while the process
runs; what is read may change at once.

Source: proc(5).
"""

import os

from stepping.errors import MemoryFaultError

_PAGE = 4096
_STRING_CHUNK = 256


class TraceeMemory:
    """Reads and writes the memory of process (or thread) *pid*; keeps one descriptor until `close`.

    base: where address 0 is in the process.
    """

    base = 0

    def __init__(self, pid: int) -> None:
        """Open it.

        Raises:
            OSError: the process is gone or may not be traced by this one.
        """
        self._fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)

    def read(self, address: int, size: int) -> bytes:
        """Return *size* bytes at *address*.

        Raises:
            MemoryFaultError: not all of them can be read.
        """
        try:
            data = os.pread(self._fd, size, address)
        except (OSError, OverflowError) as error:
            raise MemoryFaultError(address) from error
        if len(data) != size:
            return data + self._read_rest(address + len(data), size - len(data))
        return data

    def read_string(self, address: int, limit: int) -> bytes:
        """Return the bytes at *address* up to the first NUL, without it.

        Raises:
            MemoryFaultError: memory ends before a NUL.
            ValueError: there is no NUL within *limit* bytes.
        """
        data = b""
        while len(data) < limit:
            at = address + len(data)
            # Not beyond the page at once: the string may end just before memory does.
            chunk = self.read(at, min(_STRING_CHUNK, _PAGE - at % _PAGE))
            end = chunk.find(0)
            if end >= 0:
                return data + chunk[:end]
            data += chunk
        raise ValueError(f"no end of string within {limit} bytes")

    def write(self, address: int, data: bytes) -> None:
        """Put *data* at *address*.

        Raises:
            MemoryFaultError: not all of it can be written.
        """
        done = 0
        try:
            while done < len(data):
                count = os.pwrite(self._fd, data[done:] if done else data, address + done)
                if count == 0:
                    raise MemoryFaultError(address + done)
                done += count
        except (OSError, OverflowError) as error:
            raise MemoryFaultError(address + done) from error

    def close(self) -> None:
        """Give up the descriptor."""
        os.close(self._fd)

    def _read_rest(self, address: int, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = os.pread(self._fd, size, address)
            except OSError as error:
                raise MemoryFaultError(address) from error
            if not part:
                raise MemoryFaultError(address)
            parts.append(part)
            address += len(part)
            size -= len(part)
        return b"".join(parts)
