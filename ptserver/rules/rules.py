"""Whose a resource is: the server's (remote) or this machine's (local). Pure, but for reading a file of rules.

    rule    = path | "env:" GLOB | "connect:" ports | "listen:" ports | "stdio"
    path    = "/" ...            that file, or all below that folder
    ports   = PORT ["-" PORT]    of TCP and UDP, at any address
    file    = TOML: local = [rule, ...]  remote = [rule, ...]

The most specific rule decides: of paths the longest, of names the one with the most literal characters, of ports the
narrowest; of two alike, the later one. Rules on the command line come after those of a file. What no rule names is
remote, without exception: a program that sees the files, the names and the network of one machine works, and one that
sees a mixture of two that nobody chose does not.

Paths are compared as text, after "." and ".." are resolved: a symbolic link at the server does not lead to a local
path, nor the other way round.
"""

import fnmatch
import json
import posixpath
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ptserver.errors import RulesError

Side = Literal["local", "remote"]
Kind = Literal["path", "env", "connect", "listen", "stdio"]

_WILDCARDS = frozenset("*?[]")


@dataclass(frozen=True)
class Rule:
    """One rule. pattern: a path, a glob, or empty; ports: first and last; origin: where it was given."""

    side: Side
    kind: Kind
    pattern: str = ""
    ports: tuple[int, int] = (0, 0)
    origin: str = ""

    @property
    def text(self) -> str:
        """The rule as it is written."""
        match self.kind:
            case "path":
                return self.pattern
            case "env":
                return f"env:{self.pattern}"
            case "stdio":
                return "stdio"
        first, last = self.ports
        return f"{self.kind}:{first}" + (f"-{last}" if last != first else "")


@dataclass(frozen=True)
class Decision:
    """Who serves what was asked about. rule: that decides, None if none does."""

    subject: str
    side: Side
    rule: Rule | None

    @property
    def text(self) -> str:
        """The decision for people."""
        who = "this machine" if self.side == "local" else "the server"
        if self.rule is None:
            return (
                f"{self.subject}: {self.side}, {who} serves it; no rule names it, and the default is remote"
            )
        return (
            f"{self.subject}: {self.side}, {who} serves it; by the rule {self.rule.text} ({self.rule.origin})"
        )

    def as_json(self) -> str:
        """The decision as a JSON object: subject, side, rule and origin, the last two null if there is no rule."""
        rule, origin = (self.rule.text, self.rule.origin) if self.rule is not None else (None, None)
        return json.dumps({"subject": self.subject, "side": self.side, "rule": rule, "origin": origin})


class Rules:
    """Decides by *rules*, in the order in which they were given."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules = tuple(rules)
        self._paths = {rule.pattern: rule for rule in self.rules if rule.kind == "path"}  # the last one wins

    @property
    def has_local(self) -> bool:
        """Whether anything but names in the environment may be local."""
        return any(rule.side == "local" and rule.kind != "env" for rule in self.rules)

    def path(self, path: str) -> Decision:
        """Decide on an absolute *path*."""
        normal = at = normalise(path)
        while True:
            rule = self._paths.get(at)
            if rule is not None:
                return Decision(normal, rule.side, rule)
            if at == "/":
                return Decision(normal, "remote", None)
            at = posixpath.dirname(at)

    def env(self, name: str) -> Decision:
        """Decide on a name in the environment."""
        matching = [rule for rule in self._of("env") if fnmatch.fnmatchcase(name, rule.pattern)]
        return self._decide(f"env:{name}", matching, key=lambda rule: _literals(rule.pattern))

    def port(self, kind: Literal["connect", "listen"], port: int) -> Decision:
        """Decide on connecting to *port*, or on listening at it."""
        matching = [rule for rule in self._of(kind) if rule.ports[0] <= port <= rule.ports[1]]
        return self._decide(f"{kind}:{port}", matching, key=lambda rule: rule.ports[0] - rule.ports[1])

    def stdio(self) -> Decision:
        """Decide on the standard streams: local ones are this process's own, remote ones are carried."""
        return self._decide("stdio", self._of("stdio"), key=lambda rule: 0)

    def explain(self, subject: str) -> Decision:
        """Decide on *subject*: a path, env:NAME, connect:PORT, listen:PORT or stdio.

        Raises:
            RulesError: it is none of these.
        """
        kind, colon, value = subject.partition(":")
        if subject == "stdio":
            return self.stdio()
        if subject.startswith("/"):
            return self.path(subject)
        if colon and kind == "env" and value:
            return self.env(value)
        if colon and kind in ("connect", "listen") and value.isascii() and value.isdigit():
            return self.port(kind, int(value))  # type: ignore[arg-type]
        raise RulesError(
            f"{subject!r} is nothing that rules are about: give a path from / on, env:NAME, connect:PORT, listen:PORT"
            " or stdio"
        )

    def _of(self, kind: Kind) -> list[Rule]:
        return [rule for rule in self.rules if rule.kind == kind]

    @staticmethod
    def _decide(subject: str, matching: list[Rule], key: Callable[[Rule], int]) -> Decision:
        if not matching:
            return Decision(subject, "remote", None)
        best = max(enumerate(matching), key=lambda item: (key(item[1]), item[0]))[1]
        return Decision(subject, best.side, best)


def chosen_rules(file: str | None, local: Iterable[str], remote: Iterable[str]) -> Rules:
    """Return the rules of a file, if there is one, and of the command line. Raises: RulesError."""
    rules = load_rules(file) if file is not None else []
    rules += [parse_rule("local", text, "--local") for text in local]
    rules += [parse_rule("remote", text, "--remote") for text in remote]
    return Rules(rules)


def parse_rule(side: Side, text: str, origin: str) -> Rule:
    """Return the rule that *text* writes; the grammar is this module's.

    Raises:
        RulesError: it writes none.
    """
    if text.startswith("/"):
        if "\0" in text:
            raise RulesError(f"{text!r} is no path")
        return Rule(side, "path", normalise(text), origin=origin)
    kind, _, value = text.partition(":")
    if text == "stdio":
        return Rule(side, "stdio", origin=origin)
    if kind == "env" and value and "=" not in value:
        return Rule(side, "env", value, origin=origin)
    if kind in ("connect", "listen"):
        return Rule(side, kind, ports=_parse_ports(text, value), origin=origin)  # type: ignore[arg-type]
    raise RulesError(
        f"{text!r} is no rule: write a path from / on, env:GLOB, connect:PORTS, listen:PORTS or stdio"
    )


def load_rules(path: str | Path) -> list[Rule]:
    """Return the rules in the TOML file *path*: those of ``local``, then those of ``remote``.

    Raises:
        RulesError: it cannot be read, or is no file of rules.
    """
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise RulesError(f"cannot read the rules in {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RulesError(f"{path} is no file of rules: {error}") from error
    rules: list[Rule] = []
    for side in content:
        if side not in ("local", "remote"):
            raise RulesError(
                f"{path}: there are lists named local and remote in a file of rules, not {side!r}"
            )
    for side in ("local", "remote"):
        texts = content.get(side, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise RulesError(f"{path}: {side} must be a list of strings")
        rules += [parse_rule(side, text, str(path)) for text in texts]  # type: ignore[arg-type]
    return rules


def normalise(path: str, folder: str = "/") -> str:
    """Return *path*, seen from the absolute *folder*, as an absolute path without ".", ".." and doubled slashes."""
    normal = posixpath.normpath(posixpath.join(folder, path))
    return "/" + normal.lstrip("/")


def _literals(glob: str) -> int:
    return sum(character not in _WILDCARDS for character in glob)


def _parse_ports(text: str, ports: str) -> tuple[int, int]:
    first, dash, last = ports.partition("-")
    words = (first, last if dash else first)
    if all(word.isascii() and word.isdigit() for word in words):
        low, high = map(int, words)
        if 1 <= low <= high <= 65535:
            return low, high
    raise RulesError(f"{text!r}: {ports!r} is no port or range of ports")
