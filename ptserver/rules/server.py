"""What the local part of a program's resources wants of its host: to reach the server, and to answer calls."""

from collections.abc import Callable, Iterator

from ptserver.hosts.pending_call import PendingCall
from ptserver.messages import Cancel, Message, Result, Syscall
from stepping.syscalls.marshal import Args

Then = Callable[[Result], None]
#: Hears of the value and the errno of a call.
Hook = Callable[[int, int], None]


class Server:
    """The server, as the local part sees it.

    ids: for calls; asked: what hears of the results of calls that are not the program's own, by id; tell: sends;
    answer: lets a call of the program return; forward: has the server make it as it is; say: tells the user a line.
    """

    def __init__(
        self,
        ids: Iterator[int],
        asked: dict[int, Then],
        tell: Callable[[Message], None],
        answer: Callable[[PendingCall, int, int, dict[int, bytes]], None],
        forward: Callable[[PendingCall], None],
        say: Callable[[str], None],
    ) -> None:
        self._ids = ids
        self._asked = asked
        self._tell = tell
        self.answer = answer
        self.forward = forward
        self._say = say
        self._said: set[str] = set()
        self._hooks: dict[int, Hook] = {}

    def ask(
        self,
        call: PendingCall,
        name: str,
        args: Args,
        ins: dict[int, bytes],
        outs: dict[int, int],
        then: Then,
    ) -> int:
        """Have the server make another call in the place of *call*; return its id."""
        call_id = next(self._ids)
        self._asked[call_id] = then
        self._tell(Syscall(call_id, call.tid, call.process.id, name, args, ins, outs, call.goid))
        return call_id

    def cancel(self, call_id: int) -> None:
        """Have the server answer soon what was asked."""
        if call_id in self._asked:
            self._tell(Cancel(call_id))

    def watch(self, call: PendingCall, hook: Hook) -> None:
        """Have *hook* hear of the result of a call, before the program does."""
        self._hooks[call.id] = hook

    def heard(self, call: PendingCall, value: int, failure: int) -> None:
        """Tell who watches *call* of its result."""
        hook = self._hooks.pop(call.id, None)
        if hook is not None:
            hook(value, failure)

    def warn(self, text: str) -> None:
        """Tell the user, once for each text."""
        if text not in self._said:
            self._said.add(text)
            self._say(text)
