"""What the argument of `ioctl`, `fcntl` and their like is: a number, or the address of how many bytes.

A row of the table below is one line:

    syscall  NAME  number  in  out  [DECODER] [fd] [bound]

    number   the value of the argument that the syscall's `reqarg[...]` names
    in, out  how many bytes the call reads and fills there; both `-` if the argument is a number or unused
    fd       a successful call returns a new descriptor
    bound    the argument holds addresses or is of varying size: no other process can make the call by table alone

An ioctl that the table does not have says its size and direction itself if it was defined by the _IOC macros;
if it was not, nobody knows what its argument is.

Sizes that the kernel does not keep to are the reason for some rows: FS_IOC_GETFLAGS claims 8 bytes and fills 4,
FICLONE claims a pointer and takes a descriptor.

Source: include/uapi/asm-generic/{fcntl,ioctl,ioctls}.h, linux/{fcntl,fs,sockios,prctl,futex,loop}.h, fcntl(2),
ioctl_tty(2), shmctl(2), semctl(2), msgctl(2).
"""

from typing import NamedTuple

_ROWS = """
fcntl   F_DUPFD              0     -   -  int fd
fcntl   F_GETFD              1     -   -
fcntl   F_SETFD              2     -   -  fd_flags
fcntl   F_GETFL              3     -   -
fcntl   F_SETFL              4     -   -  open_flags
fcntl   F_GETLK              5    32  32  flock
fcntl   F_SETLK              6    32   0  flock_wanted
fcntl   F_SETLKW             7    32   0  flock_wanted
fcntl   F_SETOWN             8     -   -  int
fcntl   F_GETOWN             9     -   -
fcntl   F_SETSIG            10     -   -  signal
fcntl   F_GETSIG            11     -   -
fcntl   F_SETOWN_EX         15     8   0  owner_ex
fcntl   F_GETOWN_EX         16     0   8  owner_ex
fcntl   F_GETOWNER_UIDS     17     0   8  u32_array
fcntl   F_OFD_GETLK         36    32  32  flock
fcntl   F_OFD_SETLK         37    32   0  flock_wanted
fcntl   F_OFD_SETLKW        38    32   0  flock_wanted
fcntl   F_SETLEASE        1024     -   -  lease
fcntl   F_GETLEASE        1025     -   -
fcntl   F_NOTIFY          1026     -   -  dnotify_flags
fcntl   F_DUPFD_QUERY     1027     -   -  int
fcntl   F_CREATED_QUERY   1028     -   -
fcntl   F_CANCELLK        1029    32   0  flock
fcntl   F_DUPFD_CLOEXEC   1030     -   -  int fd
fcntl   F_SETPIPE_SZ      1031     -   -  int
fcntl   F_GETPIPE_SZ      1032     -   -
fcntl   F_ADD_SEALS       1033     -   -  seals
fcntl   F_GET_SEALS       1034     -   -
fcntl   F_GET_RW_HINT     1035     0   8  u64_box
fcntl   F_SET_RW_HINT     1036     8   0  u64_box
fcntl   F_GET_FILE_RW_HINT 1037    0   8  u64_box
fcntl   F_SET_FILE_RW_HINT 1038    8   0  u64_box

ioctl   TCGETS          0x5401     0  36  termios
ioctl   TCSETS          0x5402    36   0  termios
ioctl   TCSETSW         0x5403    36   0  termios
ioctl   TCSETSF         0x5404    36   0  termios
ioctl   TCGETA          0x5405     0  18  hexdump
ioctl   TCSETA          0x5406    18   0  hexdump
ioctl   TCSETAW         0x5407    18   0  hexdump
ioctl   TCSETAF         0x5408    18   0  hexdump
ioctl   TCSBRK          0x5409     -   -  int
ioctl   TCXONC          0x540a     -   -  int
ioctl   TCFLSH          0x540b     -   -  int
ioctl   TIOCEXCL        0x540c     -   -
ioctl   TIOCNXCL        0x540d     -   -
ioctl   TIOCSCTTY       0x540e     -   -  int
ioctl   TIOCGPGRP       0x540f     0   4  i32_box
ioctl   TIOCSPGRP       0x5410     4   0  i32_box
ioctl   TIOCOUTQ        0x5411     0   4  i32_box
ioctl   TIOCSTI         0x5412     1   0
ioctl   TIOCGWINSZ      0x5413     0   8  winsize
ioctl   TIOCSWINSZ      0x5414     8   0  winsize
ioctl   TIOCMGET        0x5415     0   4  i32_box
ioctl   TIOCMBIS        0x5416     4   0  i32_box
ioctl   TIOCMBIC        0x5417     4   0  i32_box
ioctl   TIOCMSET        0x5418     4   0  i32_box
ioctl   TIOCGSOFTCAR    0x5419     0   4  i32_box
ioctl   TIOCSSOFTCAR    0x541a     4   0  i32_box
ioctl   FIONREAD        0x541b     0   4  i32_box
ioctl   TIOCLINUX       0x541c     -   -  hex bound
ioctl   TIOCCONS        0x541d     -   -
ioctl   TIOCGSERIAL     0x541e     0  72  hexdump
ioctl   TIOCSSERIAL     0x541f    72   0  hexdump
ioctl   TIOCPKT         0x5420     4   0  i32_box
ioctl   FIONBIO         0x5421     4   0  i32_box
ioctl   TIOCNOTTY       0x5422     -   -
ioctl   TIOCSETD        0x5423     4   0  i32_box
ioctl   TIOCGETD        0x5424     0   4  i32_box
ioctl   TCSBRKP         0x5425     -   -  int
ioctl   TIOCSBRK        0x5427     -   -
ioctl   TIOCCBRK        0x5428     -   -
ioctl   TIOCGSID        0x5429     0   4  i32_box
ioctl   TCGETS2         0x802c542a 0  44  termios
ioctl   TCSETS2         0x402c542b 44  0  termios
ioctl   TCSETSW2        0x402c542c 44  0  termios
ioctl   TCSETSF2        0x402c542d 44  0  termios
ioctl   TIOCGPTN        0x80045430 0   4  i32_box
ioctl   TIOCSPTLCK      0x40045431 4   0  i32_box
ioctl   TIOCVHANGUP     0x5437     -   -
ioctl   TIOCGPKT        0x80045438 0   4  i32_box
ioctl   TIOCGPTLCK      0x80045439 0   4  i32_box
ioctl   TIOCGEXCL       0x80045440 0   4  i32_box
ioctl   TIOCGPTPEER     0x5441     -   -  open_flags fd
ioctl   FIONCLEX        0x5450     -   -
ioctl   FIOCLEX         0x5451     -   -
ioctl   FIOASYNC        0x5452     4   0  i32_box
ioctl   FIOQSIZE        0x5460     0   8  u64_box
ioctl   KDGKBTYPE       0x4b33     0   1  hexdump
ioctl   KDSETMODE       0x4b3a     -   -  int
ioctl   KDGETMODE       0x4b3b     0   4  i32_box
ioctl   KDGKBMODE       0x4b44     0   4  i32_box
ioctl   KDSKBMODE       0x4b45     -   -  int
ioctl   VT_OPENQRY      0x5600     0   4  i32_box
ioctl   VT_GETMODE      0x5601     0   8  hexdump
ioctl   VT_SETMODE      0x5602     8   0  hexdump
ioctl   VT_GETSTATE     0x5603     0   6  hexdump
ioctl   VT_ACTIVATE     0x5606     -   -  int
ioctl   VT_WAITACTIVE   0x5607     -   -  int

ioctl   FIBMAP          1          4   4  i32_box
ioctl   FIGETBSZ        2          0   4  i32_box
ioctl   FS_IOC_GETFLAGS 0x80086601 0   4  u32_hex_box
ioctl   FS_IOC_SETFLAGS 0x40086602 4   0  u32_hex_box
ioctl   FS_IOC_GETVERSION 0x80087601 0 4  u32_box
ioctl   FS_IOC_SETVERSION 0x40087602 4 0  u32_box
ioctl   FS_IOC_FSGETXATTR 0x801c581f 0 28 hexdump
ioctl   FS_IOC_FSSETXATTR 0x401c5820 28 0 hexdump
ioctl   FS_IOC_FIEMAP   0xc020660b -   -  hex bound
ioctl   FICLONE         0x40049409 -   -  int
ioctl   FICLONERANGE    0x4020940d 32  0  u64_array
ioctl   FIDEDUPERANGE   0xc0189436 -   -  hex bound
ioctl   FIFREEZE        0xc0045877 -   -
ioctl   FITHAW          0xc0045878 -   -
ioctl   FITRIM          0xc0185879 24 24  u64_array

ioctl   BLKROSET        0x125d     4   0  i32_box
ioctl   BLKROGET        0x125e     0   4  i32_box
ioctl   BLKRRPART       0x125f     -   -
ioctl   BLKGETSIZE      0x1260     0   8  u64_box
ioctl   BLKFLSBUF       0x1261     -   -
ioctl   BLKRASET        0x1262     -   -  int
ioctl   BLKRAGET        0x1263     0   8  u64_box
ioctl   BLKSSZGET       0x1268     0   4  i32_box
ioctl   BLKGETSIZE64    0x80081272 0   8  u64_box
ioctl   BLKDISCARD      0x1277    16   0  u64_array
ioctl   BLKIOMIN        0x1278     0   4  i32_box
ioctl   BLKIOOPT        0x1279     0   4  i32_box
ioctl   BLKALIGNOFF     0x127a     0   4  i32_box
ioctl   BLKPBSZGET      0x127b     0   4  i32_box
ioctl   BLKSECDISCARD   0x127d    16   0  u64_array
ioctl   BLKROTATIONAL   0x127e     0   2  hexdump
ioctl   BLKZEROOUT      0x127f    16   0  u64_array
ioctl   LOOP_SET_FD     0x4c00     -   -  int
ioctl   LOOP_CLR_FD     0x4c01     -   -
ioctl   LOOP_SET_STATUS64 0x4c04 232   0  hexdump
ioctl   LOOP_GET_STATUS64 0x4c05   0 232  hexdump
ioctl   LOOP_CHANGE_FD  0x4c06     -   -  int
ioctl   LOOP_SET_CAPACITY 0x4c07   -   -
ioctl   LOOP_SET_DIRECT_IO 0x4c08  -   -  int
ioctl   LOOP_SET_BLOCK_SIZE 0x4c09 -   -  int
ioctl   LOOP_CONFIGURE  0x4c0a   304   0  hexdump
ioctl   LOOP_CTL_ADD    0x4c80     -   -  int
ioctl   LOOP_CTL_REMOVE 0x4c81     -   -  int
ioctl   LOOP_CTL_GET_FREE 0x4c82   -   -
ioctl   NS_GET_USERNS   0xb701     -   -  int fd
ioctl   NS_GET_PARENT   0xb702     -   -  int fd
ioctl   NS_GET_NSTYPE   0xb703     -   -
ioctl   NS_GET_OWNER_UID 0xb704    0   4  u32_box
ioctl   PERF_EVENT_IOC_ENABLE  0x2400 - - int
ioctl   PERF_EVENT_IOC_DISABLE 0x2401 - - int
ioctl   PERF_EVENT_IOC_RESET   0x2403 - - int
ioctl   TUNSETIFF       0x400454ca 40 40  hexdump
ioctl   TUNSETPERSIST   0x400454cb -   -  int
ioctl   TUNSETOWNER     0x400454cc -   -  int
ioctl   TUNSETGROUP     0x400454ce -   -  int

ioctl   FIOSETOWN       0x8901     4   0  i32_box
ioctl   SIOCSPGRP       0x8902     4   0  i32_box
ioctl   FIOGETOWN       0x8903     0   4  i32_box
ioctl   SIOCGPGRP       0x8904     0   4  i32_box
ioctl   SIOCATMARK      0x8905     0   4  i32_box
ioctl   SIOCGSTAMP      0x8906     0  16  timeval
ioctl   SIOCGSTAMPNS    0x8907     0  16  timespec
ioctl   SIOCADDRT       0x890b   120   0  hexdump bound
ioctl   SIOCDELRT       0x890c   120   0  hexdump bound
ioctl   SIOCGIFNAME     0x8910    40  40  ifreq
ioctl   SIOCGIFCONF     0x8912    16   0  hexdump bound
ioctl   SIOCGIFFLAGS    0x8913    40  40  ifreq
ioctl   SIOCSIFFLAGS    0x8914    40   0  ifreq
ioctl   SIOCGIFADDR     0x8915    40  40  ifreq
ioctl   SIOCSIFADDR     0x8916    40   0  ifreq
ioctl   SIOCGIFDSTADDR  0x8917    40  40  ifreq
ioctl   SIOCSIFDSTADDR  0x8918    40   0  ifreq
ioctl   SIOCGIFBRDADDR  0x8919    40  40  ifreq
ioctl   SIOCSIFBRDADDR  0x891a    40   0  ifreq
ioctl   SIOCGIFNETMASK  0x891b    40  40  ifreq
ioctl   SIOCSIFNETMASK  0x891c    40   0  ifreq
ioctl   SIOCGIFMETRIC   0x891d    40  40  ifreq
ioctl   SIOCGIFMTU      0x8921    40  40  ifreq
ioctl   SIOCSIFMTU      0x8922    40   0  ifreq
ioctl   SIOCSIFNAME     0x8923    40   0  ifreq
ioctl   SIOCSIFHWADDR   0x8924    40   0  ifreq
ioctl   SIOCGIFHWADDR   0x8927    40  40  ifreq
ioctl   SIOCGIFINDEX    0x8933    40  40  ifreq
ioctl   SIOCGIFTXQLEN   0x8942    40  40  ifreq
ioctl   SIOCSIFTXQLEN   0x8943    40   0  ifreq
ioctl   SIOCETHTOOL     0x8946    40  40  hexdump bound
ioctl   SIOCGIFMAP      0x8970    40  40  ifreq
ioctl   SIOCSARP        0x8955    68   0  hexdump
ioctl   SIOCGARP        0x8954    68  68  hexdump
ioctl   SIOCDARP        0x8953    68   0  hexdump

prctl   PR_SET_PDEATHSIG     1     -   -  signal
prctl   PR_GET_PDEATHSIG     2     0   4  i32_box
prctl   PR_GET_DUMPABLE      3     -   -
prctl   PR_SET_DUMPABLE      4     -   -  int
prctl   PR_GET_KEEPCAPS      7     -   -
prctl   PR_SET_KEEPCAPS      8     -   -  int
prctl   PR_SET_TIMING       14     -   -  int
prctl   PR_SET_NAME         15    16   0  c_string
prctl   PR_GET_NAME         16     0  16  c_string
prctl   PR_GET_SECCOMP      21     -   -
prctl   PR_SET_SECCOMP      22     -   -  int
prctl   PR_CAPBSET_READ     23     -   -  int
prctl   PR_CAPBSET_DROP     24     -   -  int
prctl   PR_GET_TSC          25     0   4  i32_box
prctl   PR_SET_TSC          26     -   -  int
prctl   PR_GET_SECUREBITS   27     -   -
prctl   PR_SET_SECUREBITS   28     -   -  hex
prctl   PR_SET_TIMERSLACK   29     -   -  int
prctl   PR_GET_TIMERSLACK   30     -   -
prctl   PR_SET_MM           35     -   -  int bound
prctl   PR_SET_CHILD_SUBREAPER 36  -   -  int
prctl   PR_GET_CHILD_SUBREAPER 37  0   4  i32_box
prctl   PR_SET_NO_NEW_PRIVS 38     -   -  int
prctl   PR_GET_NO_NEW_PRIVS 39     -   -
prctl   PR_GET_TID_ADDRESS  40     0   8  u64_box
prctl   PR_SET_THP_DISABLE  41     -   -  int
prctl   PR_GET_THP_DISABLE  42     -   -
prctl   PR_CAP_AMBIENT      47     -   -  int
prctl   PR_GET_SPECULATION_CTRL 52 -   -  int
prctl   PR_SET_SPECULATION_CTRL 53 -   -  int
prctl   PR_SET_VMA  0x53564d41     -   -  int bound
prctl   PR_SET_PTRACER 0x59616d61  -   -  int

futex   FUTEX_WAIT           0    16   0  timespec
futex   FUTEX_WAKE           1     -   -  ignored
futex   FUTEX_FD             2     -   -  ignored
futex   FUTEX_REQUEUE        3     -   -  int
futex   FUTEX_CMP_REQUEUE    4     -   -  int
futex   FUTEX_WAKE_OP        5     -   -  int
futex   FUTEX_LOCK_PI        6    16   0  timespec
futex   FUTEX_UNLOCK_PI      7     -   -  ignored
futex   FUTEX_TRYLOCK_PI     8     -   -  ignored
futex   FUTEX_WAIT_BITSET    9    16   0  timespec
futex   FUTEX_WAKE_BITSET   10     -   -  ignored
futex   FUTEX_WAIT_REQUEUE_PI 11  16   0  timespec
futex   FUTEX_CMP_REQUEUE_PI 12    -   -  int
futex   FUTEX_LOCK_PI2      13    16   0  timespec

shmctl  IPC_RMID             0     -   -
shmctl  IPC_SET              1   112   0  hexdump
shmctl  IPC_STAT             2     0 112  hexdump
shmctl  IPC_INFO             3     0  72  u64_array
shmctl  SHM_LOCK            11     -   -
shmctl  SHM_UNLOCK          12     -   -
shmctl  SHM_STAT            13     0 112  hexdump
shmctl  SHM_INFO            14     0  48  hexdump
shmctl  SHM_STAT_ANY        15     0 112  hexdump
semctl  IPC_RMID             0     -   -
semctl  IPC_SET              1   104   0  hexdump
semctl  IPC_STAT             2     0 104  hexdump
semctl  IPC_INFO             3     0  40  u32_array
semctl  GETPID              11     -   -
semctl  GETVAL              12     -   -
semctl  GETALL              13     -   -  hex bound
semctl  GETNCNT             14     -   -
semctl  GETZCNT             15     -   -
semctl  SETVAL              16     -   -  int
semctl  SETALL              17     -   -  hex bound
semctl  SEM_STAT            18     0 104  hexdump
semctl  SEM_INFO            19     0  40  u32_array
semctl  SEM_STAT_ANY        20     0 104  hexdump
msgctl  IPC_RMID             0     -   -
msgctl  IPC_SET              1   120   0  hexdump
msgctl  IPC_STAT             2     0 120  hexdump
msgctl  IPC_INFO             3     0  32  u32_array
msgctl  MSG_STAT            11     0 120  hexdump
msgctl  MSG_INFO            12     0  32  u32_array
msgctl  MSG_STAT_ANY        13     0 120  hexdump
"""

#: The part of the request's argument that says what it is (futex has flags beside).
_MASKS = {"futex": 0x7F}
_ALL = 0xFFFFFFFF

_IOC_OUT = 2  # _IOC_READ: the kernel fills


class Request(NamedTuple):
    """One row of the table; `sizes` is None where the argument is a number."""

    name: str
    sizes: tuple[int, int] | None
    decoder: str = ""
    returns_fd: bool = False
    bound: bool = False


_requests: dict[tuple[str, int], Request] = {}


def find_request(syscall: str, request: int) -> Request | None:
    """Return what is known of *request* (the register's value) of *syscall*; None if the table lacks it."""
    if not _requests:
        _requests.update(_parse(_ROWS))
    return _requests.get((syscall, request & _MASKS.get(syscall, _ALL)))


def request_argument(syscall: str, request: int) -> tuple[int, int] | None:
    """Return how many bytes a call reads and fills where its argument points to; None if that is a number.

    An ioctl that only fills, and is known by its number alone, is taken to read as well: the kernel may fill
    less than it claims, and the rest must stay as it was.
    """
    known = find_request(syscall, request)
    if known is not None:
        return known.sizes
    if syscall != "ioctl":
        return None
    direction, size = (request >> 30) & 3, (request >> 16) & 0x3FFF
    if not direction or not size:
        return None
    return size, size if direction & _IOC_OUT else 0


def request_is_bound(syscall: str, request: int) -> bool:
    """Whether only the program itself can make that call, as `Syscall.bound` has it, or nobody can tell."""
    known = find_request(syscall, request)
    if known is not None:
        return known.bound
    return syscall == "ioctl" and request_argument(syscall, request) is None


def request_returns_fd(syscall: str, request: int) -> bool:
    """Whether that call, if it succeeds, returns a new descriptor."""
    known = find_request(syscall, request)
    return known is not None and known.returns_fd


def _parse(text: str) -> dict[tuple[str, int], Request]:
    rows = {}
    for line in text.splitlines():
        if not line:
            continue
        syscall, name, number, size_in, size_out, *marks = line.split()
        sizes = None if size_in == "-" else (int(size_in), int(size_out))
        decoders = [mark for mark in marks if mark not in ("fd", "bound")]
        rows[syscall, int(number, 0)] = Request(
            name, sizes, decoders[0] if decoders else "", "fd" in marks, "bound" in marks
        )
    return rows
