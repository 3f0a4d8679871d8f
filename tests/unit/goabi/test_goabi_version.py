"""Go versions and their order; build information byte by byte."""

import pytest

from goabi.errors import BuildInfoError, GoVersionError
from goabi.memory import BytesMemory
from goabi.version import BUILDINFO_MAGIC, GoVersion, Module, decode_module_info, read_build_info

VERSION = GoVersion.parse("go1.27.3")


def test_order_is_that_of_the_releases() -> None:
    texts = [
        *("go1.9", "go1.20.14", "go1.21rc2", "go1.21rc10", "go1.21", "go1.21.1", "go1.26.9"),
        *("devel go1.27-abc123 2026-01-01", "go1.27beta1", "go1.27rc1", "go1.27.0", "go1.27.3", "go2.0"),
    ]
    versions = [GoVersion.parse(text) for text in texts]
    assert versions == sorted(versions[::-1])
    assert versions[0] < versions[1]
    assert GoVersion.parse("go1.21") == GoVersion.parse("go1.21.0")
    assert str(versions[7]).startswith("devel")


def test_experiments_and_suffixes_are_kept_but_do_not_count() -> None:
    version = GoVersion.parse("go1.27.3 X:nodwarf5,simd")
    assert version == VERSION
    assert version.text.endswith("X:nodwarf5,simd")
    assert version.release == (1, 27)


@pytest.mark.parametrize("text", ["", "1.27", "gogo", "go1", "go1.x", "go1.27.3beta", "go99999.1"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(GoVersionError, match="not a Go version"):
        GoVersion.parse(text)


@pytest.mark.parametrize(
    ("text", "supported"),
    [("go1.20.14", False), ("go1.21rc1", True), ("go1.21.0", True), ("go1.27.9", True), ("go1.28.0", False)],
)
def test_supported_versions(text: str, supported: bool) -> None:
    assert GoVersion.parse(text).is_supported is supported


def test_lines() -> None:
    info = decode_module_info(
        VERSION,
        "path\texample.com/cmd\nmod\texample.com\tv1.2.3\th1:abc=\n"
        "dep\tgolang.org/x/a\tv0.1.0\n=>\t./local\tv0.0.0\t\ndep\tb\tv2.0.0\th1:x=\n"
        'build\t-compiler=gc\nbuild\t-ldflags="-s -w -X \\"a=b\\""\nbuild\tEMPTY=\nbuild\t`a=b`=c\n',
    )
    assert info.path == "example.com/cmd"
    assert info.main == Module("example.com", "v1.2.3", "h1:abc=")
    assert info.deps == (
        Module("golang.org/x/a", "v0.1.0", "", Module("./local", "v0.0.0")),
        Module("b", "v2.0.0", "h1:x="),
    )
    assert info.settings == {"-compiler": "gc", "-ldflags": '-s -w -X "a=b"', "EMPTY": "", "a=b": "c"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mod\tonly", "line 1"),
        ("path\tx\ndep\ta\tb\tc\td", "line 2"),
        ("=>\ta\tb\tc", "replacement of no module"),
        ("build\tnothing", "without a name"),
        ("build\t=value", "without a name"),
    ],
)
def test_bad_lines_are_named(text: str, words: str) -> None:
    with pytest.raises(BuildInfoError, match=words):
        decode_module_info(VERSION, text)


def blob(version: bytes, modinfo: bytes, flags: int = 2) -> bytes:
    def varint(value: int) -> bytes:
        out = b""
        while value >= 0x80:
            out += bytes([value & 0x7F | 0x80])
            value >>= 7
        return out + bytes([value])

    head = (BUILDINFO_MAGIC + bytes([8, flags])).ljust(32, b"\0")
    return head + varint(len(version)) + version + varint(len(modinfo)) + modinfo


def test_blob() -> None:
    modinfo = bytes(16) + b"path\tcommand-line-arguments\n" * 9 + bytes(16)
    info = read_build_info(BytesMemory([(0x1000, blob(b"go1.24.1", modinfo))]), 0x1000)
    assert (info.version.release, info.path) == ((1, 24), "command-line-arguments")
    assert read_build_info(BytesMemory([(0, blob(b"go1.24.1", b""))]), 0).settings == {}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"x" * 64, "no Go build information"),
        (blob(b"go1.17", b"", flags=0), "older than 1.18"),
        (blob(b"go1.24.1", b"x" * 40)[:-1], "cut short"),
        (BUILDINFO_MAGIC + b"\x08\x02" + bytes(16) + b"\xff" * 9, "endless"),
        (BUILDINFO_MAGIC + b"\x08\x02" + bytes(16) + b"\xff\xff\xff\x7f", "bytes"),
        (blob(b"\xff\xfe", b""), "UTF-8"),
    ],
)
def test_bad_blobs(data: bytes, words: str) -> None:
    with pytest.raises(BuildInfoError, match=words):
        read_build_info(BytesMemory([(0, data)]), 0)
