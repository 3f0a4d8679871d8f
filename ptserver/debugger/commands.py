"""The debugger's commands: one line of text each, and what they answer.

A command is a word, or enough of its beginning, and its arguments. `COMMANDS` is the list that `help` shows.
"""

import re
from collections.abc import Callable

from goabi.callconv import read_parameters
from goabi.errors import GoAbiError, ValueDecodeError
from goabi.values import ValueReader
from ptserver.debugger import show
from ptserver.debugger.debugger import Debugger, DebuggerError
from ptserver.errors import PtServerError
from stepping.errors import SteppingError
from stepping.syscalls import SYSCALLS
from stepping.watchpoints import Watchpoint

_MEMORY_BYTES, _INSTRUCTIONS = 64, 8
_MOST_BYTES, _MOST_INSTRUCTIONS = 1 << 16, 10_000
_SUM = re.compile(r"([^+-]+)([+-].+)?")


class Quit(Exception):
    """The user wants to leave. `detach`: and lets the program go on."""

    def __init__(self, *, detach: bool) -> None:
        super().__init__()
        self.detach = detach


class Commands:
    """Executes commands for *debugger*."""

    def __init__(self, debugger: Debugger) -> None:
        self.debugger = debugger

    def execute(self, line: str) -> str:
        """Execute a command; return what it answers, maybe nothing.

        Raises:
            Quit: the user wants to leave.
            DebuggerError, LocationError, SteppingError, GoAbiError: it cannot be done; the text says why.
        """
        word, _, rest = line.strip().partition(" ")
        if not word:
            return ""
        name = self._find(word)
        arguments = rest.split()
        command, _, needs_program = COMMANDS[name]
        if needs_program and self.debugger.exited:
            raise DebuggerError("the program is gone")
        return command(self, arguments)

    def _find(self, word: str) -> str:
        if word in ALIASES:
            return ALIASES[word]
        found = [name for name in COMMANDS if name.startswith(word)]
        if len(found) == 1 or word in COMMANDS:
            return word if word in COMMANDS else found[0]
        if found:
            raise DebuggerError(f"{word!r} may be {', '.join(found)}")
        raise DebuggerError(f"no command {word!r}; help shows all")

    # -- stopping ---------------------------------------------------------------------------------------------

    def add_breakpoint(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        if len(arguments) != 1:
            raise DebuggerError("where? A function, FILE.go:LINE, LINE, or *ADDRESS")
        one = self.debugger.add_breakpoint(arguments[0])
        places = "\n".join(f"  {show.where(self.debugger, address)}" for address in one.addresses)
        return f"breakpoint {one.number}\n{places}"

    def watch(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        reads = arguments[:1] == ["-r"]
        words = arguments[reads:]
        if len(words) not in (1, 2):
            raise DebuggerError("watch [-r] VARIABLE, or ADDRESS BYTES")
        size = _number(words[1]) if len(words) > 1 else self._size_of(words[0])
        watchpoint = Watchpoint(self._value(words[0]), size, reads)
        one = self.debugger.add_watchpoint(words[0], watchpoint)
        return f"watchpoint {one.number}\n  {size} bytes at {watchpoint.address:#x}"

    def _size_of(self, name: str) -> int:
        """Return the size of a package's variable; 8 for what is none."""
        binary = self.debugger.view.binary
        symbol = binary.elf.find_symbol(name) if binary is not None else None
        if symbol is not None and symbol.size:
            return symbol.size
        variable = (
            binary.dwarf.find_variable(name) if binary is not None and binary.dwarf is not None else None
        )
        return variable.type.size if variable is not None else 8

    def catch(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        if arguments == ["off"]:
            self.debugger.catch_calls(frozenset())
            return "stopping at no syscalls"
        if not arguments:
            self.debugger.catch_calls(None)
            return "stopping at every syscall"
        arch = self.debugger.target.layout.arch
        numbers = set()
        for name in arguments:
            try:
                row = SYSCALLS[name]
                numbers.add(int(row.numbers[arch]))
            except KeyError:
                raise DebuggerError(f"there is no syscall {name} on {arch}") from None
        self.debugger.catch_calls(frozenset(numbers))
        return f"stopping at {', '.join(arguments)}"

    def breakpoints(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        lines = [
            f"{one.number}  {one.text}  {show.show_places(one)}  hits {one.hits}"
            for one in self.debugger.breakpoints.values()
        ]
        return "\n".join(lines) or "there are no breakpoints"

    def clear(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        numbers = (
            list(self.debugger.breakpoints) if arguments == ["all"] else [_number(one) for one in arguments]
        )
        for number in numbers:
            self.debugger.remove_breakpoint(number)
        return ""

    # -- running ----------------------------------------------------------------------------------------------

    def cont(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        self.debugger.cont()
        return show.show_stop(self.debugger)

    def stepi(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        self.debugger.step_instruction(_number(arguments[0]) if arguments else 1)
        return self._stop_and_instruction()

    def block(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        for _ in range(_number(arguments[0]) if arguments else 1):
            if self.debugger.step_block().reason != "step":
                break
        return self._stop_and_instruction()

    def step(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        return self._lines(arguments, into=True)

    def step_over(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        return self._lines(arguments, into=False)

    def out(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        self.debugger.step_out()
        return show.show_stop(self.debugger)

    def nosignal(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        self.debugger.target.drop_signal(self.debugger.tid)
        return ""

    def _lines(self, arguments: list[str], *, into: bool) -> str:
        for _ in range(_number(arguments[0]) if arguments else 1):
            if self.debugger.step_line(into=into).reason != "step":
                break
        return show.show_stop(self.debugger)

    def _stop_and_instruction(self) -> str:
        text = show.show_stop(self.debugger)
        if self.debugger.exited:
            return text
        return text + "\n" + show.show_code(self.debugger, self.debugger.pc, 1).rpartition("\n")[2]

    # -- looking ----------------------------------------------------------------------------------------------

    def where(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        return show.show_stop(self.debugger)

    def registers(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        return show.show_registers(self.debugger, vectors=arguments == ["-v"])

    def set_register(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        if len(arguments) != 2:
            raise DebuggerError("set REGISTER VALUE")
        name, value = arguments[0].lstrip("$"), self._value(arguments[1])
        registers = self.debugger.target.read_registers(self.debugger.tid)
        if name not in registers.layout.index:
            raise DebuggerError(f"there is no register {name}")
        registers[name] = value
        self.debugger.target.write_registers(self.debugger.tid, registers)
        return ""

    def memory(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        if not arguments:
            raise DebuggerError("x ADDRESS [BYTES]")
        size = _number(arguments[1]) if len(arguments) > 1 else _MEMORY_BYTES
        return show.show_memory(self.debugger, self._value(arguments[0]), min(size, _MOST_BYTES))

    def write(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        try:
            data = bytes.fromhex("".join(arguments[1:]))
        except ValueError:
            data = b""
        if not data:
            raise DebuggerError("write ADDRESS BYTES, the bytes in base 16, two digits each")
        self.debugger.target.write_memory(self._value(arguments[0]), data)
        return ""

    def disassemble(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        address = self._value(arguments[0]) if arguments else self.debugger.pc
        count = _number(arguments[1]) if len(arguments) > 1 else _INSTRUCTIONS
        return show.show_code(self.debugger, address, min(count, _MOST_INSTRUCTIONS))

    def source(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        address = self._value(arguments[0]) if arguments else self.debugger.pc
        return show.show_source(self.debugger, address)

    def stack(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        return show.show_stack(self.debugger, _number(arguments[0]) if arguments else 50)

    def goroutines(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        return show.show_goroutines(self.debugger)

    def threads(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        return show.show_threads(self.debugger)

    def thread(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        tid = _number(arguments[0]) if arguments else self.debugger.tid
        if tid not in self.debugger.target.tids:
            raise DebuggerError(f"the program has no thread {tid}")
        self.debugger.tid = tid
        return f"{show.where(self.debugger, self.debugger.pc)}, {show.show_thread(self.debugger, tid)}"

    def goroutine(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        if not arguments:
            return show.show_thread(self.debugger, self.debugger.tid)
        wanted = _number(arguments[0])
        for tid in self.debugger.target.tids:
            if self.debugger.view.goid_of(tid) == wanted:
                return self.thread([str(tid)])
        raise DebuggerError(f"goroutine {wanted} has no thread now; `goroutines` shows where it is")

    def args(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        view = self.debugger.view
        function = view.function_at(self.debugger.pc)
        if function is None or view.binary is None or view.runtime is None:
            raise DebuggerError("this is no function of Go's")
        if self.debugger.pc - view.bias not in (function.entry, view.behind_check(function)):
            raise DebuggerError("arguments are known at a function's beginning only: break there")
        dwarf = view.binary.dwarf
        parameters = dwarf.find_parameters(function.name) if dwarf is not None else None
        if parameters is None:
            raise DebuggerError(f"there is no debugging information about {function.name}")
        registers = self.debugger.target.read_registers(self.debugger.tid).as_dict()
        found = read_parameters(
            view.binary.arch, parameters, registers, view.memory, ValueReader(view.runtime)
        )
        return "\n".join(f"{name} = {show.show_value(value)}" for name, value in found.items()) or "none"

    def print_value(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        if len(arguments) != 1:
            raise DebuggerError("print a package's variable, as in main.counter, or an expression: rsp+8")
        name = arguments[0]
        runtime = self.debugger.view.runtime
        if "." in name and runtime is not None:
            try:
                return f"{name} = {show.show_value(ValueReader(runtime).read_variable(name))}"
            except ValueDecodeError:
                pass  # it may be a function
        return f"{self._value(name):#x}"

    def _value(self, text: str) -> int:
        """Return what an expression says: a number, register, function or variable, and sums of them."""
        match = _SUM.fullmatch(text.lstrip("*"))
        if match is None:
            raise DebuggerError(f"{text!r} is no address")
        total = self._term(match[1])
        for sign, term in re.findall(r"([+-])([^+-]+)", match[2] or ""):
            total += self._term(term) if sign == "+" else -self._term(term)
        return total & (1 << 64) - 1

    def _term(self, text: str) -> int:
        name = text.strip().lstrip("$")
        registers = self.debugger.target.read_registers(self.debugger.tid)
        roles = {"pc": registers.pc, "sp": registers.sp}
        if name in registers.layout.index:
            return registers[name]
        if name in roles:
            return roles[name]
        try:
            return int(name, 0)
        except ValueError:
            pass
        view = self.debugger.view
        if view.binary is not None:
            variable = view.binary.find_variable_addr(name)
            if variable is not None:
                return variable + view.bias
        return view.resolve(name, self.debugger.pc)[0]

    # -- leaving ----------------------------------------------------------------------------------------------

    def detach(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        raise Quit(detach=True)

    def leave(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        raise Quit(detach=False)

    def show_help(self, arguments: list[str]) -> str:
        """See `COMMANDS`."""
        short = {name: alias for alias, name in ALIASES.items()}
        return "\n".join(
            f"{name + (f' ({short[name]})' if name in short else ''):<18} {text}"
            for name, (_, text, _) in COMMANDS.items()
        )


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise DebuggerError(f"{text!r} is no number") from None


#: By name: what executes it, what `help` says, whether the program must be there.
COMMANDS: dict[str, tuple[Callable[[Commands, list[str]], str], str, bool]] = {
    "break": (Commands.add_breakpoint, "stop at a FUNCTION, FILE.go:LINE, LINE or *ADDRESS", True),
    "watch": (Commands.watch, "stop when a VARIABLE, or ADDRESS BYTES, is written; -r: or read", True),
    "catch": (Commands.catch, "stop before syscalls: those NAMED, every one, or `off`", True),
    "breakpoints": (Commands.breakpoints, "list the breakpoints", False),
    "clear": (Commands.clear, "remove breakpoint NUMBER, or `all`", True),
    "continue": (Commands.cont, "let the program run until something happens", True),
    "stepi": (Commands.stepi, "execute an instruction, or COUNT", True),
    "block": (
        Commands.block,
        "execute to the end of the block: the next jump, call, return or syscall",
        True,
    ),
    "step": (Commands.step, "execute to another line, into functions that are called", True),
    "next": (Commands.step_over, "execute to another line, over functions that are called", True),
    "out": (Commands.out, "run until this function returns", True),
    "nosignal": (Commands.nosignal, "do not deliver the signal that the program is stopped for", True),
    "where": (Commands.where, "show again why and where the program is stopped", False),
    "registers": (Commands.registers, "show the registers; -v: with the vector registers", True),
    "set": (Commands.set_register, "set a REGISTER to a VALUE", True),
    "x": (Commands.memory, "show memory at an ADDRESS, 64 or as many BYTES", True),
    "write": (Commands.write, "put BYTES, in base 16, at an ADDRESS", True),
    "disassemble": (Commands.disassemble, "show code here or at an ADDRESS, 8 or COUNT instructions", True),
    "list": (Commands.source, "show the source here or at an ADDRESS", True),
    "stack": (Commands.stack, "show the calls that led here, 50 or COUNT", True),
    "args": (Commands.args, "show a function's arguments, at its beginning", True),
    "print": (Commands.print_value, "show a package's variable, or the value of an expression", True),
    "goroutines": (Commands.goroutines, "list the goroutines", True),
    "goroutine": (Commands.goroutine, "say which is looked at, or look at goroutine NUMBER", True),
    "threads": (Commands.threads, "list the threads", True),
    "thread": (Commands.thread, "look at thread NUMBER", True),
    "detach": (Commands.detach, "let the program go on by itself, and leave", False),
    "quit": (Commands.leave, "leave; a program that was launched here ends", False),
    "help": (Commands.show_help, "show this list", False),
}

ALIASES = {
    "b": "break",
    "bt": "stack",
    "c": "continue",
    "si": "stepi",
    "sb": "block",
    "s": "step",
    "n": "next",
    "finish": "out",
    "regs": "registers",
    "dis": "disassemble",
    "p": "print",
    "l": "list",
    "q": "quit",
    "h": "help",
}

#: What a command may raise that is told to the user, who goes on.
EXPECTED_ERRORS = (PtServerError, SteppingError, GoAbiError)
