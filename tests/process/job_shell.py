"""A shell with one job: starts a command at its terminal, stops when it stops, resumes it when told.

Arguments: descriptor to report on, descriptor to read orders from, command. Reports "stopped N", "exited N",
"signaled N"; after a stop, also the terminal's settings. Orders: "fg".
"""

import os
import signal
import sys
import termios


def main() -> None:
    reports, orders = os.fdopen(int(sys.argv[1]), "w"), os.fdopen(int(sys.argv[2]))
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    job = os.fork()
    if job == 0:
        os.setpgid(0, 0)
        os.tcsetpgrp(terminal, os.getpid())
        for number in (signal.SIGTTOU, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(sys.argv[3], sys.argv[3:])
    while True:
        _, status = os.waitpid(job, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            break
        os.tcsetpgrp(terminal, os.getpgrp())
        print("stopped", os.WSTOPSIG(status), settings(terminal), file=reports, flush=True)
        if not orders.readline():
            os.killpg(job, signal.SIGKILL)
            continue
        os.tcsetpgrp(terminal, job)
        os.killpg(job, signal.SIGCONT)
    code = os.waitstatus_to_exitcode(status)
    os.tcsetpgrp(terminal, os.getpgrp())
    print("exited" if code >= 0 else "signaled", abs(code), settings(terminal), file=reports, flush=True)


def settings(terminal: int) -> str:
    """Whether the terminal is as a shell needs it."""
    flags = termios.tcgetattr(terminal)[3]
    return "cooked" if flags & termios.ICANON and flags & termios.ECHO else "raw"


main()
