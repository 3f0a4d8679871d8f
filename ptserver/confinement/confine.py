"""Confines the process of a session, and all that it starts, for good. See `ptserver.confinement.options`.

Every session, confined or not, is kept from the server's own processes and from other sessions:

- it is not dumpable: for another user than root, its /proc/self/mem and the like belong to root;
- Landlock lets it trace and signal only what it has started itself (signals since Linux 6.12), even as root.

Order: `limit` first of all; `enter` when the process has opened what it needs of the outside, has one thread, and
has done nothing yet that the peer wants. Who fails here must not serve.
"""

import ctypes
import os
import resource
import stat
from collections.abc import Iterator

from goabi.elf_header import read_elf_header
from goabi.errors import GoAbiError
from ptserver.confinement.options import LIMITS, Confinement, User
from ptserver.errors import CannotConfineError
from ptserver.machine import native_arch
from ptserver.shadow.descriptors import RESERVED
from stepping.errors import SteppingError
from stepping.landlock import CHANGES, SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS, Right, abi, restrict
from stepping.seccomp import Rule, Verdict, assemble, install
from stepping.syscalls import SYSCALLS
from stepping.syscalls.model import OnlyIf

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 2, 4, 38
_CAPABILITY_VERSION = (0x20080522).to_bytes(4, "little") + bytes(4)

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_WRITABLE_DEVICES = tuple(f"/dev/{name}" for name in (*_DEVICES, "pts"))

#: What changes files without writing to them; EROFS where files are not to be changed.
_METADATA = (
    "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat utimensat setxattr lsetxattr"
    " fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat file_setattr"
).split()
#: What is about the machine, or about other processes, or a wide field for attacks on the kernel; EPERM.
_DANGEROUS = (
    "mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick mount_setattr"
    " setns unshare ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd bpf perf_event_open"
    " userfaultfd add_key request_key keyctl init_module finit_module delete_module kexec_load kexec_file_load reboot"
    " swapon swapoff acct quotactl quotactl_fd syslog settimeofday clock_settime adjtimex clock_adjtime sethostname"
    " setdomainname open_by_handle_at io_uring_setup vhangup"
).split()

_libc = ctypes.CDLL(None, use_errno=True)


def protect_this_process() -> None:
    """Keep other processes of this user from this one's memory."""
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def limit(confinement: Confinement) -> None:
    """Set the resource limits of this process. Raises: CannotConfineError."""
    for name, value in confinement.limits.items():
        hard = value
        if name == "nofile":
            hard = min(value + RESERVED, resource.getrlimit(LIMITS[name])[1])
        try:
            resource.setrlimit(LIMITS[name], (min(value, hard), hard))
        except (OSError, ValueError) as error:
            raise CannotConfineError(f"cannot set the limit {name}={value}: {error}") from error


def enter(confinement: Confinement) -> list[str]:
    """Confine this process; return in what ways, for people.

    Raises:
        CannotConfineError: something does not work; the process must end.
    """
    signo = ctypes.c_int()
    _libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(signo), 0, 0, 0)
    ways = list(_enter_files(confinement))
    if confinement.user is not None:
        _become(confinement.user)
        ways.append(f"user {confinement.user.uid}")
    protect_this_process()
    _libc.prctl(_PR_SET_PDEATHSIG, signo.value, 0, 0, 0)  # the kernel forgets it when credentials change
    if os.geteuid() or confinement.is_strict:
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs")
    try:
        ways += _restrict(confinement)
        if confinement.is_strict:
            install(assemble(_rules(confinement), native_arch()), listener=False)
            ways.append("no calls on the machine by seccomp")
    except SteppingError as error:
        raise CannotConfineError(str(error)) from error
    return ways


def check(confinement: Confinement) -> list[str]:
    """Try to confine a process of its own; return in what ways it was.

    Raises:
        CannotConfineError: it does not work here, or is worth nothing.
    """
    if confinement.is_strict and _final_uid(confinement) == 0:
        raise CannotConfineError("root is hard to confine: give --user NAME, of a user who may do little")
    if confinement.user is not None and os.geteuid() and confinement.user.uid != os.geteuid():
        raise CannotConfineError("only root can serve as another user: leave --user out")
    if (confinement.read_only or confinement.exec is not None) and not abi():
        raise CannotConfineError(
            "this kernel has no Landlock (Linux 5.13), which --read-only and --exec need"
        )
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            limit(confinement)
            answer = "+" + "\n".join(enter(confinement))
        except CannotConfineError as error:
            answer = str(error)
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        answer = file.read()
    os.waitpid(pid, 0)
    if not answer.startswith("+"):
        raise CannotConfineError(answer or "a process that was confined on trial has died")
    return answer[1:].split("\n") if len(answer) > 1 else []


def _final_uid(confinement: Confinement) -> int:
    return confinement.user.uid if confinement.user is not None else os.geteuid()


def _enter_files(confinement: Confinement) -> Iterator[str]:
    """Make a folder the root of all files."""
    if confinement.root is None:
        return
    root = os.path.realpath(confinement.root)
    if not os.path.isdir(root):
        raise CannotConfineError(f"cannot take {root} for the root: it is no folder")
    privileged = os.geteuid() == 0
    if privileged:
        _check(_libc.unshare(_CLONE_NEWNS), "make a mount namespace")
    else:
        uid, gid = os.geteuid(), os.getegid()
        _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # else the files below belong to root
        _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "make a user namespace, as who is not root must")
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _mount(b"", b"/", b"", _MS_REC | _MS_PRIVATE)
    folder = os.fsencode(root)
    _mount(folder, folder, b"", _MS_BIND | _MS_REC)
    os.chdir(root)
    _mount_devices()
    if privileged and os.path.isdir("proc"):
        _mount(b"proc", b"proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, b"hidepid=invisible")
    number = SYSCALLS["pivot_root"].numbers[native_arch()]
    _check(_libc.syscall(number, b".", b"."), "make it the root")
    _check(_libc.umount2(b".", _MNT_DETACH), "leave the old root")
    os.chdir("/")
    if not privileged:
        _drop_capabilities()
    yield f"root {root} by a mount namespace{'' if privileged else ' in a user namespace'}"


def _mount_devices() -> None:
    """Give the root's /dev, if it has one, the devices that every program expects."""
    if not os.path.isdir("dev"):
        return
    sources = [name for name in _DEVICES if stat.S_ISCHR(_mode(f"/dev/{name}"))]
    _mount(b"tmpfs", b"dev", b"tmpfs", _MS_NOSUID | _MS_NOEXEC, b"mode=755,size=64k")
    for name in sources:
        os.close(os.open(f"dev/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        _mount(f"/dev/{name}".encode(), f"dev/{name}".encode(), b"", _MS_BIND)


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0


def _mount(source: bytes, target: bytes, kind: bytes, flags: int, data: bytes = b"") -> None:
    _check(_libc.mount(source, target, kind, ctypes.c_ulong(flags), data), f"mount {os.fsdecode(target)}")


def _become(user: User) -> None:
    for fd in (0, 1, 2):
        if os.isatty(fd):
            os.fchown(fd, user.uid, -1)  # as login(1) does, so that /dev/tty can be opened
    if os.geteuid() == user.uid:
        return
    try:
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as error:
        raise CannotConfineError(f"cannot serve as user {user.uid}: {error.strerror}") from error


def _drop_capabilities() -> None:
    """Give up what a user namespace has given."""
    number = SYSCALLS["capset"].numbers[native_arch()]
    _check(_libc.syscall(number, _CAPABILITY_VERSION, bytes(24)), "give up capabilities")


def _restrict(confinement: Confinement) -> Iterator[str]:
    handled, allowed, scoped = Right(0), [], SCOPE_SIGNALS
    if confinement.read_only:
        handled |= CHANGES
        allowed += [(path, Right.WRITE_FILE | Right.TRUNCATE) for path in _WRITABLE_DEVICES]
        yield "files are read-only by Landlock"
    if confinement.exec is not None:
        handled |= Right.EXECUTE
        allowed += [(path, Right.EXECUTE) for path in _executables(confinement.exec)]
        yield f"{len(confinement.exec)} programs may be executed, by Landlock"
    if confinement.connect is not None:
        scoped |= SCOPE_ABSTRACT_SOCKETS
        yield f"{len(confinement.connect)} rules for connections"
    if confinement.bind is not None:
        yield f"{len(confinement.bind)} rules for binding"
    restrict(handled, allowed, scoped)


def _executables(paths: tuple[str, ...]) -> Iterator[str]:
    """Yield *paths*, and the dynamic loaders that those need, which the kernel executes too."""
    for path in paths:
        yield path
        try:
            interpreter = read_elf_header(path).interpreter
        except (GoAbiError, OSError):
            continue  # a script, whose interpreter must be named as well, or nothing
        if interpreter is not None:
            yield interpreter


def _rules(confinement: Confinement) -> Iterator[Rule]:
    arch = native_arch()
    for name in _DANGEROUS:
        if arch in SYSCALLS[name].numbers:
            yield Rule(SYSCALLS[name].numbers[arch], Verdict.DENY, errno=1)
    new_user = OnlyIf(0, _CLONE_NEWUSER, _CLONE_NEWUSER)
    yield Rule(SYSCALLS["clone"].numbers[arch], Verdict.DENY, new_user, errno=1)
    yield Rule(SYSCALLS["clone3"].numbers[arch], Verdict.DENY)  # ENOSYS: libraries fall back to clone
    if confinement.read_only:
        for name in _METADATA:
            if arch in SYSCALLS[name].numbers:
                yield Rule(SYSCALLS[name].numbers[arch], Verdict.DENY, errno=30)


def _check(result: int, what: str) -> None:
    if result < 0:
        raise CannotConfineError(f"cannot {what}: {os.strerror(ctypes.get_errno())}")
