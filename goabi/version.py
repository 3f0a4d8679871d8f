r"""Go versions, and the build information that the linker puts into every binary.

The blob is not trusted: lengths are checked, and what does not parse raises. Format since Go 1.18:

    buildinfo = "\xff Go buildinf:" ptrsize:u8 flags:u8(bit 1 set: strings inline) pad[16] version modinfo
    version   = varint-length bytes            e.g. "go1.27.3" or "go1.27.3 X:nodwarf5"
    modinfo   = varint-length bytes            16 bytes of sentinel, lines, 16 bytes of sentinel; or empty
    lines     = { ("path" | "mod" | "dep" | "=>" | "build") TAB fields NEWLINE }

Source: debug/buildinfo/buildinfo.go, runtime/debug/mod.go (Go 1.27).
"""

import re
from dataclasses import dataclass, field
from functools import total_ordering
from typing import NamedTuple

from goabi.errors import BuildInfoError, GoVersionError, MemoryFaultError
from goabi.memory import MemoryReader

BUILDINFO_MAGIC = b"\xff Go buildinf:"
BUILDINFO_ALIGN = 16
_HEADER_BYTES = 32
_FLAG_INLINE = 2
_SENTINEL_BYTES = 16
_MAX_STRING_BYTES = 1 << 24
_VERSION = re.compile(r"go(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4})|((?:rc|beta)\d{1,4}))?(?![\w.])")
_DEVEL = re.compile(r"devel go(\d{1,4})\.(\d{1,4})-")

OLDEST_SUPPORTED = (1, 21)
NEWEST_SUPPORTED = (1, 27)


@total_ordering
@dataclass(frozen=True, slots=True)
class GoVersion:
    """A Go release, ordered as releases are: 1.27rc1 < 1.27.0 < 1.27.3. `text` is as the binary says it."""

    major: int
    minor: int
    patch: int = 0
    prerelease: str = ""
    text: str = field(default="", compare=False)

    @classmethod
    def parse(cls, text: str) -> "GoVersion":
        """The version in a string such as "go1.27.3", "go1.27rc1 X:…" or "devel go1.28-abc123".

        Raises: `GoVersionError`.
        """
        match = _VERSION.match(text)
        if match:
            major, minor, patch, prerelease = match.groups()
            return cls(int(major), int(minor), int(patch or 0), prerelease or "", text)
        match = _DEVEL.match(text)
        if match:
            # A development tree comes before every prerelease of the version it becomes.
            return cls(int(match[1]), int(match[2]), 0, "devel", text)
        raise GoVersionError(f"not a Go version: {text[:60]!r}")

    @property
    def release(self) -> tuple[int, int]:
        """`(major, minor)`: what decides about data structures."""
        return (self.major, self.minor)

    @property
    def is_supported(self) -> bool:
        """Whether this package was made for, and tested on, this version."""
        return OLDEST_SUPPORTED <= self.release <= NEWEST_SUPPORTED

    def _key(self) -> tuple[int, int, int, int, str, int]:
        stage = {"": 3, "r": 2, "b": 1, "d": 0}[self.prerelease[:1]]
        number = re.search(r"\d+$", self.prerelease)
        return (
            self.major,
            self.minor,
            self.patch,
            stage,
            self.prerelease[:1],
            int(number[0]) if number else 0,
        )

    def __lt__(self, other: "GoVersion") -> bool:
        return self._key() < other._key()

    def __str__(self) -> str:
        return self.text or f"go{self.major}.{self.minor}.{self.patch}"


class Module(NamedTuple):
    """A module: import path, version, checksum, and what replaced it."""

    path: str
    version: str
    sum: str = ""
    replace: "Module | None" = None


class BuildInfo(NamedTuple):
    """How a binary was built: `path` of the main package, its module, all dependencies, and the settings."""

    version: GoVersion
    path: str = ""
    main: Module | None = None
    deps: tuple[Module, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)


def read_build_info(reader: MemoryReader, addr: int) -> BuildInfo:
    """The build information whose magic is at `addr`. Raises: `BuildInfoError`, `GoVersionError`."""
    try:
        header = reader.read(addr, _HEADER_BYTES)
        if header[: len(BUILDINFO_MAGIC)] != BUILDINFO_MAGIC:
            raise BuildInfoError(f"no Go build information at {addr:#x}")
        if not header[15] & _FLAG_INLINE:
            raise BuildInfoError("built by a Go older than 1.18, whose build information is not supported")
        version, position = _read_string(reader, addr + _HEADER_BYTES)
        modinfo, _ = _read_string(reader, position)
    except MemoryFaultError as error:
        raise BuildInfoError(f"build information at {addr:#x} is cut short") from error
    try:
        parsed = GoVersion.parse(version.decode())
        lines = modinfo[_SENTINEL_BYTES:-_SENTINEL_BYTES].decode()
    except UnicodeDecodeError as error:
        raise BuildInfoError("build information is not UTF-8 text") from error
    return decode_module_info(parsed, lines)


def _read_string(reader: MemoryReader, addr: int) -> tuple[bytes, int]:
    length = shift = 0
    while True:
        byte = reader.read(addr, 1)[0]
        addr += 1
        length |= (byte & 0x7F) << shift
        if not byte & 0x80:
            break
        shift += 7
        if shift > 28:
            raise BuildInfoError("build information holds an endless length")
    if length > _MAX_STRING_BYTES:
        raise BuildInfoError(f"build information holds a string of {length} bytes")
    return reader.read(addr, length), addr + length


def decode_module_info(version: GoVersion, text: str) -> BuildInfo:
    """The lines that `go version -m` prints, parsed. Raises: `BuildInfoError` naming the line."""
    path = ""
    main: Module | None = None
    deps: list[Module] = []
    settings: dict[str, str] = {}
    last = ""
    for number, line in enumerate(text.split("\n"), 1):
        kind, _, rest = line.partition("\t")
        if kind == "path":
            path = rest
        elif kind == "mod":
            main, last = _decode_module(rest, number), "mod"
        elif kind == "dep":
            deps.append(_decode_module(rest, number))
            last = "dep"
        elif kind == "=>":
            replacement = _decode_module(rest, number)
            if last == "mod" and main is not None:
                main = Module(main.path, main.version, main.sum, replacement)
            elif last == "dep":
                old = deps[-1]
                deps[-1] = Module(old.path, old.version, old.sum, replacement)
            else:
                raise BuildInfoError(f"build information, line {number}: a replacement of no module")
            last = ""
        elif kind == "build":
            key, value = _decode_setting(rest, number)
            settings[key] = value
    return BuildInfo(version, path, main, tuple(deps), settings)


def _decode_module(text: str, number: int) -> Module:
    fields = text.split("\t")
    if len(fields) not in (2, 3):
        raise BuildInfoError(f"build information, line {number}: {len(fields)} fields for a module")
    return Module(fields[0], fields[1], fields[2] if len(fields) == 3 else "")


def _decode_setting(text: str, number: int) -> tuple[str, str]:
    quoted = re.match(r'("(?:[^"\\]|\\.)*"|`[^`]*`)=(.*)', text, re.DOTALL)
    key, value = (quoted[1], quoted[2]) if quoted else text.partition("=")[::2]
    if not key or "=" not in text:
        raise BuildInfoError(f"build information, line {number}: a setting without a name or value")
    return _unquote(key), _unquote(value)


def _unquote(text: str) -> str:
    """Go's quoted string; escapes that JSON lacks (rare) leave the text as it is."""
    if len(text) >= 2 and text[0] == text[-1] == "`":
        return text[1:-1]
    if len(text) >= 2 and text[0] == text[-1] == '"':
        import json  # here, for it is rare and importing it is slow

        try:
            return str(json.loads(text))
        except json.JSONDecodeError:
            return text
    return text
