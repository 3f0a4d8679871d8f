"""The decoders' tables against the syscall table, and the names of constants against Go's."""

import errno
import re
import signal
from functools import cache

import pytest

from stepping.syscalls import SYSCALLS, Arch, Arg, ArgKind, Syscall
from stepping.syscalls.decode_buffers import find_buffer
from stepping.syscalls.decode_scalars import find_scalar
from stepping.syscalls.decode_special import SPECIAL_ARGUMENTS
from stepping.syscalls.errno_names import errno_name, errno_text
from stepping.syscalls.flags import find_names, set_names
from stepping.syscalls.requests import _ROWS, _parse, find_request, request_argument, request_is_bound
from stepping.syscalls.structs import Struct, struct_text
from tests.gofixtures import goroot

ARGUMENTS = [(row, arg) for row in SYSCALLS.values() for arg in row.args if arg.decoder]
NUMBERS = {ArgKind.INT, ArgKind.UINT, ArgKind.LONG, ArgKind.SIZE, ArgKind.FD}

#: Structs that the kernel lets grow, or whose size is that of the buffer.
OPEN_ENDED = {"open_how", "mount_attr", "clone_args", "sigset", "cpu_set"}


@pytest.mark.parametrize(("row", "arg"), ARGUMENTS, ids=lambda item: item.name)
def test_every_decoder_of_the_table_exists(row: Syscall, arg: Arg) -> None:
    if arg.decoder in SPECIAL_ARGUMENTS or arg.decoder in ("ignored", "environment"):
        return
    found = find_scalar(arg.decoder, 64) if arg.kind in NUMBERS else find_buffer(arg.decoder)
    assert found is not None


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_structs_have_the_sizes_that_the_table_says(arch: Arch) -> None:
    checked = 0
    for row, arg in ARGUMENTS:
        text = struct_text(arg.decoder, arch)
        if text is None or arg.length is None or arg.length.arg is not None or arg.decoder in OPEN_ENDED:
            continue
        size = Struct(text, arch, lambda name: lambda data, arch: data).size
        assert size == arg.length.of(arch=arch), (row.name, arg.name)
        checked += 1
    assert checked > 50


def test_every_decoder_of_a_request_exists() -> None:
    for (syscall, _), request in _parse(_ROWS).items():
        if request.decoder and request.decoder != "ignored":
            found = find_buffer(request.decoder) if request.sizes else find_scalar(request.decoder, 32)
            assert found is not None, (syscall, request)


def test_requests_that_say_their_size_agree_with_the_table() -> None:
    exceptions = {
        "FS_IOC_GETFLAGS", "FS_IOC_SETFLAGS", "FS_IOC_GETVERSION", "FS_IOC_SETVERSION",  # 4 bytes, not 8
        "FS_IOC_FIEMAP", "FIDEDUPERANGE", "FICLONE", "FIFREEZE", "FITHAW",
        "TUNSETIFF", "TUNSETPERSIST", "TUNSETOWNER", "TUNSETGROUP",
    }  # fmt: skip
    for (syscall, number), request in _parse(_ROWS).items():
        if syscall != "ioctl" or number < 1 << 29 or request.name in exceptions:
            continue
        size = number >> 16 & 0x3FFF
        reads, fills = number >> 30 & 1, number >> 31 & 1
        assert request.sizes == (size * reads, size * fills), request


@pytest.mark.parametrize(
    ("syscall", "request_number", "sizes", "bound"),
    [
        ("fcntl", 5, (32, 32), False),
        ("fcntl", 3, None, False),
        ("fcntl", 99999, None, False),
        ("ioctl", 0x5413, (0, 8), False),
        ("ioctl", 0xFFFFFFFF00005413, (0, 8), False),
        ("ioctl", 0x80086601, (0, 4), False),  # claims 8 bytes
        ("ioctl", 0x40049409, None, False),  # claims a pointer, takes a descriptor
        ("ioctl", 0xC020660B, None, True),  # followed by an array of any length
        ("ioctl", 0x80101299, (16, 16), False),  # unknown: _IOR of 16 bytes
        ("ioctl", 0x40101299, (16, 0), False),  # unknown: _IOW
        ("ioctl", 0x1299, None, True),  # unknown, says nothing
        ("futex", 0x189, (16, 0), False),
        ("futex", 0x81, None, False),
    ],
)
def test_request_argument(
    syscall: str, request_number: int, sizes: tuple[int, int] | None, bound: bool
) -> None:
    assert request_argument(syscall, request_number) == sizes
    assert request_is_bound(syscall, request_number) == bound


def test_futex_requests_are_found_under_their_flags() -> None:
    request = find_request("futex", 0x80 | 0x100 | 9)
    assert request is not None
    assert request.name == "FUTEX_WAIT_BITSET"


@cache
def go_constants(arch: Arch) -> dict[str, int]:
    folder = goroot() / "src/cmd/vendor/golang.org/x/sys/unix"
    text = "".join(
        (folder / f"{name}.go").read_text()
        for name in ("zerrors_linux", "ztypes_linux", f"zerrors_linux_{arch}", f"ztypes_linux_{arch}")
    )
    found = re.findall(r"^\t(\w+)\s+= (-?0x[0-9a-f]+|-?\d+)$", text, re.MULTILINE)
    return {name: int(value, 0) for name, value in found}


@pytest.mark.parametrize("name", set_names())
@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_constants_have_the_values_that_go_knows(name: str, arch: Arch) -> None:
    names = find_names(name, arch)
    assert names is not None
    go = go_constants(arch)
    ours = {constant: value for constant, value in names.names.items() if constant in go}
    ours.pop("O_LARGEFILE", None)  # what the kernel sets; C's is 0 where offsets have 64 bits anyway
    assert {n: v & 0xFFFFFFFF for n, v in ours.items()} == {n: go[n] & 0xFFFFFFFF for n in ours}


def test_most_constants_are_checked() -> None:
    go = go_constants("amd64")
    constants = [n for name in set_names() for n in (find_names(name) or pytest.fail(name)).names]
    assert sum(constant in go for constant in constants) > 600


def test_requests_have_the_values_that_go_knows() -> None:
    go = go_constants("amd64")
    known = {
        r.name: number for (_, number), r in _parse(_ROWS).items() if r.name in go and r.name != "F_GETLK"
    }
    assert known == {name: go[name] for name in known}
    assert len(known) > 100


def test_signals_and_errors_have_the_names_that_python_knows() -> None:
    names = find_names("signal")
    assert names is not None
    for number in signal.Signals:
        if number < 32:
            assert names.name_of(number) == number.name
    for code, name in errno.errorcode.items():
        assert getattr(errno, errno_name(code), code) == code
        assert errno_name(code) != str(code), name
        assert errno_text(code)


def test_unknown_errors_are_numbers() -> None:
    assert errno_name(4000) == "4000"
    assert errno_text(1 << 80).startswith("Unknown error")
