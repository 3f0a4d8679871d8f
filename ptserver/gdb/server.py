"""Answers one gdb about one program: the GDB remote protocol over a socket.

All-stop mode: whenever the program is stopped, all its threads are. gdb's Z0 and Z1 are both breakpoint instructions
in memory; Z2 to Z4 are the processor's watchpoints, which know no reads alone: Z3 stops for writes, too. While the
program runs, a thread of this process looks for ^C on the connection.

Not trusted: the peer, in so far as it cannot make this fail other than by an error to it. But it controls the
program completely, so it is to be let in only from this machine.

Source: GDB manual, appendix E ("Remote Protocol").
"""

import contextlib
import os
import re
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn
from xml.sax.saxutils import quoteattr

from goabi.errors import GoAbiError
from ptserver.debugger.program import ProgramView
from ptserver.debugger.target import Stop, Target
from ptserver.gdb import packets
from ptserver.gdb.description import read_slot, slots_of, target_xml, write_slot
from ptserver.gdb.signals import to_gdb, to_linux
from stepping.errors import SteppingError
from stepping.watchpoints import NoWatchpointError, Watchpoint

_FEATURES = (
    f"PacketSize={packets.MAX_PACKET_BYTES:x};QStartNoAckMode+;qXfer:features:read+;qXfer:auxv:read+;"
    "qXfer:threads:read+;qXfer:exec-file:read+;swbreak+;vContSupported+;QPassSignals+;QCatchSyscalls+;"
    "no-resumed-"
)
_TRAP, _INT = 5, 2
#: How a stop for a watchpoint is called, by the packet that has set it.
_WATCHES = {"2": "watch", "3": "rwatch", "4": "awatch"}
_INTERRUPT_INTERVAL_S = 0.1
_RANGE = re.compile(r"r([0-9a-f]+),([0-9a-f]+)")


class _Closed(Exception):
    """The peer has gone, or was let go."""


class _BadPacket(Exception):
    """A packet asks for what makes no sense."""


class GdbServer:
    """Serves *target* to the gdb at *connection*. `serve` returns when gdb leaves; attached: it was not launched."""

    def __init__(self, connection: socket.socket, target: Target, *, attached: bool = False) -> None:
        self._socket = connection
        self._target = target
        self._view = ProgramView(target)
        self._attached = attached
        self._decoder = packets.Decoder()
        self._events: list[packets.Event] = []
        self._acknowledges = True
        self._last = b""
        self._stop = Stop("step", target.tids[0], target.read_registers(target.tids[0]).pc)
        self._thread = self._stop.tid
        self._slots = slots_of(target.layout.arch, len(target.read_vectors(self._thread)))
        self._watches: dict[Watchpoint, str] = {}
        self._passed: frozenset[int] = frozenset()
        self._xml = target_xml(target.layout.arch, self._slots)

    def serve(self) -> None:
        """Answer gdb until it detaches, kills the program, or the connection ends (the program is killed then)."""
        try:
            while True:
                self._answer(self._receive())
        except _Closed:
            return
        except OSError:
            self._target.kill()
        finally:
            self._view.close()

    # -- the connection ---------------------------------------------------------------------------------------

    def _receive(self) -> bytes:
        """Return the next packet's data. The program is stopped, so ^C means nothing."""
        while True:
            while self._events:
                match self._events.pop(0):
                    case packets.Packet(data):
                        if self._acknowledges:
                            self._socket.sendall(b"+")
                        return data
                    case packets.Damaged() if self._acknowledges:
                        self._socket.sendall(b"-")
                    case packets.Acknowledged(good=False) if self._acknowledges:
                        self._socket.sendall(self._last)
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionError
            self._events += self._decoder.feed(data)

    def _send(self, data: bytes) -> None:
        self._last = packets.encode(data)
        self._socket.sendall(self._last)

    def _answer(self, data: bytes) -> None:
        text = data.decode("latin-1")
        for prefix, handler in self._handlers():
            if text.startswith(prefix):
                try:
                    answer = handler(text[len(prefix) :])
                except (_BadPacket, ValueError, IndexError):
                    answer = "E16"
                except SteppingError:
                    answer = "E0e"
                if answer is not None:
                    self._send(answer if isinstance(answer, bytes) else answer.encode("latin-1"))
                return
        self._send(b"")

    def _handlers(self) -> "list[tuple[str, Callable[[str], str | bytes | None]]]":
        return [
            ("qSupported", self._supported),
            ("QStartNoAckMode", self._no_acks),
            ("qXfer:", self._transfer),
            ("QPassSignals:", self._pass_signals),
            ("QCatchSyscalls:", self._catch_syscalls),
            ("vCont?", lambda _: "vCont;c;C;s;S;r"),
            ("vCont;", self._resume),
            ("vKill", self._kill_and_say),
            ("vMustReplyEmpty", lambda _: ""),
            ("qAttached", lambda _: "1" if self._attached else "0"),
            ("qfThreadInfo", lambda _: "m" + ",".join(f"{tid:x}" for tid in self._target.tids)),
            ("qsThreadInfo", lambda _: "l"),
            ("qThreadExtraInfo,", lambda rest: self._thread_text(int(rest, 16)).encode().hex()),
            ("qSymbol", lambda _: "OK"),
            ("qC", lambda _: f"QC{self._thread:x}"),
            ("?", lambda _: self._stop_reply()),
            ("H", self._select),
            ("T", lambda rest: "OK" if int(rest, 16) in self._target.tids else "E03"),
            ("g", self._read_registers),
            ("G", self._write_registers),
            ("p", self._read_register),
            ("P", self._write_register),
            ("m", self._read_memory),
            ("M", self._write_memory),
            ("X", self._write_binary),
            ("Z", self._insert),
            ("z", self._remove),
            ("D", self._detach),
            ("k", self._kill),
        ]

    # -- what there is ----------------------------------------------------------------------------------------

    def _supported(self, _: str) -> str:
        return _FEATURES

    def _no_acks(self, _: str) -> None:
        self._send(b"OK")
        self._acknowledges = False

    def _transfer(self, rest: str) -> str | bytes:
        kind, operation, annex, where = rest.split(":", 3)
        if operation != "read":
            return ""
        offset, length = (int(number, 16) for number in where.split(","))
        match kind, annex:
            case "features", "target.xml":
                content = self._xml
            case "auxv", "":
                content = self._target.read_auxv()
            case "threads", "":
                content = self._threads_xml()
            case "exec-file", _:
                content = os.fsencode(os.path.abspath(self._target.path))
            case _:
                return "E00"
        part = content[offset : offset + min(length, packets.MAX_PACKET_BYTES // 2 - 1)]
        return (b"m" if offset + len(part) < len(content) else b"l") + part

    def _threads_xml(self) -> bytes:
        lines = ["<?xml version='1.0'?>", "<threads>"]
        for tid in self._target.tids:
            text = self._thread_text(tid)
            lines.append(f'<thread id="{tid:x}" name={quoteattr(text)}/>')
        return "\n".join([*lines, "</threads>", ""]).encode()

    def _thread_text(self, tid: int) -> str:
        with contextlib.suppress(GoAbiError, SteppingError):
            goid = self._view.goid_of(tid)
            if goid:
                return f"goroutine {goid}"
        return "no goroutine"

    def _select(self, rest: str) -> str:
        tid = int(rest[1:], 16)
        if tid > 0:
            if tid not in self._target.tids:
                return "E03"
            self._thread = tid
        return "OK"

    # -- registers and memory ---------------------------------------------------------------------------------

    def _read_registers(self, _: str) -> str:
        registers = self._target.read_registers(self._thread)
        vectors = self._target.read_vectors(self._thread)
        return "".join(read_slot(slot, registers, vectors).hex() for slot in self._slots)

    def _write_registers(self, rest: str) -> str:
        data = bytes.fromhex(rest)
        registers = self._target.read_registers(self._thread)
        vectors = bytearray(self._target.read_vectors(self._thread))
        at = 0
        for slot in self._slots:
            if at + slot.size > len(data):
                break
            write_slot(slot, data[at : at + slot.size], registers, vectors)
            at += slot.size
        self._target.write_registers(self._thread, registers)
        self._target.write_vectors(self._thread, bytes(vectors))
        return "OK"

    def _read_register(self, rest: str) -> str:
        slot = self._slots[int(rest, 16)]
        vectors = b"" if slot.offset is None else self._target.read_vectors(self._thread)
        return read_slot(slot, self._target.read_registers(self._thread), vectors).hex()

    def _write_register(self, rest: str) -> str:
        number, _, value = rest.partition("=")
        slot = self._slots[int(number, 16)]
        registers = self._target.read_registers(self._thread)
        vectors = bytearray(self._target.read_vectors(self._thread))
        write_slot(slot, bytes.fromhex(value)[: slot.size], registers, vectors)
        if slot.offset is None:
            self._target.write_registers(self._thread, registers)
        else:
            self._target.write_vectors(self._thread, bytes(vectors))
        return "OK"

    def _read_memory(self, rest: str) -> str:
        address, size = (int(number, 16) for number in rest.split(","))
        return self._target.read_memory(address, min(size, packets.MAX_PACKET_BYTES // 2)).hex()

    def _write_memory(self, rest: str) -> str:
        where, _, data = rest.partition(":")
        return self._write(where, bytes.fromhex(data))

    def _write_binary(self, rest: str) -> str:
        where, _, data = rest.partition(":")
        return self._write(where, data.encode("latin-1"))

    def _write(self, where: str, data: bytes) -> str:
        address, size = (int(number, 16) for number in where.split(","))
        if len(data) != size:
            raise _BadPacket
        if data:
            self._target.write_memory(address, data)
        return "OK"

    def _insert(self, rest: str) -> str:
        kind, address, size = rest.split(";")[0].split(",")
        if kind in _WATCHES:
            watchpoint = Watchpoint(int(address, 16), int(size, 16), reads=kind != "2")
            try:
                self._target.insert_watchpoint(watchpoint)
            except NoWatchpointError:
                return ""  # gdb then steps by itself
            self._watches[watchpoint] = _WATCHES[kind]
            return "OK"
        if kind not in ("0", "1"):
            return ""
        self._target.insert_breakpoint(int(address, 16))
        return "OK"

    def _remove(self, rest: str) -> str:
        kind, address, size = rest.split(";")[0].split(",")
        if kind in _WATCHES:
            watchpoint = Watchpoint(int(address, 16), int(size, 16), reads=kind != "2")
            self._watches.pop(watchpoint, None)
            self._target.remove_watchpoint(watchpoint)
            return "OK"
        if kind not in ("0", "1"):
            return ""
        self._target.remove_breakpoint(int(address, 16))
        return "OK"

    # -- running ----------------------------------------------------------------------------------------------

    def _pass_signals(self, rest: str) -> str:
        self._passed = frozenset(to_linux(int(number, 16)) for number in rest.split(";") if number)
        return "OK"

    def _catch_syscalls(self, rest: str) -> str:
        state, *numbers = rest.split(";")
        if state == "0":
            self._target.stop_at_calls(frozenset())
        else:
            self._target.stop_at_calls(frozenset(int(number, 16) for number in numbers) or None)
        return "OK"

    def _resume(self, rest: str) -> str | None:
        stepping: tuple[int, str] | None = None
        signo = 0
        for action in rest.split(";"):
            what, _, who = action.partition(":")
            tid = int(who, 16) if who else 0
            if what[0] in "CS" and (not tid or tid == self._stop.tid):
                signo = to_linux(int(what[1:3], 16))
            if what[0] in "sSr" and stepping is None:
                stepping = (tid if tid > 0 else self._thread, what)
        if self._stop.signo and signo != self._stop.signo and self._stop.tid in self._target.tids:
            self._target.drop_signal(self._stop.tid)
        with self._watching():
            while True:
                self._stop = self._run(stepping)
                if not (self._stop.reason == "signal" and self._stop.signo in self._passed):
                    break
        self._thread = self._stop.tid
        return self._stop_reply()

    def _run(self, stepping: tuple[int, str] | None) -> Stop:
        if stepping is None:
            return self._target.cont()
        tid, what = stepping
        match = _RANGE.match(what)
        if match is None:
            return self._target.step(tid)
        low, high = int(match[1], 16), int(match[2], 16)
        while True:
            stop = self._target.step_within(tid, low, high)
            if stop.reason != "step" or stop.tid != tid or not low <= stop.pc < high:
                return stop

    def _stop_reply(self) -> str:
        stop = self._stop
        if stop.reason == "exited":
            code = os.waitstatus_to_exitcode(stop.status)
            return f"W{code:02x}" if code >= 0 else f"X{to_gdb(-code):02x}"
        thread = f"thread:{stop.tid:x};"
        match stop.reason:
            case "breakpoint":
                return f"T{_TRAP:02x}swbreak:;{thread}"
            case "watchpoint" if stop.watchpoint is not None:
                word = self._watches.get(stop.watchpoint, "watch")
                return f"T{_TRAP:02x}{word}:{stop.watchpoint.address:x};{thread}"
            case "signal":
                return f"T{to_gdb(stop.signo):02x}{thread}"
            case "syscall":
                return f"T{_TRAP:02x}syscall_entry:{stop.number:x};{thread}"
            case "interrupt":
                return f"T{_INT:02x}{thread}"
        return f"T{_TRAP:02x}{thread}"

    def _detach(self, _: str) -> NoReturn:
        self._target.detach()
        self._send(b"OK")
        raise _Closed

    def _kill_and_say(self, _: str) -> NoReturn:
        self._target.kill()
        self._send(b"OK")
        raise _Closed

    def _kill(self, _: str) -> NoReturn:
        self._target.kill()
        raise _Closed

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Interrupt the program when gdb sends ^C, or is gone, within a ``with`` block."""
        over = threading.Event()
        ending, ending_writer = os.pipe()
        main = threading.get_ident()

        def watch() -> None:
            ready, _, _ = select.select([self._socket.fileno(), ending], [], [])
            if ending in ready:
                return
            # What comes while the program runs is ^C, or the end of the connection.
            data = self._socket.recv(1, socket.MSG_PEEK)
            if data == b"\x03":
                self._socket.recv(1)
            # Again and again: one that comes just before the wait for the program would go unnoticed.
            while not over.is_set():
                signal.pthread_kill(main, signal.SIGINT)
                over.wait(_INTERRUPT_INTERVAL_S)

        before = signal.signal(signal.SIGINT, lambda *_: self._target.interrupt())
        watcher = threading.Thread(target=watch, name="gdb-interrupts", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            os.close(ending_writer)
            watcher.join()
            os.close(ending)
            signal.signal(signal.SIGINT, before)
