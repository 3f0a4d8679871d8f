"""What a server's sessions may not do: the options of `ptserver serve` that confine them.

What a session can do at most is what the server's user can. Every option takes something away:

    root        a folder becomes the root of all files         mount namespace and pivot_root
    read_only   no file is changed                             Landlock, and seccomp for metadata
    connect     sockets reach those addresses alone            `ptserver.confinement.gate`, by the arguments of calls
    bind        sockets are bound to those addresses alone     the same
    exec        those programs alone are executed              Landlock
    user        another user's rights                          setuid(2); no_new_privs
    limits      resource limits                                setrlimit(2)

`ptserver.confinement.confine` applies it. Pure, but for looking up users.
"""

import grp
import pwd
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field

from ptserver.confinement.net_rules import NetRule, parse_rule
from ptserver.errors import ConfinementError

#: The limits that can be given, by name; sizes in bytes, cpu in seconds.
LIMITS = {
    name: getattr(resource, f"RLIMIT_{name.upper()}")
    for name in ("nofile", "cpu", "as", "fsize", "nproc", "core", "memlock", "stack", "data")
}
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True)
class User:
    """Whose rights a session has. groups: all of them, the main one too; environment: what names the user there."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Confinement:
    """See the module's text. None, or empty: not confined in that respect; an empty tuple: nothing is allowed."""

    root: str | None = None
    read_only: bool = False
    connect: tuple[NetRule, ...] | None = None
    bind: tuple[NetRule, ...] | None = None
    exec: tuple[str, ...] | None = None
    user: User | None = None
    limits: dict[str, int] = field(default_factory=dict)

    @property
    def gates_sockets(self) -> bool:
        """Whether calls on sockets must be judged."""
        return self.connect is not None or self.bind is not None

    @property
    def is_strict(self) -> bool:
        """Whether anything of it would mean little for root."""
        return self.root is not None or self.read_only or self.gates_sockets or self.exec is not None


#: What a session may do that is not confined by any option.
UNCONFINED = Confinement()


def parse_confinement(
    *,
    root: str | None = None,
    read_only: bool = False,
    connect: Sequence[str] = (),
    bind: Sequence[str] = (),
    executables: Sequence[str] = (),
    user: str | None = None,
    limits: Sequence[str] = (),
) -> Confinement:
    """Return what the options say. The word ``none`` alone is an empty list.

    A program that is executed is not judged by the lists of addresses, so with one of those and no list of programs,
    none may be executed.

    Raises:
        ConfinementError: an option is wrong.
    """
    connect_rules, bind_rules = _rules(connect), _rules(bind)
    programs = _programs(executables)
    if programs is None and (connect_rules is not None or bind_rules is not None):
        programs = ()
    return Confinement(
        root,
        read_only,
        connect_rules,
        bind_rules,
        programs,
        parse_user(user) if user is not None else None,
        dict(limit for text in limits for limit in _parse_limits(text)),
    )


def parse_user(text: str) -> User:
    """Return the user that *text* names: ``USER`` or ``USER:GROUP``, each a name or a number.

    Raises:
        ConfinementError: there is none such.
    """
    name, colon, group = text.partition(":")
    try:
        entry = pwd.getpwuid(int(name)) if name.isascii() and name.isdigit() else pwd.getpwnam(name)
        uid, gid, known = entry.pw_uid, entry.pw_gid, entry.pw_name
        environment = {"HOME": entry.pw_dir, "USER": known, "LOGNAME": known, "SHELL": entry.pw_shell}
    except KeyError as error:
        if not name.isdigit():
            raise ConfinementError(f"there is no user {name!r}") from error
        if not colon:
            raise ConfinementError(
                f"user {name} is not in /etc/passwd: give a group too, {name}:GROUP"
            ) from error
        uid, gid, known, environment = int(name), -1, "", {"HOME": "/"}
    if not colon:
        groups = tuple({gid, *(entry.gr_gid for entry in grp.getgrall() if known in entry.gr_mem)})
        return User(uid, gid, groups, environment)
    try:
        gid = int(group) if group.isascii() and group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ConfinementError(f"there is no group {group!r}") from error
    return User(uid, gid, (gid,), environment)


def _rules(texts: Sequence[str]) -> tuple[NetRule, ...] | None:
    if not texts:
        return None
    return () if list(texts) == ["none"] else tuple(map(parse_rule, texts))


def _programs(texts: Sequence[str]) -> tuple[str, ...] | None:
    if not texts:
        return None
    if list(texts) == ["none"]:
        return ()
    for text in texts:
        if not text.startswith("/"):
            raise ConfinementError(f"{text!r}: the path of a program that may be executed must be absolute")
    return tuple(texts)


def _parse_limits(text: str) -> list[tuple[str, int]]:
    limits = []
    for word in text.split(","):
        name, _, value = word.partition("=")
        digits = value.rstrip("kmgKMG")
        unit = _UNITS.get(value[len(digits) :].lower())
        if name not in LIMITS or not (digits.isascii() and digits.isdigit()) or unit is None:
            raise ConfinementError(
                f"{word!r} is no limit: write NAME=NUMBER, with k, m or g for sizes; names are {', '.join(LIMITS)}"
            )
        limits.append((name, int(digits) * unit))
    return limits
