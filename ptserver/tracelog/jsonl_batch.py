"""Writes many calls at once as JSON lines, to the letter as `JsonLinesSink` writes them one by one.

A line is joined from texts that are known already (what does not change from call to call, small numbers, stacks) and
columns of texts that are made all at once. Tests compare the two ways for all calls of the table.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat

import msgspec

from ptserver.tracelog.batch import MOSTLY_REPEATED, CallBatch, Remembered
from ptserver.tracelog.events import Frame
from stepping.ring_batch import CallGroup
from stepping.syscalls.decode_columns import ColumnPlan
from stepping.syscalls.decode_values import Data, Node, to_plain
from stepping.syscalls.errno_names import errno_name, is_restart
from stepping.syscalls.model import Arch, Syscall

#: Stands between strings that are encoded together; JSON leaves it as it is.
_SEPARATOR = b"\x7f"

_MAX_ERRNO = 4095
_encode = msgspec.json.Encoder().encode


class JsonBatches:
    """Encodes batches. limit: how many bytes of a buffer are written; encode_stack: makes a stack's JSON array."""

    def __init__(self, arch: Arch, limit: int, encode_stack: Callable[[tuple[Frame, ...]], bytes]) -> None:
        self._arch: Arch = arch
        self._limit = limit
        self._encode_stack = encode_stack
        self._name_stack: Callable[[bytes], tuple[Frame, ...]] | None = None
        self._plans: dict[tuple[str, int], _Plan] = {}
        self._durations: Remembered[int, str] = Remembered(lambda duration: f',"duration_ns":{duration}')
        self._results = Remembered(_result)
        self._goids: Remembered[int, str] = Remembered(lambda goid: f',"goid":{goid}' if goid else "")
        self._ends: Remembered[int, str] = Remembered(lambda goid: f',"goid":{goid}}}\n' if goid else "}\n")
        self._stacks = Remembered(self._stack_field)

    def lines(self, batch: CallBatch) -> list[str]:
        """Return the lines of the calls, in their order, with newlines."""
        self._name_stack = batch.name_stack
        lines = [""] * batch.records.size
        for group in batch.records.groups():
            made = self._group(batch, group)
            if len(group.indexes) == len(lines):
                return made
            for index, line in zip(group.indexes, made, strict=True):
                lines[index] = line
        return lines

    def _group(self, batch: CallBatch, group: CallGroup) -> list[str]:
        records = batch.records
        plan = self._plans.get((group.row.name, records.pid))
        if plan is None:
            plan = _Plan(group.row, records.pid, self._arch, self._limit)
            self._plans[group.row.name, records.pid] = plan
        pieces: list[Iterable[str]] = [
            repeat('{"type":"syscall","start_ns":'),
            list(map(str, group.pick(records.start_ns))),
            self._durations.of(group.pick(records.duration_ns)),
            plan.heads.of(group.pick(records.tids)),
            *plan.arguments.columns(group),
            self._results.of(group.values),
        ]
        goids = group.pick(records.goids)
        if batch.name_stack is None:
            pieces.append(self._ends.of(goids))
        else:
            pieces += (self._goids.of(goids), self._stacks.of(group.pick(records.stacks)))
        return list(map("".join, zip(*pieces, strict=False)))

    def _stack_field(self, stack: bytes) -> str:
        frames = self._name_stack(stack) if self._name_stack is not None else ()
        return f',"stack":{self._encode_stack(frames).decode()}}}\n' if frames else "}\n"


class _Plan:
    """What the lines of one call have in common."""

    def __init__(self, row: Syscall, pid: int, arch: Arch, limit: int) -> None:
        self.heads: Remembered[int, str] = Remembered(
            lambda tid: f',"pid":{pid},"tid":{tid},"name":"{row.name}","args":{{'
        )
        self.arguments = ColumnPlan(
            row, lambda name, position: _JsonRenderer(f'{"," if position else ""}"{name}":', limit), arch
        )


def _result(value: int) -> str:
    if -_MAX_ERRNO <= value < 0:
        shown = "null" if is_restart(-value) else "-1"
        return f'}},"value":{shown},"errno":"{errno_name(-value)}"'
    return f'}},"value":{value}'


class _JsonRenderer:
    """Makes the JSON of an argument with its label. No call lacks its first argument: commas come out right."""

    def __init__(self, label: str, limit: int) -> None:
        self._label = label
        self._limit = limit
        self._numbers: Remembered[int, str] = Remembered(lambda number: f"{label}{number}")

    def absent(self) -> str:
        return ""

    def node(self, node: Node) -> str:
        return self._label + _encode(to_plain(node, self._limit)).decode()

    def numbers(self, numbers: Sequence[int]) -> Sequence[str]:
        if max(numbers) < MOSTLY_REPEATED:
            return self._numbers.of(numbers)
        label = self._label
        return [f"{label}{number}" for number in numbers]

    def addresses(self, addresses: Sequence[int]) -> Sequence[str]:
        label = self._label
        return [f'{label}"{address:#x}"' if address else f"{label}null" for address in addresses]

    def buffers(self, contents: Sequence[bytes], sizes: Sequence[int]) -> list[str]:
        label, limit = self._label, self._limit
        cut = [content[:limit] for content in contents]
        texts = _encode_strings(cut)
        if texts is None:
            return [self.node(Data(content, size)) for content, size in zip(contents, sizes, strict=True)]
        return [
            f'{label}"{text}"'
            if size <= len(shown) and len(content) <= limit
            else f'{label}{{"text":"{text}","size":{max(size, len(content))}}}'
            for text, shown, content, size in zip(texts, cut, contents, sizes, strict=True)
        ]


def _encode_strings(strings: Sequence[bytes]) -> list[str] | None:
    """Return what stands between the quotes of each string in JSON; None if they cannot be encoded together."""
    joined = _SEPARATOR.join(strings)
    if joined.count(_SEPARATOR) != len(strings) - 1:
        return None
    try:
        text = joined.decode()
    except UnicodeDecodeError:
        return None
    return _encode(text)[1:-1].decode().split(_SEPARATOR.decode())
