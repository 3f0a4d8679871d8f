"""What decoded arguments are made of, and how they look: as text in strace's manner, and as plain JSON values.

A decoder returns a `Node`, which means the same for both forms. Numbers, lists and None (a null pointer) are
themselves; text that the program wrote is `bytes`; everything else is one of the classes below.
"""

import re
from binascii import b2a_base64
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

#: A decoded value: None, int, bytes, list of nodes, or one of this module's classes.
Node: TypeAlias = Any

#: What a node is in JSON: only plain dicts, lists, strings, numbers, booleans and None.
Plain: TypeAlias = dict[str, Any] | list[Any] | str | int | None


class Hex(int):
    """A number that is read in base 16: an address, unknown flags. A string in JSON, as it may need 64 bits."""


class Octal(int):
    """A number that is read in base 8: permissions."""


class Symbol(str):
    """A name of the kernel's: AT_FDCWD, SEEK_SET."""

    __slots__ = ()


class Flags(tuple[str, ...]):
    """Names of flags that are set together. Empty means 0."""

    __slots__ = ()


class Whole(bytes):
    """Text of the program that is never cut: a file name."""

    __slots__ = ()


class Data(NamedTuple):
    """A buffer of *size* bytes, of which *data* is the beginning."""

    data: bytes
    size: int


class Vector(NamedTuple):
    """What is in an array of iovec: how many *buffers*, and their bytes joined."""

    data: Data
    buffers: int


class Record(NamedTuple):
    """A struct. brief: the fields that text shows, or None for all."""

    fields: dict[str, Node]
    brief: frozenset[str] | None = None


class Change(NamedTuple):
    """A buffer that the call changed."""

    before: Node
    after: Node


class Partial(NamedTuple):
    """What the beginning of a buffer of *size* bytes holds; the rest was not taken."""

    node: Node
    size: int


class Shown(NamedTuple):
    """A value whose text is not made from its parts."""

    text: str
    value: Node


def to_text(node: Node, limit: int) -> str:
    """Return *node* as strace would print it; at most *limit* bytes of a string and items of a list."""
    return _TEXT[type(node)](node, limit)


def to_plain(node: Node, limit: int) -> Plain:
    """Return *node* as a JSON value; at most *limit* bytes of a string.

    Bytes are a string if they are whole and UTF-8; else an object with `text` or `base64` and, if they were
    cut, `size`: how many there were.
    """
    return _PLAIN[type(node)](node, limit)


def quote(data: bytes) -> str:
    """Return *data* between quotes, with C's escapes for all that is not printable ASCII."""
    text = data.decode("latin-1")
    if "\\" in text:
        text = text.replace("\\", "\\\\")
    if '"' in text:
        text = text.replace('"', '\\"')
    if "\n" in text:
        text = text.replace("\n", "\\n")
    if not (text.isascii() and text.isprintable()):
        text = text.translate(_ESCAPES)
        if "\\0" in text:
            text = re.sub(_LONG_OCTAL, _shorten, text)
    return f'"{text}"'


def _shorten(match: re.Match[str]) -> str:
    digits = match[1]
    return match[0] if digits == "\\" else "\\" + (digits.lstrip("0") or "0")


_ESCAPES = {code: f"\\{code:03o}" for code in (*range(32), *range(127, 256))} | {
    9: "\\t",
    11: "\\v",
    12: "\\f",
    13: "\\r",
}
#: An octal escape with leading zeros that can go, as no digit follows; or an escaped backslash.
_LONG_OCTAL = r"\\(\\|0[0-7]{2}(?![0-9]))"


def _text_of_bytes(node: bytes, limit: int) -> str:
    return quote(node) if len(node) <= limit else quote(node[:limit]) + "..."


def _text_of_data(node: Data, limit: int) -> str:
    data = node.data
    if len(data) <= limit:
        return quote(data) if node.size <= len(data) else quote(data) + "..."
    return quote(data[:limit]) + "..."


def _text_of_vector(node: Vector, limit: int) -> str:
    data = _text_of_data(node.data, limit)
    if node.buffers == 1:
        return f"[{{iov_base={data}, iov_len={node.data.size}}}]"
    return f"[{data} /* in {node.buffers} buffers */]"


def _text_of_list(node: list[Node], limit: int) -> str:
    items = [to_text(item, limit) for item in node[:limit]]
    if len(node) > limit:
        items.append("...")
    return f"[{', '.join(items)}]"


def _text_of_record(node: Record, limit: int) -> str:
    brief = node.brief
    items = [
        f"{name}={to_text(value, limit)}"
        for name, value in node.fields.items()
        if brief is None or name in brief
    ]
    if len(items) < len(node.fields):
        items.append("...")
    return f"{{{', '.join(items)}}}"


def _text_of_change(node: Change, limit: int) -> str:
    before, after = to_text(node.before, limit), to_text(node.after, limit)
    if before == after:
        return before
    if type(node.before) is type(node.after) is list and len(node.before) == len(node.after) == 1:
        return f"{before[:-1]} => {after[1:]}"
    return f"{before} => {after}"


_TEXT: dict[type, Callable[[Any, int], str]] = {
    type(None): lambda node, limit: "NULL",
    int: lambda node, limit: str(node),
    Hex: lambda node, limit: hex(node) if node else "0",
    Octal: lambda node, limit: f"0{node:o}" if node else "0",
    Symbol: lambda node, limit: str(node),
    Flags: lambda node, limit: "|".join(node) or "0",
    bytes: _text_of_bytes,
    Whole: lambda node, limit: quote(node),
    Data: _text_of_data,
    Vector: _text_of_vector,
    list: _text_of_list,
    Record: _text_of_record,
    Change: _text_of_change,
    Partial: lambda node, limit: to_text(node.node, limit) + "...",
    Shown: lambda node, limit: node.text,
}


def _plain_of_bytes(node: bytes, limit: int) -> Plain:
    return _plain_of_part(node[:limit], len(node))


def _plain_of_data(node: Data, limit: int) -> Plain:
    return _plain_of_part(node.data[:limit], max(node.size, len(node.data)))


def _plain_of_part(data: bytes, size: int) -> Plain:
    cut = size > len(data)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if not (cut and error.end == len(data) and len(data) - error.start < 4):
            encoded = b2a_base64(data, newline=False).decode()
            return {"base64": encoded, "size": size} if cut else {"base64": encoded}
        text = data[: error.start].decode()  # a character was cut in two
    return {"text": text, "size": size} if cut else text


def _plain_of_change(node: Change, limit: int) -> Plain:
    return {"before": to_plain(node.before, limit), "after": to_plain(node.after, limit)}


_PLAIN: dict[type, Callable[[Any, int], Plain]] = {
    type(None): lambda node, limit: None,
    int: lambda node, limit: node,
    Hex: lambda node, limit: hex(node),
    Octal: lambda node, limit: f"0{node:o}" if node else "0",
    Symbol: lambda node, limit: str(node),
    Flags: lambda node, limit: list(node),
    bytes: _plain_of_bytes,
    Whole: lambda node, limit: _plain_of_part(node, len(node)),
    Data: _plain_of_data,
    Vector: lambda node, limit: _plain_of_data(node.data, limit),
    list: lambda node, limit: [to_plain(item, limit) for item in node],
    Record: lambda node, limit: {name: to_plain(value, limit) for name, value in node.fields.items()},
    Change: _plain_of_change,
    Partial: lambda node, limit: {"part": to_plain(node.node, limit), "size": node.size},
    Shown: lambda node, limit: to_plain(node.value, limit),
}
