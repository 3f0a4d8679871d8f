"""Does on a thread of its own what takes long, while a poll loop goes on."""

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from ptserver.errors import ConnectError, PtServerError
from ptserver.net.poll_loop import PollLoop

T = TypeVar("T")


def meanwhile(
    loop: PollLoop, what: str, work: Callable[[], T], then: Callable[[T | PtServerError], None]
) -> None:
    """Have *loop* call *then* with what *work* gives, or with why it failed. what: what it is about, for users."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    found: list[T | PtServerError] = []

    def run() -> None:
        try:
            found.append(work())
        except PtServerError as error:
            found.append(error)
        except OSError as error:  # no descriptor or process for it
            found.append(ConnectError(f"{what} cannot be reached: {error.strerror or error}"))
        finally:
            os.close(writing)

    def take() -> None:
        loop.unwatch(reading)
        os.close(reading)
        thread.join()
        then(found[0])

    loop.watch(reading, take)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
