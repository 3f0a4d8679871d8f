"""What arm64 programs and an amd64 kernel see differently: flags of open, struct stat, epoll events, uname."""

import ctypes
import os
import struct

import pytest

from stepping.emulation.arch_layouts import Translation, translate_open_flags
from stepping.syscalls import SYSCALLS

ARM_ON_AMD = Translation("arm64", "amd64")
NO_ARGS = (0, 0, 0, 0, 0, 0)


def test_nothing_is_translated_between_equals() -> None:
    assert not Translation("amd64", "amd64").is_needed(SYSCALLS["newfstatat"])
    assert ARM_ON_AMD.is_needed(SYSCALLS["newfstatat"])
    assert not ARM_ON_AMD.is_needed(SYSCALLS["read"])


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="os has this machine's numbers")
@pytest.mark.parametrize(
    ("name", "arm64"),
    [("O_DIRECTORY", 0x4000), ("O_NOFOLLOW", 0x8000), ("O_DIRECT", 0x10000), ("O_CLOEXEC", 0x80000)],
)
def test_flags_of_open_are_this_machine_s(name: str, arm64: int) -> None:
    assert translate_open_flags(arm64 | os.O_RDWR, True) == getattr(os, name) | os.O_RDWR
    assert translate_open_flags(getattr(os, name) | os.O_RDWR, False) == arm64 | os.O_RDWR


def test_open_flags_go_both_ways_in_calls() -> None:
    args, _, _ = ARM_ON_AMD.to_host(SYSCALLS["openat"], (0, 0, 0x4000, 0, 0, 0), {}, {})
    assert args[2] == 0o200000
    args, _, _ = ARM_ON_AMD.to_host(SYSCALLS["fcntl"], (3, 4, 0x10000, 0, 0, 0), {}, {})  # F_SETFL
    assert args[2] == 0o40000
    value, _ = ARM_ON_AMD.to_guest(SYSCALLS["fcntl"], (3, 3, 0, 0, 0, 0), 0o40002, {})  # F_GETFL
    assert value == 0x10002


def test_stat_has_each_field_where_arm64_expects_it() -> None:
    row = SYSCALLS["newfstatat"]
    args, _, outs = ARM_ON_AMD.to_host(row, NO_ARGS, {}, {2: 128})
    assert outs == {2: 144}
    amd64 = struct.pack("<QQQIII4xQqqq6q24x", 1, 2, 3, 0o100644, 5, 6, 7, 8, 9, 10, *range(11, 17))
    _, filled = ARM_ON_AMD.to_guest(row, args, 0, {2: amd64})
    fields = struct.unpack("<QQIIIIQ8xqi4xq6q8x", filled[2])
    assert fields == (1, 2, 0o100644, 3, 5, 6, 7, 8, 9, 10, *range(11, 17))


def test_a_real_stat_survives() -> None:
    class Buffer(ctypes.Structure):
        _fields_ = (("data", ctypes.c_char * 144),)

    real = os.stat("/")
    buffer = Buffer()
    libc = ctypes.CDLL(None)
    if os.uname().machine != "x86_64" or libc.stat(b"/", ctypes.byref(buffer)):
        pytest.skip("stat(2) here has another layout")
    _, filled = ARM_ON_AMD.to_guest(SYSCALLS["newfstatat"], NO_ARGS, 0, {2: bytes(buffer)})
    device, inode, mode, links = struct.unpack_from("<QQII", filled[2])
    assert (device, inode, mode, links) == (real.st_dev, real.st_ino, real.st_mode, real.st_nlink)


def test_epoll_events_are_packed_on_one_side_only() -> None:
    wait, control = SYSCALLS["epoll_pwait"], SYSCALLS["epoll_ctl"]
    _, _, outs = ARM_ON_AMD.to_host(wait, NO_ARGS, {}, {1: 3 * 16})
    assert outs == {1: 3 * 12}
    packed = struct.pack("<IQIQ", 1, 11, 2, 22)
    _, filled = ARM_ON_AMD.to_guest(wait, NO_ARGS, 2, {1: packed})
    assert filled[1] == struct.pack("<I4xQI4xQ", 1, 11, 2, 22)
    _, ins, _ = ARM_ON_AMD.to_host(control, NO_ARGS, {3: struct.pack("<I4xQ", 1, 11)}, {})
    assert ins[3] == struct.pack("<IQ", 1, 11)


def test_uname_names_the_program_s_machine() -> None:
    name = b"".join(word.ljust(65, b"\0") for word in (b"Linux", b"h", b"6", b"#1", b"x86_64", b"d"))
    _, filled = ARM_ON_AMD.to_guest(SYSCALLS["uname"], NO_ARGS, 0, {0: name})
    assert filled[0].split(b"\0")[0] == b"Linux"
    assert filled[0][260:].startswith(b"aarch64\0")
    assert len(filled[0]) == len(name)
