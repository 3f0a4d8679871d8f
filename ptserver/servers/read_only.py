"""A sandbox in which the program can read what it likes and change no file."""

import errno
import os

from ptserver.server import Call, Outcome, RuntimeServer

_CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
#: Not files, and needed by nearly every program.
_DEVICES = frozenset({"/dev/null", "/dev/tty"})


class ReadOnly(RuntimeServer):
    """Whatever would change the file system fails with EROFS. Pipes, standard streams and devices are writable."""

    name = "read_only"

    def openat(self, call: Call) -> Outcome:
        """Open for reading only."""
        if call.flags & _CHANGES and call.path not in _DEVICES:
            return call.fail(errno.EROFS)
        return call.proceed(path=call.path)  # the path that was looked at, not what is in memory by then

    def refuse(self, call: Call) -> Outcome:
        """Fail as a file system that is mounted read-only does."""
        return call.fail(errno.EROFS)

    def hide(self, call: Call) -> Outcome:
        """Fail as a kernel does that has no such call; programs then use an older one."""
        return call.fail(errno.ENOSYS)

    open = openat
    creat = mkdir = mkdirat = rmdir = unlink = unlinkat = rename = renameat = renameat2 = refuse
    link = linkat = symlink = symlinkat = mknod = mknodat = truncate = ftruncate = fallocate = refuse
    chmod = fchmod = fchmodat = fchmodat2 = chown = fchown = lchown = fchownat = refuse
    utime = utimes = futimesat = utimensat = file_setattr = refuse
    setxattr = lsetxattr = fsetxattr = setxattrat = refuse
    removexattr = lremovexattr = fremovexattr = removexattrat = refuse
    mount = umount2 = pivot_root = move_mount = fsmount = mount_setattr = refuse
    openat2 = open_by_handle_at = io_uring_setup = hide

    def ioctl(self, call: Call) -> Outcome:
        """Refuse what changes a file's attributes: FS_IOC_SETFLAGS and FS_IOC_FSSETXATTR."""
        return self.refuse(call) if call.request in (0x40086602, 0x401C5820) else call.proceed()
