"""Decodes the arguments of many calls of one kind at once, to the very nodes that `decode` makes one by one.

What an argument shows depends, as a rule, on one register or on the bytes that were copied for it. So a column of
arguments is rendered by a table look-up per call, and what is not in the table yet is decoded and remembered. Plain
numbers, addresses and buffers, which rarely repeat, are rendered directly. What depends on more than that is decoded
call by call.

    plan = ColumnPlan(row, renderer_of)
    for fragments in plan.columns(group): ...     one fragment per call

Not trusted: registers and bytes. Thread rules: a plan belongs to one thread.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Generic, Protocol, TypeVar

from stepping.syscalls.decode import ABSENT, Getter, argument_getters
from stepping.syscalls.decode_buffers import find_buffer
from stepping.syscalls.decode_scalars import find_scalar
from stepping.syscalls.decode_special import SPECIAL_ARGUMENTS, special_registers
from stepping.syscalls.decode_values import Node
from stepping.syscalls.model import RESULT, Arch, Arg, ArgKind, Syscall

_MAX_ERRNO = 4095

#: How many fragments are remembered per argument.
_MAX_REMEMBERED = 1 << 16

_NO_REGISTERS = (0,) * 6
_NOTHING: Mapping[int, bytes] = {}

F = TypeVar("F")
K = TypeVar("K")


class Renderer(Protocol[F]):
    """Makes the fragments of one argument: text, JSON, protobuf, with all that stands around it."""

    def absent(self) -> F:
        """Return the fragment of a call that has no such argument."""

    def node(self, node: Node) -> F:
        """Return the fragment of any node."""

    def numbers(self, numbers: Sequence[int]) -> Sequence[F]:
        """Return the fragments of plain numbers."""

    def addresses(self, addresses: Sequence[int]) -> Sequence[F]:
        """Return the fragments of `Hex` numbers, and of None for 0."""

    def buffers(self, contents: Sequence[bytes], sizes: Sequence[int]) -> list[F]:
        """Return the fragments of `Data`."""


class CallColumns(Protocol):
    """Calls of one kind by columns; `stepping.ring_batch.CallGroup` is one."""

    @property
    def values(self) -> Sequence[int]:
        """The results as the kernel returned them."""

    def args(self, index: int) -> Sequence[int]:
        """Return register *index* of each call."""

    def data(self, arg: int, *, filled: bool) -> list[bytes] | None:
        """Return the bytes at argument *arg* of each call, empty where there are none; None if there never are."""

    def call(
        self, position: int
    ) -> tuple[tuple[int, ...], Mapping[int, bytes], Mapping[int, bytes], int, int]:
        """Return args, ins, outs, value and errno of one call."""


class _Kind(Enum):
    """What an argument's fragment depends on."""

    NUMBER = auto()  # its register, of which every value is shown as itself
    ADDRESS = auto()
    REGISTERS = auto()  # one register or several
    READ = auto()  # bytes that the call reads
    FILLED = auto()  # bytes that it fills
    BUFFERS = auto()  # all that its pointer leads to, if that was copied; else its register
    REQUEST = auto()  # the same, or the registers
    CALL = auto()


_READ_KINDS = frozenset({ArgKind.IN, ArgKind.PATH, ArgKind.STR})
_FILLED_KINDS = frozenset({ArgKind.OUT, ArgKind.MSG_OUT, ArgKind.MMSG_OUT})
_REGISTER_KINDS = frozenset(
    {
        ArgKind.INT,
        ArgKind.UINT,
        ArgKind.LONG,
        ArgKind.SIZE,
        ArgKind.FD,
        ArgKind.DIRFD,
        ArgKind.PTR,
    }
)
_WIDE = frozenset({ArgKind.LONG, ArgKind.SIZE})
_SIGNED = frozenset({ArgKind.INT, ArgKind.FD, ArgKind.LONG})


class _Argument(Generic[F]):
    """One argument. Its fragments are remembered by what they depend on."""

    def __init__(
        self, index: int, arg: Arg, row: Syscall, getter: Getter, renderer: Renderer[F], arch: Arch
    ) -> None:
        self._index = index
        self._arg = arg
        self._row = row
        self._get = getter
        self._renderer = renderer
        self._arch = arch
        self._kind, self._registers = _classify(row, index, arg, arch)
        self._known: dict[object, F] = {}
        self._decodes = bool(arg.decoder) and find_buffer(arg.decoder, arch) is not None

    def column(self, calls: CallColumns) -> Sequence[F]:
        """Return the fragment of each call."""
        if len(self._known) > _MAX_REMEMBERED:
            self._known.clear()
        match self._kind:
            case _Kind.NUMBER:
                return self._numbers(calls.args(self._index))
            case _Kind.ADDRESS:
                return self._renderer.addresses(calls.args(self._index))
            case _Kind.REGISTERS:
                return self._by_registers(calls)
            case _Kind.READ:
                contents = calls.data(self._index, filled=False)
                if contents is None:
                    return self._renderer.addresses(calls.args(self._index))
                return self._read(calls, contents)
            case _Kind.FILLED:
                return self._filled(calls, calls.data(self._index, filled=True))
            case _Kind.BUFFERS if self._is_uncopied(calls):
                return self._renderer.addresses(calls.args(self._index))
            case _Kind.REQUEST if self._is_uncopied(calls):
                return self._by_registers(calls)
            case _:
                return [self._one(calls, position) for position in range(len(calls.values))]

    def _is_uncopied(self, calls: CallColumns) -> bool:
        return all(calls.data(self._index, filled=filled) is None for filled in (False, True))

    def _numbers(self, column: Sequence[int]) -> Sequence[F]:
        kind = self._arg.kind
        if kind not in _WIDE:
            top = 1 << 31 if kind in _SIGNED else 1 << 32
            if max(column) >= top:
                column = [_low_half(value, signed=kind in _SIGNED) for value in column]
        elif kind in _SIGNED and max(column) >= 1 << 63:
            column = [value - (1 << 64) if value >> 63 else value for value in column]
        return self._renderer.numbers(column)

    def _by_registers(self, calls: CallColumns) -> Sequence[F]:
        keys: Sequence[object]
        if len(self._registers) == 1:
            keys = calls.args(self._registers[0])
        else:
            keys = list(zip(*map(calls.args, self._registers), strict=True))
        known = self._known
        for key in set(keys):
            if key in known:
                continue
            args = [0] * 6
            for register, value in zip(self._registers, key if type(key) is tuple else (key,), strict=True):
                args[register] = value
            known[key] = self._render(self._get(args, _NOTHING, _NOTHING, 0, 0))
        return list(map(known.__getitem__, keys))

    def _read(self, calls: CallColumns, contents: list[bytes]) -> Sequence[F]:
        length = self._arg.length
        if self._decodes or self._arg.kind is not ArgKind.IN or length is None or length.arg is None:
            return self._repair(calls, contents, self._by_content(contents, self._render_read))
        size_index = length.arg
        mask = (1 << 64) - 1 if self._row.args[size_index].kind in _WIDE else (1 << 32) - 1
        sizes = [length.of(value & mask, self._arch) for value in calls.args(size_index)]
        return self._repair(calls, contents, self._renderer.buffers(contents, sizes))

    def _filled(self, calls: CallColumns, contents: list[bytes] | None) -> Sequence[F]:
        valid = self._arg.valid if self._arg.valid and self._arg.valid.arg == RESULT else None
        if contents is None:
            # A call that could have filled it and filled nothing shows an empty buffer, others an address.
            shown: list[F] = list(self._renderer.addresses(calls.args(self._index)))
            if valid is not None:
                for position, value in enumerate(calls.values):
                    if value == 0:
                        shown[position] = self._one(calls, position)
            return shown
        if min(calls.values) < 0:
            contents = [
                content if value >= 0 else b"" for content, value in zip(contents, calls.values, strict=True)
            ]
        if valid is None or self._decodes:
            keys = list(zip(contents, calls.values, strict=True))
            return self._with_unfilled(calls, contents, self._by_content(keys, self._render_filled))
        sizes = [valid.of(value, self._arch) if value > 0 else 0 for value in calls.values]
        cut = [content[:size] for content, size in zip(contents, sizes, strict=True)]
        return self._with_unfilled(calls, cut, self._renderer.buffers(cut, sizes))

    def _with_unfilled(
        self, calls: CallColumns, contents: list[bytes], fragments: Sequence[F]
    ) -> Sequence[F]:
        """Replace the fragments of calls that have filled nothing: failed ones show an address."""
        if all(contents):
            return fragments
        shown, values, addresses = list(fragments), calls.values, calls.args(self._index)
        failed = []
        for position, content in enumerate(contents):
            if not content:
                if -_MAX_ERRNO <= values[position] < 0:
                    failed.append(position)
                else:
                    shown[position] = self._one(calls, position)
        instead = self._renderer.addresses([addresses[position] for position in failed])
        for position, fragment in zip(failed, instead, strict=True):
            shown[position] = fragment
        return shown

    def _by_content(self, keys: Sequence[K], render: Callable[[K], F]) -> Sequence[F]:
        known = self._known
        for key in set(keys):
            if key not in known:
                known[key] = render(key)
        return list(map(known.__getitem__, keys))

    def _render_read(self, content: bytes) -> F:
        return self._render(self._get(_NO_REGISTERS, {self._index: content}, _NOTHING, 0, 0))

    def _render_filled(self, key: tuple[bytes, int]) -> F:
        content, value = key
        return self._render(self._get(_NO_REGISTERS, _NOTHING, {self._index: content}, value, 0))

    def _repair(self, calls: CallColumns, contents: list[bytes], fragments: Sequence[F]) -> Sequence[F]:
        """Replace the fragments of calls without bytes: what they show depends on more."""
        if all(contents):
            return fragments
        return [
            fragment if content else self._one(calls, position)
            for position, (content, fragment) in enumerate(zip(contents, fragments, strict=True))
        ]

    def _one(self, calls: CallColumns, position: int) -> F:
        return self._render(self._get(*calls.call(position)))

    def _render(self, node: Node) -> F:
        return self._renderer.absent() if node is ABSENT else self._renderer.node(node)


class ColumnPlan(Generic[F]):
    """How the arguments of one call of the table are rendered. renderer_of: gives the renderer of an argument, by its
    name and how many there are before it.
    """

    def __init__(
        self, row: Syscall, renderer_of: Callable[[str, int], Renderer[F]], arch: Arch = "amd64"
    ) -> None:
        getters = argument_getters(row, arch)
        shown = [
            (index, arg, getter)
            for index, (arg, getter) in enumerate(zip(row.args, getters, strict=True))
            if arg.decoder != "ignored"
        ]
        self._arguments = [
            _Argument(index, arg, row, getter, renderer_of(arg.name, position), arch)
            for position, (index, arg, getter) in enumerate(shown)
        ]

    def columns(self, calls: CallColumns) -> list[Sequence[F]]:
        """Return the fragments of each argument, one per call."""
        return [argument.column(calls) for argument in self._arguments]


def _classify(row: Syscall, index: int, arg: Arg, arch: Arch) -> tuple[_Kind, tuple[int, ...]]:
    registers = special_registers(row, index)
    if registers:
        return _Kind.REGISTERS, registers
    if arg.decoder in SPECIAL_ARGUMENTS:
        return _Kind.CALL, ()
    if arg.kind in _REGISTER_KINDS:
        bits = 64 if arg.kind in _WIDE or arg.kind is ArgKind.PTR else 32
        if arg.decoder and find_scalar(arg.decoder, bits, arch) is not None:
            return _Kind.REGISTERS, (index,)
        if arg.kind is ArgKind.PTR:
            return _Kind.ADDRESS, ()
        return (_Kind.REGISTERS, (index,)) if arg.kind is ArgKind.DIRFD else (_Kind.NUMBER, ())
    if arg.kind in _READ_KINDS:
        return _Kind.READ, ()
    if arg.kind in _FILLED_KINDS:
        return _Kind.FILLED, ()
    if arg.kind is ArgKind.REQUEST_ARG:
        request = arg.length.arg if arg.length and arg.length.arg is not None else 1
        return _Kind.REQUEST, (request, index)
    return _Kind.BUFFERS, ()


def _low_half(value: int, *, signed: bool) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if signed and value >> 31 else value
