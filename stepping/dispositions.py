"""Signal dispositions that a program inherits from whoever starts it. Source: execve(2), signal(7)."""

import signal


def restore_ignored_signals() -> None:
    """Give this process the dispositions that programs expect, and that Python took from it at its start."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
