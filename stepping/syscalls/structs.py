"""Decodes the kernel's structs, from a table of their fields.

A struct of the table is

    NAME[.arm64]  FORMAT:[*]FIELD[/DECODER]... | NUMBERx...

FORMAT is one of struct's (little endian, no implied padding) with an optional count before `s`; `x` skips bytes.
DECODER is a scalar decoder, or for `s` one of `decode_structs`. If any field has a `*`, text shows only those.
`.arm64` stands for the struct's layout there, where it is another. Lines that begin with a space go on.

Not trusted: the bytes. What is too short for a struct is decoded as far as whole fields go.

Source: the kernel's headers below include/uapi and arch/{x86,arm64}/include/uapi, and each call's man page.
"""

import re
import struct
from collections.abc import Callable
from functools import cache

from stepping.syscalls.decode_scalars import find_scalar
from stepping.syscalls.decode_values import Hex, Node, Record, Shown, Symbol
from stepping.syscalls.model import Arch

#: Makes a node of the bytes of a buffer.
BufferDecoder = Callable[[bytes, Arch], Node]

_STRUCTS = """
stat Q:st_dev/dev Q:st_ino Q:st_nlink I:*st_mode/file_mode I:st_uid I:st_gid 4x Q:*st_rdev/dev_or_none
    q:*st_size q:st_blksize q:st_blocks q:st_atime Q:st_atime_nsec q:st_mtime Q:st_mtime_nsec
    q:st_ctime Q:st_ctime_nsec 24x
stat.arm64 Q:st_dev/dev Q:st_ino I:*st_mode/file_mode I:st_nlink I:st_uid I:st_gid Q:*st_rdev/dev_or_none 8x
    q:*st_size i:st_blksize 4x q:st_blocks q:st_atime Q:st_atime_nsec q:st_mtime Q:st_mtime_nsec
    q:st_ctime Q:st_ctime_nsec 8x
statx I:*stx_mask/statx_mask I:stx_blksize Q:*stx_attributes/statx_attributes I:stx_nlink I:stx_uid I:stx_gid
    H:*stx_mode/file_mode 2x Q:stx_ino Q:*stx_size Q:stx_blocks Q:stx_attributes_mask/statx_attributes
    16s:stx_atime/statx_timestamp 16s:stx_btime/statx_timestamp 16s:stx_ctime/statx_timestamp
    16s:stx_mtime/statx_timestamp I:stx_rdev_major I:stx_rdev_minor I:stx_dev_major I:stx_dev_minor
    Q:stx_mnt_id I:stx_dio_mem_align I:stx_dio_offset_align Q:stx_subvol I:stx_atomic_write_unit_min
    I:stx_atomic_write_unit_max I:stx_atomic_write_segments_max I:stx_dio_read_offset_align 72x
statx_timestamp q:tv_sec I:tv_nsec 4x
statfs q:f_type/fs_magic q:f_bsize Q:f_blocks Q:f_bfree Q:f_bavail Q:f_files Q:f_ffree 8s:f_fsid/i32_array
    q:f_namelen q:f_frsize Q:f_flags/statfs_flags 32x
utsname 65s:*sysname/c_string 65s:*nodename/c_string 65s:release/c_string 65s:version/c_string
    65s:machine/c_string 65s:domainname/c_string
timespec q:tv_sec q:tv_nsec
timeval q:tv_sec q:tv_usec
timezone i:tz_minuteswest i:tz_dsttime
itimerspec 16s:it_interval/timespec 16s:it_value/timespec
itimerval 16s:it_interval/timeval 16s:it_value/timeval
utimbuf q:actime q:modtime
tms q:tms_utime q:tms_stime q:tms_cutime q:tms_cstime
rusage 16s:*ru_utime/timeval 16s:*ru_stime/timeval q:*ru_maxrss q:ru_ixrss q:ru_idrss q:ru_isrss q:ru_minflt
    q:ru_majflt q:ru_nswap q:ru_inblock q:ru_oublock q:ru_msgsnd q:ru_msgrcv q:ru_nsignals q:ru_nvcsw
    q:ru_nivcsw
rlimit Q:rlim_cur/limit Q:rlim_max/limit
sysinfo q:*uptime 24s:loads/u64_array Q:*totalram Q:*freeram Q:sharedram Q:bufferram Q:totalswap Q:freeswap
    H:*procs 6x Q:totalhigh Q:freehigh I:mem_unit 4x
timex I:*modes/hex 4x q:*offset q:freq q:maxerror q:esterror I:*status/hex 4x q:constant q:precision
    q:tolerance 16s:*time/timeval q:tick q:ppsfreq q:jitter i:shift 4x q:stabil q:jitcnt q:calcnt q:errcnt
    q:stbcnt i:tai 44x
flock h:l_type/lock_type h:l_whence/whence 4x q:l_start q:l_len i:l_pid 4x
flock_wanted h:l_type/lock_type h:l_whence/whence 4x q:l_start q:l_len 8x
owner_ex i:type/owner_type i:pid
open_how Q:flags/open_flags Q:mode/mode Q:resolve/resolve_flags
mount_attr Q:attr_set/mount_attr_flags Q:attr_clr/mount_attr_flags Q:propagation/mount_flags Q:userns_fd
mq_attr q:mq_flags/hex q:mq_maxmsg q:mq_msgsize q:mq_curmsgs 32x
clone_args Q:*flags/clone_flags Q:pidfd/hex Q:child_tid/hex Q:parent_tid/hex Q:*exit_signal/signal
    Q:stack/hex Q:stack_size/hex Q:tls/hex Q:set_tid/hex Q:set_tid_size Q:cgroup
sigaction Q:sa_handler/handler Q:sa_flags/sigaction_flags Q:sa_restorer/hex 8s:sa_mask/sigset
stack Q:ss_sp/hex I:ss_flags/sigstack_flags 4x Q:ss_size
sigevent Q:sigev_value/hex i:sigev_signo/signal i:sigev_notify/sigev_notify i:sigev_notify_thread_id 44x
cap_header I:version/hex i:pid
pollfd i:fd h:events/poll_events h:revents/events_or_none
epoll_event I:events/epoll_event_bits Q:data/hex
epoll_event.arm64 I:events/epoll_event_bits 4x Q:data/hex
sembuf H:sem_num h:sem_op h:sem_flg/ipc_flags
winsize H:ws_row H:ws_col H:ws_xpixel H:ws_ypixel
termios I:c_iflag/hex I:c_oflag/hex I:c_cflag/hex I:c_lflag/hex B:c_line 19s:c_cc/hexdump
ifreq 16s:ifr_name/c_string 24s:ifr_data/hexdump
ucred i:pid I:uid I:gid
linger i:l_onoff i:l_linger
cap_datum I:effective/hex I:permitted/hex I:inheritable/hex
"""

_FIELD = r"(?P<count>\d*)(?P<code>\w):(?P<brief>\*)?(?P<name>\w+)(?:/(?P<decoder>\w+))?"


class Struct:
    """The layout of one struct on one architecture. Immutable; any thread may use it."""

    def __init__(self, text: str, arch: Arch, find_buffer: Callable[[str], BufferDecoder]) -> None:
        self._arch = arch
        self._fields: list[tuple[str, int, struct.Struct, Callable[..., Node] | None, bool]] = []
        brief: list[str] = []
        offset = 0
        for word in text.split():
            match = re.fullmatch(_FIELD, word)
            if match is None:  # padding
                offset += struct.calcsize("<" + word)
                continue
            packed = struct.Struct("<" + match["count"] + match["code"])
            is_bytes = match["code"] == "s"
            bits = 8 * packed.size
            decoder = match["decoder"]
            decode = (
                None if not decoder else find_buffer(decoder) if is_bytes else _scalar(decoder, bits, arch)
            )
            self._fields.append((match["name"], offset, packed, decode, is_bytes))
            if match["brief"]:
                brief.append(match["name"])
            offset += packed.size
        self._brief = frozenset(brief) or None
        #: How many bytes it has.
        self.size = offset

    def decode(self, data: bytes) -> Record:
        """Return the fields that *data* holds whole, *data* being the struct's beginning or more."""
        fields: dict[str, Node] = {}
        for name, offset, packed, decode, is_bytes in self._fields:
            if offset + packed.size > len(data):
                break
            (value,) = packed.unpack_from(data, offset)
            if decode is None:
                fields[name] = value
            elif is_bytes:
                fields[name] = decode(value, self._arch)
            else:
                number = decode(value if value >= 0 else value & ((1 << 8 * packed.size) - 1))
                if number is not None:
                    fields[name] = number
        return Record(fields, self._brief)


def _scalar(name: str, bits: int, arch: Arch) -> Callable[[int], Node]:
    special = _FIELD_SCALARS.get(name)
    if special is not None:
        return special
    found = find_scalar(name, bits, arch)
    if found is None:
        raise LookupError(f"no scalar decoder {name}")
    return found


def _device_if_any(value: int) -> Node:
    device = find_scalar("dev", 64)
    return device(value) if value and device else None


def _events_if_any(value: int) -> Node:
    events = find_scalar("poll_events", 16)
    return events(value) if value and events else None


def _limit(value: int) -> Node:
    if value == (1 << 64) - 1:
        return Symbol("RLIM64_INFINITY")
    return Shown(f"{value >> 10}*1024", value) if value > 1024 and not value & 1023 else value


def _handler(value: int) -> Node:
    return Symbol(("SIG_DFL", "SIG_IGN")[value]) if value < 2 else Hex(value)


#: Scalars that only structs have; a field whose decoder returns None is left out.
_FIELD_SCALARS: dict[str, Callable[[int], Node]] = {
    "dev_or_none": _device_if_any,
    "events_or_none": _events_if_any,
    "limit": _limit,
    "handler": _handler,
}


def struct_text(name: str, arch: Arch) -> str | None:
    """Return the fields of the struct called *name* as the table has them, or None if it is not there."""
    structs = _all_structs()
    return structs.get(f"{name}.{arch}") or structs.get(name)


@cache
def _all_structs() -> dict[str, str]:
    joined = _STRUCTS.replace("\n ", " ").strip()
    return {line.partition(" ")[0]: line.partition(" ")[2] for line in joined.splitlines()}
