"""Writes many calls at once as text, to the letter as `TextSink` writes them one by one: tests compare them."""

from collections.abc import Callable, Iterable, Sequence

from ptserver.tracelog.batch import MOSTLY_REPEATED, CallBatch, Remembered
from ptserver.tracelog.events import Frame
from stepping.ring_batch import CallGroup
from stepping.syscalls.decode import format_result
from stepping.syscalls.decode_columns import ColumnPlan
from stepping.syscalls.decode_special import SPECIAL_RESULTS
from stepping.syscalls.decode_values import Data, Node, to_text
from stepping.syscalls.model import Arch, Syscall

_MAX_ERRNO = 4095


class TextBatches:
    """Makes lines. The functions say how parts of a line look: the thread and goroutine, by their numbers (0: no
    goroutine); the call, by its name and arguments; the result; the duration; a stack.
    """

    def __init__(
        self,
        arch: Arch,
        limit: int,
        *,
        who: Callable[[tuple[int, int]], str],
        call: Callable[[str, str], str],
        result: Callable[[str, bool], str],
        duration: Callable[[int], str],
        stack: Callable[[tuple[Frame, ...]], str],
    ) -> None:
        self._arch: Arch = arch
        self._limit = limit
        self._who = Remembered(who)
        self._call = call
        self._result = result
        self._durations = Remembered(duration)
        self._stack = stack
        self._name_stack: Callable[[bytes], tuple[Frame, ...]] | None = None
        self._stacks = Remembered(self._stack_text)
        self._plans: dict[str, _Plan] = {}

    def lines(self, batch: CallBatch) -> list[str]:
        """Return the lines of the calls, in their order, with newlines."""
        self._name_stack = batch.name_stack
        lines = [""] * batch.records.size
        for group in batch.records.groups():
            for index, line in zip(group.indexes, self._group(batch, group), strict=True):
                lines[index] = line
        return lines

    def _group(self, batch: CallBatch, group: CallGroup) -> Iterable[str]:
        records, name = batch.records, group.row.name
        plan = self._plans.get(name)
        if plan is None:
            plan = self._plans[name] = _Plan(group.row, self._arch, self._limit, self._result)
        who = self._who.of(list(zip(group.pick(records.tids), group.pick(records.goids), strict=True)))
        columns = plan.arguments.columns(group)
        arguments = map("".join, zip(*columns, strict=True)) if columns else [""] * len(group.indexes)
        call = self._call
        parts: list[Iterable[str]] = [
            who,
            [call(name, text) for text in arguments],
            plan.results_of(group),
            self._durations.of(group.pick(records.duration_ns)),
        ]
        if batch.name_stack is not None:
            parts.append(self._stacks.of(group.pick(records.stacks)))
        parts.append(["\n"] * len(group.indexes))
        return map("".join, zip(*parts, strict=True))

    def _stack_text(self, stack: bytes) -> str:
        return self._stack(self._name_stack(stack)) if self._name_stack is not None else ""


class _Plan:
    """What the lines of one call have in common."""

    def __init__(self, row: Syscall, arch: Arch, limit: int, result: Callable[[str, bool], str]) -> None:
        self._row = row
        self._result = result
        self._results = Remembered(self._result_of)
        self.arguments = ColumnPlan(
            row, lambda name, position: _TextRenderer(", " if position else "", limit), arch
        )

    def results_of(self, group: CallGroup) -> list[str]:
        """Return the results, with what stands before them."""
        if self._row.name not in SPECIAL_RESULTS:
            return self._results.of(group.values)
        results = []
        for position in range(len(group.indexes)):
            args, _, _, value, errno = group.call(position)
            results.append(self._result(format_result(self._row, args, value, errno), errno != 0))
        return results

    def _result_of(self, value: int) -> str:
        if -_MAX_ERRNO <= value < 0:
            return self._result(format_result(self._row, (), -1, -value), True)
        return self._result(format_result(self._row, (), value, 0), False)


class _TextRenderer:
    """Makes the text of an argument, what divides it from the one before included."""

    def __init__(self, divider: str, limit: int) -> None:
        self._divider = divider
        self._limit = limit
        self._numbers: Remembered[int, str] = Remembered(lambda number: f"{divider}{number}")

    def absent(self) -> str:
        return ""

    def node(self, node: Node) -> str:
        return self._divider + to_text(node, self._limit)

    def numbers(self, numbers: Sequence[int]) -> Sequence[str]:
        if max(numbers) < MOSTLY_REPEATED:
            return self._numbers.of(numbers)
        divider = self._divider
        return [f"{divider}{number}" for number in numbers]

    def addresses(self, addresses: Sequence[int]) -> Sequence[str]:
        divider = self._divider
        return [f"{divider}{address:#x}" if address else f"{divider}NULL" for address in addresses]

    def buffers(self, contents: Sequence[bytes], sizes: Sequence[int]) -> list[str]:
        return [self.node(Data(content, size)) for content, size in zip(contents, sizes, strict=True)]
