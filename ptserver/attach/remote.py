"""Snapshots of a session that runs elsewhere, as the host of the session makes them. A `Source` of `attach.watch`."""

import msgspec

from ptserver.attach.snapshot import Snapshot, decode
from ptserver.errors import ConnectionLostError
from ptserver.inspection.goroutine_list import Selection
from ptserver.messages import SessionFacts, Watch, WatchedRows
from ptserver.watching.watcher import NoSessionError, Watcher


class RemoteSource:
    """Watches the session *facts* by *watcher*, which it closes in the end. exact: measure the time blocked."""

    def __init__(
        self,
        watcher: Watcher,
        facts: SessionFacts,
        selection: Selection,
        interval_seconds: float,
        *,
        exact: bool = False,
    ) -> None:
        self._watcher = watcher
        self._facts = facts
        self._snapshots: list[Snapshot] = []
        self._last = Snapshot(title=facts.program, pid=0, monotonic_ns=0, interval_ns=1)
        self._ended = ""
        self._lost = 0
        self._watch = watcher.begin(
            Watch(
                1,
                "attach",
                facts.id,
                interval_ms=round(interval_seconds * 1000),
                system=selection.system,
                states=tuple(selection.states),
                function=selection.function.pattern if selection.function is not None else "",
                exact=exact,
            )
        )

    def fileno(self) -> int:
        """Return the descriptor of the connection."""
        return self._watcher.fileno()

    def poll(self) -> bool:
        """Take what has come.

        Raises:
            NoSessionError: the host cannot tell.
        """
        try:
            for told in self._watcher.receive():
                if isinstance(told, WatchedRows):
                    self._lost += told.lost
                    self._snapshots += [decode(row) for row in told.rows]
                elif told.id == self._watch and not self._ended:
                    if getattr(told, "problem", ""):
                        raise NoSessionError(told.problem)  # type: ignore[union-attr]
                    self._ended = "the program has ended"
        except ConnectionLostError as error:
            self._ended = str(error)
        except msgspec.DecodeError as error:
            raise NoSessionError(
                "the host is another version of ptserver, whose snapshots are not known"
            ) from error
        return False

    def ended(self) -> str:
        """Return why there will be no more, "" while there will, or some wait."""
        return "" if self._snapshots else self._ended

    @property
    def is_ready(self) -> bool:
        """Whether a snapshot waits."""
        return bool(self._snapshots)

    def snapshot(self, ended: str = "") -> Snapshot:
        """Return the next one, or the last once more when there are none."""
        if self._snapshots:
            self._last = self._snapshots.pop(0)
        lost = (f"{self._lost} intervals are missing: this end is too slow",) if self._lost else ()
        where = f"session {self._facts.id} on {self._facts.hostname}: {self._last.title}"
        return msgspec.structs.replace(
            self._last, title=where, notes=(*self._last.notes, *lost), ended=ended or self._last.ended
        )

    def close(self) -> None:
        """Close the connection."""
        self._watcher.close()
