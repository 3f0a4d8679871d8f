"""How the debugger's answers look: stops, registers, code with its source, memory, stacks, goroutines, values."""

import linecache
import os
from collections.abc import Iterator

from goabi.errors import GoAbiError
from goabi.goroutine import GoStatus
from goabi.unwind import Unwinder
from goabi.values import (
    GoChan,
    GoFunc,
    GoInterface,
    GoMap,
    GoPointer,
    GoSequence,
    GoString,
    GoStruct,
    Unreadable,
    Value,
)
from ptserver.debugger.debugger import Breakpoint, Debugger
from ptserver.debugger.target import Stop
from ptserver.inspection.goroutine_list import printable
from stepping.syscalls import Sysno, by_number
from stepping.wait_status import signal_name
from stepping.watchpoints import Watchpoint

_MOST_GOROUTINES = 1000
_FLAGS = {0: "CF", 2: "PF", 4: "AF", 6: "ZF", 7: "SF", 10: "DF", 11: "OF"}
_NZCV = {31: "N", 30: "Z", 29: "C", 28: "V"}


def show_stop(debugger: Debugger) -> str:
    """Return why the program has stopped, where, in which goroutine, and the source line."""
    stop = debugger.stop
    if stop.reason == "exited":
        return _show_end(stop)
    why = {
        "breakpoint": "breakpoint",
        "watchpoint": "watchpoint",
        "step": "",
        "signal": f"signal {signal_name(stop.signo)}",
        "syscall": "about to call " + _show_call(debugger, stop),
        "interrupt": "interrupted",
        "exec": "has executed another program",
    }[stop.reason]
    hit = debugger.hit()
    if hit is not None:
        why += f" {hit.number}" + (f" (hit {hit.hits} times)" if hit.hits > 1 else "")
        if hit.watchpoint is not None:
            why += ", " + _show_change(debugger, hit, hit.watchpoint) + ","
    lines = [
        f"{why + ' at ' if why else ''}{where(debugger, debugger.pc)}, {show_thread(debugger, debugger.tid)}"
    ]
    source = _source_line(debugger, debugger.pc)
    if source:
        lines.append(source)
    return "\n".join(lines)


def _show_change(debugger: Debugger, one: Breakpoint, watchpoint: Watchpoint) -> str:
    """Return what has become of watched memory, and remember what is there now."""
    before, one.value = one.value, debugger.target.read_memory(watchpoint.address, watchpoint.size)
    old, new = (f"{int.from_bytes(value, 'little'):#x}" for value in (before, one.value))
    return f"{one.text} {old} -> {new}" if old != new else f"{one.text} {new}"


def show_places(one: Breakpoint) -> str:
    """Return the addresses of a breakpoint, or what a watchpoint watches."""
    if one.watchpoint is not None:
        what = "reads and writes" if one.watchpoint.reads else "writes"
        return f"{what} of {one.watchpoint.size} bytes at {one.watchpoint.address:#x}"
    return ", ".join(f"{address:#x}" for address in one.addresses)


def _show_end(stop: Stop) -> str:
    code = os.waitstatus_to_exitcode(stop.status)
    return (
        f"the program exited with {code}" if code >= 0 else f"the program was killed by {signal_name(-code)}"
    )


def _show_call(debugger: Debugger, stop: Stop) -> str:
    row = by_number(debugger.target.layout.arch).get(Sysno(stop.number))
    if row is None:
        return f"syscall {stop.number}"
    return f"{row.name}({', '.join(f'{value:#x}' for value in stop.args[: len(row.args)])})"


def where(debugger: Debugger, pc: int) -> str:
    """Return an address with its function, file and line."""
    frames = debugger.view.frames_at(pc)
    if not frames:
        return f"{pc:#x}"
    frame = frames[0]
    return f"{pc:#x} {printable(frame.function)} {printable(frame.file)}:{frame.line}"


def show_thread(debugger: Debugger, tid: int) -> str:
    """Return which goroutine and thread that is."""
    goid = debugger.view.goid_of(tid)
    return f"goroutine {goid}, thread {tid}" if goid else f"thread {tid}"


def _source_line(debugger: Debugger, pc: int) -> str:
    frames = debugger.view.frames_at(pc)
    if not frames:
        return ""
    text = linecache.getline(frames[0].file, frames[0].line).rstrip()
    return f"{frames[0].line:>6}\t{printable(text.expandtabs(4))}" if text else ""


def show_source(debugger: Debugger, pc: int, around: int = 5) -> str:
    """Return the source lines around an address."""
    frames = debugger.view.frames_at(pc)
    if not frames:
        return "no source is known here"
    file, line = frames[0].file, frames[0].line
    lines = []
    for number in range(max(1, line - around), line + around + 1):
        text = linecache.getline(file, number)
        if text:
            mark = "=>" if number == line else "  "
            lines.append(f"{mark}{number:>6}\t{printable(text.rstrip().expandtabs(4))}")
    return "\n".join(lines) or f"{file}:{line} (the file is not here)"


def show_registers(debugger: Debugger, *, vectors: bool) -> str:
    """Return the current thread's registers; vectors: with the vector registers."""
    target = debugger.target
    registers = target.read_registers(debugger.tid).as_dict()
    lines = []
    row = []
    for name, value in registers.items():
        row.append(f"{name:>8} {value:#018x}")
        if len(row) == 3:
            lines.append(" ".join(row))
            row = []
    if row:
        lines.append(" ".join(row))
    status, names = (
        (registers["eflags"], _FLAGS) if target.layout.arch == "amd64" else (registers["pstate"], _NZCV)
    )
    lines.append("   flags " + " ".join(name for bit, name in names.items() if status >> bit & 1))
    if vectors:
        data = target.read_vectors(debugger.tid)
        start, count, name = (160, 16, "xmm") if target.layout.arch == "amd64" else (0, 32, "v")
        for index in range(count):
            vector = data[start + 16 * index : start + 16 * index + 16]
            lines.append(f"{name + str(index):>8} {vector[::-1].hex()}")
    return "\n".join(lines)


def show_code(debugger: Debugger, address: int, count: int) -> str:
    """Return *count* instructions from *address* on, with the source lines that they belong to."""
    lines = []
    last = ("", 0)
    pc = debugger.pc
    for at, size, mnemonic, operands in debugger.iter_text(address, count):
        frames = debugger.view.frames_at(at)
        place = (frames[0].file, frames[0].line) if frames else ("", 0)
        if place != last and place[1]:
            text = linecache.getline(*place).strip()
            lines.append(f"{printable(place[0].rpartition('/')[2])}:{place[1]}\t{printable(text)}")
        last = place
        code = debugger.target.read_memory(at, size).hex()
        lines.append(f"{'=>' if at == pc else '  '} {at:#x}  {code:<22} {mnemonic} {operands}".rstrip())
    return "\n".join(lines)


def show_memory(debugger: Debugger, address: int, size: int) -> str:
    """Return *size* bytes at *address*, 16 a line."""
    data = debugger.target.read_memory(address, size)
    lines = []
    for offset in range(0, size, 16):
        part = data[offset : offset + 16]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)
        lines.append(f"{address + offset:#x}  {part.hex(' '):<47}  {text}")
    return "\n".join(lines)


def show_stack(debugger: Debugger, most: int = 50) -> str:
    """Return the current thread's stack, as the source has it."""
    stack = debugger.view.stack_of(debugger.tid)
    if stack is None:
        return f"#0  {where(debugger, debugger.pc)}\nthe thread is none of the runtime's (yet): nothing more is known"
    lines = []
    for index, frame in enumerate(debugger.view.iter_calls(stack)):
        if index == most:
            lines.append("...")
            break
        lines.append(f"#{index:<3} {printable(frame.function)}\n       {printable(frame.file)}:{frame.line}")
    if stack.problem:
        lines.append(f"...{stack.problem}...")
    return "\n".join(lines)


def show_threads(debugger: Debugger) -> str:
    """Return all threads, with their goroutines."""
    lines = []
    for tid in debugger.target.tids:
        mark = "*" if tid == debugger.tid else " "
        place = where(debugger, debugger.target.read_registers(tid).pc)
        lines.append(f"{mark} {show_thread(debugger, tid):<32} {place}")
    return "\n".join(lines)


def show_goroutines(debugger: Debugger) -> str:
    """Return all goroutines, with what they do and where they are."""
    runtime = debugger.view.runtime
    if runtime is None:
        return "the program is none of Go's that is known"
    tids = set(debugger.target.tids)

    def registers_of(tid: int) -> dict[str, int] | None:
        return debugger.target.read_registers(tid).as_dict() if tid in tids else None

    unwinder = Unwinder(runtime, registers_of)
    current = debugger.view.goid_of(debugger.tid)
    lines: list[str] = []
    try:
        for goroutine in runtime.iter_goroutines():
            if len(lines) == _MOST_GOROUTINES:
                lines.append("...")
                break
            if runtime.is_system(goroutine):
                continue
            state = runtime.wait_reason(goroutine) or GoStatus(goroutine.status).name.lower()
            calls = list(unwinder.iter_source_frames(unwinder.unwind_goroutine(goroutine, 8), wrappers=False))
            shown = next((call for call in calls if not call.function.startswith("runtime.")), None)
            shown = shown or (calls[0] if calls else None)
            place = f"{printable(shown.function)} {printable(shown.file)}:{shown.line}" if shown else ""
            mark = "*" if goroutine.goid == current else " "
            lines.append(f"{mark} goroutine {goroutine.goid} [{state}] {place}".rstrip())
    except GoAbiError as error:
        lines.append(f"the list cannot be read: {error}")
    return "\n".join(lines)


def show_value(value: Value) -> str:
    """Return a value, as Go would write it where it has a form for it."""
    return printable("".join(_pieces(value)))


def _pieces(value: Value) -> Iterator[str]:
    match value:
        case bool():
            yield "true" if value else "false"
        case GoString():
            text = value.data.decode("utf-8", "replace").replace("\\", "\\\\").replace('"', '\\"')
            yield f'"{text}"' + (
                f"...+{value.length - len(value.data)}" if value.length > len(value.data) else ""
            )
        case GoSequence():
            yield from _list("[", value.items, value.length, "]")
        case GoStruct():
            fields = ", ".join(f"{name}: {show_value(one)}" for name, one in value.fields.items())
            yield f"{value.type_name}{{{fields}}}"
        case GoPointer():
            yield "nil" if not value.addr else f"{value.addr:#x}"
            if value.target is not None:
                yield f" -> {show_value(value.target)}"
        case GoMap():
            pairs = ", ".join(f"{show_value(key)}: {show_value(one)}" for key, one in value.entries)
            yield f"map[{pairs}{', ...' if value.length > len(value.entries) else ''}]"
        case GoChan():
            yield f"chan {value.addr:#x} ({value.length} of {value.capacity}{', closed' * value.closed})"
        case GoInterface():
            yield value.type_name or "nil"
            if value.value is not None:
                yield f"({show_value(value.value)})"
        case GoFunc():
            yield value.name or "nil"
        case Unreadable():
            yield f"<{value.why}>"
        case _:
            yield str(value)


def _list(opening: str, items: tuple[Value, ...], length: int, closing: str) -> Iterator[str]:
    yield opening
    yield ", ".join(map(show_value, items))
    if length > len(items):
        yield f", ...+{length - len(items)}"
    yield closing
