"""Whole calls as text and as plain values."""

import json
import struct
from typing import Any

import pytest

from stepping.syscalls import SYSCALLS
from stepping.syscalls.decode import decode_call, format_arguments, format_call, format_result

ALL_BITS = (1 << 64) - 1
FD_CWD = -100
AT = 0x1000  # any address

STAT = struct.pack("<QQQIIIIQqqq6Q24x", 0x801, 2, 1, 0o100644, 0, 0, 0, 0, 221, 4096, 8, 1, 2, 3, 4, 5, 6)
SOCKET_V4 = struct.pack("<H", 2) + b"\0\x50\x7f\0\0\1" + bytes(8)
SOCKET_V6 = struct.pack("<H", 10) + b"\x1f\x90" + bytes(4) + bytes(15) + b"\1" + bytes(4)


def text(
    name: str,
    args: tuple[int, ...],
    value: int | None = 0,
    errno: int = 0,
    ins: dict[int, bytes] | None = None,
    outs: dict[int, bytes] | None = None,
    **options: Any,
) -> str:
    return format_call(SYSCALLS[name], registers(args), ins or {}, outs or {}, value, errno, **options)


def plain(
    name: str,
    args: tuple[int, ...],
    value: int | None = 0,
    errno: int = 0,
    ins: dict[int, bytes] | None = None,
    outs: dict[int, bytes] | None = None,
    **options: Any,
) -> dict[str, Any]:
    decoded = decode_call(SYSCALLS[name], registers(args), ins or {}, outs or {}, value, errno, **options)
    json.dumps(decoded)
    return decoded


def registers(args: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(arg & ALL_BITS for arg in args) + (0,) * (6 - len(args))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            text("openat", (FD_CWD, AT, 0o2000000, 0), 3, ins={1: b"/etc/hosts"}),
            'openat(AT_FDCWD, "/etc/hosts", O_RDONLY|O_CLOEXEC) = 3',
        ),
        (
            text("openat", (5, AT, 0o2000101, 0o644), -1, 13, ins={1: b"a b"}),
            'openat(5, "a b", O_WRONLY|O_CREAT|O_CLOEXEC, 0644) = -1 EACCES (Permission denied)',
        ),
        (text("open", (AT, 0x20410002, 0o600), 3), "open(0x1000, O_RDWR|O_TMPFILE|0x20000000, 0600) = 3"),
        (text("read", (3, AT, 4096), 3, outs={1: b"a\n\0"}), 'read(3, "a\\n\\0", 4096) = 3'),
        (text("read", (3, AT, 4096), -1, 9), "read(3, 0x1000, 4096) = -1 EBADF (Bad file descriptor)"),
        (
            text("read", (3, AT, 8), None, 512),
            "read(3, 0x1000, 8) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)",
        ),
        (text("read", (3, AT, 99), 0), 'read(3, "", 99) = 0'),
        (text("read", (3, AT, 99), 99, outs={1: b"x" * 99}), f'read(3, "{"x" * 32}"..., 99) = 99'),
        (text("read", (3, AT, 99), 99, outs={1: b"x" * 4}), 'read(3, "xxxx"..., 99) = 99'),
        (text("read", (3, AT, 9), 2, outs={1: b"xxxx"}), 'read(3, "xx", 9) = 2'),
        (text("write", (1, AT, 5), 5, ins={1: b"12345"}, limit=3), 'write(1, "123"..., 5) = 5'),
        (text("write", (1, 0, 0)), "write(1, NULL, 0) = 0"),
        (text("writev", (1, AT, 1), 2, ins={1: b"hi"}), 'writev(1, [{iov_base="hi", iov_len=2}], 1) = 2'),
        (text("readv", (1, AT, 2), 2, outs={1: b"hi"}), 'readv(1, ["hi" /* in 2 buffers */], 2) = 2'),
        (text("lseek", (3, -5, 2), 7), "lseek(3, -5, SEEK_END) = 7"),
        (text("close", (-1,), -1, 9), "close(-1) = -1 EBADF (Bad file descriptor)"),
        (
            text("fstat", (3, AT), outs={1: STAT}),
            "fstat(3, {st_mode=S_IFREG|0644, st_size=221, ...}) = 0",
        ),
        (
            text("utimensat", (FD_CWD, AT, AT, 0), ins={1: b"f", 2: struct.pack("<4q", 1, 2, 0, 0x3FFFFFFE)}),
            'utimensat(AT_FDCWD, "f", [{tv_sec=1, tv_nsec=2}, UTIME_OMIT], 0) = 0',
        ),
        (
            text("stat", (AT, AT), ins={0: b"/tmp"}, outs={1: STAT[:24] + b"\xff\x43" + STAT[26:]}),
            'stat("/tmp", {st_mode=S_IFDIR|S_ISVTX|0777, st_size=221, ...}) = 0',
        ),
        (text("mkdir", (AT, 0o755), ins={0: b"d"}), 'mkdir("d", 0755) = 0'),
        (text("umask", (0o22,), 0o77), "umask(022) = 077"),
        (
            text("mknod", (AT, 0o20620, 0x8805), ins={0: b"t"}),
            'mknod("t", S_IFCHR|0620, makedev(0x88, 0x5)) = 0',
        ),
        (text("pipe2", (AT, 0o2000000), outs={0: struct.pack("<ii", 3, 4)}), "pipe2([3, 4], O_CLOEXEC) = 0"),
        (
            text("fcntl", (3, 3), 0x8402),
            "fcntl(3, F_GETFL) = 0x8402 (flags O_RDWR|O_APPEND|O_LARGEFILE)",
        ),
        (text("fcntl", (3, 3), 0), "fcntl(3, F_GETFL) = 0 (flags O_RDONLY)"),
        (text("epoll_create1", (0x80000,), 4), "epoll_create1(EPOLL_CLOEXEC) = 4"),
        (text("epoll_pwait", (4, AT, 8, 0), 0), "epoll_pwait(4, [], 8, 0, NULL, 0) = 0"),
        (text("fcntl", (3, 1), 1), "fcntl(3, F_GETFD) = 0x1 (flags FD_CLOEXEC)"),
        (text("fcntl", (3, 1), 0), "fcntl(3, F_GETFD) = 0"),
        (text("fcntl", (3, 2, 1)), "fcntl(3, F_SETFD, FD_CLOEXEC) = 0"),
        (text("fcntl", (3, 1030, 10), 10), "fcntl(3, F_DUPFD_CLOEXEC, 10) = 10"),
        (
            text("fcntl", (3, 6, AT), ins={2: struct.pack("<hh4xqqi4x", 1, 0, 5, 10, 0)}),
            "fcntl(3, F_SETLK, {l_type=F_WRLCK, l_whence=SEEK_SET, l_start=5, l_len=10}) = 0",
        ),
        (
            text("ioctl", (0, 0x5413, AT), outs={2: struct.pack("<4H", 24, 80, 0, 0)}),
            "ioctl(0, TIOCGWINSZ, {ws_row=24, ws_col=80, ws_xpixel=0, ws_ypixel=0}) = 0",
        ),
        (text("ioctl", (0, 0x5421, AT), ins={2: b"\1\0\0\0"}), "ioctl(0, FIONBIO, [1]) = 0"),
        (
            text("ioctl", (0, 0x80045499, AT), -1, 25),
            "ioctl(0, _IOC(_IOC_READ, 0x54, 0x99, 0x4), 0x1000)"
            " = -1 ENOTTY (Inappropriate ioctl for device)",
        ),
        (
            text("epoll_ctl", (4, 1, 5, AT), ins={3: struct.pack("<IQ", 0x80002001, 0x7F00)}),
            "epoll_ctl(4, EPOLL_CTL_ADD, 5, {events=EPOLLIN|EPOLLRDHUP|EPOLLET, data=0x7f00}) = 0",
        ),
        (
            text("epoll_pwait", (4, AT, 128, -1), 1, outs={1: struct.pack("<IQ", 4, 1)}),
            "epoll_pwait(4, [{events=EPOLLOUT, data=0x1}], 128, -1, NULL, 0) = 1",
        ),
        (
            text(
                "epoll_pwait", (4, AT, 128, -1), 1, outs={1: struct.pack("<I4xQ", 4, 1)}, arch="arm64"
            ),
            "epoll_pwait(4, [{events=EPOLLOUT, data=0x1}], 128, -1, NULL, 0) = 1",
        ),
        (
            text(
                "poll",
                (AT, 1, 100),
                1,
                ins={0: struct.pack("<ihh", 3, 1, 0)},
                outs={0: struct.pack("<ihh", 3, 1, 0x11)},
            ),
            "poll([{fd=3, events=POLLIN, revents=POLLIN|POLLHUP}], 1, 100) = 1",
        ),
        (text("poll", (AT, 0, 5)), "poll(0x1000, 0, 5) = 0 (Timeout)"),
        (
            text(
                "select", (10, AT, 0, 0, 0), 1, ins={1: b"\x28" + bytes(7)}, outs={1: b"\x08" + bytes(7)}
            ),
            "select(10, [3 5] => [3], NULL, NULL, NULL) = 1",
        ),
        (
            text("sendfile", (1, 3, AT, 9), 9, ins={2: struct.pack("<Q", 5)}, outs={2: struct.pack("<Q", 14)}),
            "sendfile(1, 3, [5 => 14], 9) = 9",
        ),
        (
            text("socket", (2, 0x80801, 0), 3),
            "socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC|SOCK_NONBLOCK, IPPROTO_IP) = 3",
        ),
        (text("socket", (16, 3, 0), 3), "socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE) = 3"),
        (
            text("connect", (3, AT, 16), -1, 115, ins={1: SOCKET_V4}),
            'connect(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}, 16)'
            " = -1 EINPROGRESS (Operation now in progress)",
        ),
        (
            text(
                "accept4",
                (3, AT, AT, 0x80800),
                5,
                ins={2: struct.pack("<i", 112)},
                outs={1: SOCKET_V6, 2: struct.pack("<i", 28)},
            ),
            'accept4(3, {sa_family=AF_INET6, sin6_port=htons(8080), sin6_flowinfo=0, sin6_addr=inet_pton(AF_INET6,'
            ' "::1"), sin6_scope_id=0}, [112 => 28], SOCK_CLOEXEC|SOCK_NONBLOCK) = 5',
        ),
        (
            text("bind", (3, AT, 5), ins={1: b"\1\0\0xy"}),
            'bind(3, {sa_family=AF_UNIX, sun_path=@"xy"}, 5) = 0',
        ),
        (
            text("setsockopt", (3, 1, 2, AT, 4), ins={3: b"\1\0\0\0"}),
            "setsockopt(3, SOL_SOCKET, SO_REUSEADDR, [1], 4) = 0",
        ),
        (
            text("getsockopt", (3, 6, 1, AT, AT), outs={3: b"\1\0\0\0"}, ins={4: b"\4\0\0\0"}),
            "getsockopt(3, SOL_TCP, TCP_NODELAY, [1], [4]) = 0",
        ),
        (
            text("execve", (AT, AT, AT), ins={0: b"/bin/ls", 1: b"ls\0-l", 2: b"A=1\0B=2"}),
            'execve("/bin/ls", ["ls", "-l"], 0x1000 /* 2 vars */) = 0',
        ),
        (text("clone", (0x11,), 7), "clone(SIGCHLD, NULL, NULL, NULL, NULL) = 7"),
        (
            text("wait4", (-1, AT, 1, 0), 7, outs={1: struct.pack("<i", 0x300)}),
            "wait4(-1, [{WIFEXITED(s) && WEXITSTATUS(s) == 3}], WNOHANG, NULL) = 7",
        ),
        (
            text("wait4", (-1, AT, 0, 0), 7, outs={1: struct.pack("<i", 0x8B)}),
            "wait4(-1, [{WIFSIGNALED(s) && WTERMSIG(s) == SIGSEGV && WCOREDUMP(s)}], 0, NULL) = 7",
        ),
        (text("kill", (7, 9)), "kill(7, SIGKILL) = 0"),
        (
            text("rt_sigprocmask", (0, AT, 0, 8), ins={1: struct.pack("<Q", 0x4002)}),
            "rt_sigprocmask(SIG_BLOCK, [INT TERM], NULL, 8) = 0",
        ),
        (
            text("rt_sigprocmask", (2, AT, 0, 8), ins={1: struct.pack("<Q", ALL_BITS ^ 0x100)}),
            "rt_sigprocmask(SIG_SETMASK, ~[KILL], NULL, 8) = 0",
        ),
        (text("mmap", (0, 4096, 3, 0x22, -1, 0), 1 << 46),
         "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x400000000000"),
        (text("munmap", (AT, 4096)), "munmap(0x1000, 4096) = 0"),
        (
            text("futex", (AT, 0x80, 2, AT), -1, 110, ins={3: struct.pack("<qq", 1, 5)}),
            "futex(0x1000, FUTEX_WAIT_PRIVATE, 2, {tv_sec=1, tv_nsec=5}, NULL, 0)"
            " = -1 ETIMEDOUT (Connection timed out)",
        ),
        (text("futex", (AT, 0x81, 1), 1), "futex(0x1000, FUTEX_WAKE_PRIVATE, 1, NULL, 0) = 1"),
        (text("prctl", (15, AT), ins={1: b"worker\0\0"}), 'prctl(PR_SET_NAME, "worker", 0, 0, 0) = 0'),
        (text("exit_group", (3,), None), "exit_group(3) = ?"),
        (text("sync", ()), "sync() = 0"),
        (text("getpid", (), 7), "getpid() = 7"),
        (
            text("prlimit64", (0, 7, 0, AT), outs={3: struct.pack("<QQ", 4096, ALL_BITS)}),
            "prlimit64(0, RLIMIT_NOFILE, NULL, {rlim_cur=4*1024, rlim_max=RLIM64_INFINITY}) = 0",
        ),
    ],
)  # fmt: skip
def test_text(call: str, expected: str) -> None:
    assert call == expected


def test_directory_entries_are_counted_in_text_and_listed_in_values() -> None:
    entries = b"".join(
        struct.pack("<QqHB", inode, 0, 24, kind) + name.ljust(5, b"\0")
        for inode, kind, name in [(1, 4, b"."), (2, 8, b"a.go")]
    )
    call = ("getdents64", (3, AT, 4096), len(entries))
    assert text(*call, outs={1: entries}) == "getdents64(3, /* 2 entries */, 4096) = 48"
    listed = plain(*call, outs={1: entries})["args"]["dirent"]
    assert [(entry["d_name"], entry["d_type"]) for entry in listed] == [(".", "DT_DIR"), ("a.go", "DT_REG")]


def test_buffer_that_was_not_taken_whole() -> None:
    entry = struct.pack("<QqHB", 1, 0, 24, 4) + b".".ljust(5, b"\0")
    call = ("getdents64", (3, AT, 4096), 4000)
    assert text(*call, outs={1: entry}) == "getdents64(3, /* 1 entry */..., 4096) = 4000"
    listed = plain(*call, outs={1: entry})["args"]["dirent"]
    assert (listed["size"], listed["part"][0]["d_name"]) == (4000, ".")
    assert text("getgroups", (9, AT), 3, outs={1: struct.pack("<I", 4)}) == "getgroups(9, [4]...) = 3"


def test_plain_values() -> None:
    assert plain("openat", (FD_CWD, AT, 0o2000101, 0o644), -1, 2, ins={1: b"/etc/h\xc3\xa4"}) == {
        "args": {
            "dirfd": "AT_FDCWD",
            "path": "/etc/h\xe4",
            "flags": ["O_WRONLY", "O_CREAT", "O_CLOEXEC"],
            "mode": "0644",
        },
        "value": -1,
        "errno": "ENOENT",
    }


def test_plain_value_of_an_interrupted_call_is_not_known() -> None:
    assert plain("read", (3, AT, 4), -512, 512)["value"] is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"text", "text"),
        (b"\0\x1b", "\0\x1b"),
        (b"\xff\xfe", {"base64": "//4="}),
        (b"x" * 40, {"text": "x" * 32, "size": 40}),
        (b"x" * 31 + b"\xc3\xa4", {"text": "x" * 31, "size": 33}),
        (b"\xff" * 33, {"base64": "/" * 42 + "8=", "size": 33}),
    ],
)
def test_plain_bytes(data: bytes, expected: object) -> None:
    assert plain("write", (1, AT, len(data)), 0, ins={1: data})["args"]["buf"] == expected


def test_plain_structs_show_every_field() -> None:
    stat = plain("fstat", (3, AT), outs={1: STAT})["args"]["statbuf"]
    assert stat["st_mode"] == "S_IFREG|0644"
    assert stat["st_dev"] == [8, 1]
    assert (stat["st_size"], stat["st_ctime_nsec"]) == (221, 6)


def test_plain_change() -> None:
    decoded = plain("sendfile", (1, 3, AT, 9), 9, ins={2: bytes(8)}, outs={2: b"\x09" + bytes(7)})
    assert decoded["args"]["offset"] == {"before": [0], "after": [9]}


def test_arguments_and_result_can_be_had_alone() -> None:
    row = SYSCALLS["write"]
    assert format_arguments(row, (1, AT, 2), {1: b"hi"}, {}, None, 0) == '1, "hi", 2'
    assert format_result(row, (1, AT, 2), None, 0) == "?"
    assert format_result(row, (1, AT, 2), 2, 0) == "2"
    assert format_result(row, (1, AT, 2), -1, 32) == "-1 EPIPE (Broken pipe)"


def test_stat_of_arm64() -> None:
    data = struct.pack("<QQIIIIQ8xqi4xq6Q8x", 1, 2, 0o40755, 3, 4, 5, 0, 4096, 512, 8, 1, 2, 3, 4, 5, 6)
    assert len(data) == 128
    expected = "fstat(3, {st_mode=S_IFDIR|0755, st_size=4096, ...}) = 0"
    assert text("fstat", (3, AT), outs={1: data}, arch="arm64") == expected
