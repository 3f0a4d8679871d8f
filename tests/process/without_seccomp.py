"""Execute a command in a sandbox that forbids seccomp(2), as some containers do."""

import errno
import os
import sys

from stepping.seccomp import Rule, Verdict, assemble, install
from stepping.syscalls import SYSCALLS

forbidden = [Rule(SYSCALLS["seccomp"].numbers["amd64"], Verdict.DENY, errno=errno.EPERM)]
install(assemble(forbidden, "amd64"), listener=False)
os.execvp(sys.argv[1], sys.argv[1:])
