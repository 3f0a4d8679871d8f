"""The interest that a subclass of RuntimeServer declares, and how servers are found."""

import sys
from pathlib import Path
from typing import ClassVar

import pytest

from ptserver.call import Call
from ptserver.errors import ServerLoadError
from ptserver.server import IGNORE, OBSERVE, SERVE, Interest, Outcome, RuntimeServer, observe
from ptserver.servers import BUILT_IN, load
from stepping.syscalls import SYSCALLS, SyscallClass


class Watching(RuntimeServer):
    interests: ClassVar[dict[str, Interest]] = {"%net": OBSERVE, "getsockname": IGNORE}

    def openat(self, call: Call) -> Outcome:
        return call.proceed()

    @observe
    def write(self, call: Call) -> None: ...

    def helper(self) -> None: ...


def test_methods_and_interests_make_the_interest() -> None:
    declared = Watching.declared_interest()
    assert (declared["openat"], declared["write"]) == (SERVE, OBSERVE)
    assert declared["getsockname"] == IGNORE
    net = [name for name, row in SYSCALLS.items() if row.klass is SyscallClass.NET]
    assert set(declared) == {"openat", "write", *net}
    assert RuntimeServer.declared_interest() == {}


def test_a_subclass_inherits_the_methods_of_its_base() -> None:
    class More(Watching):
        def read(self, call: Call) -> Outcome:
            return call.fail(5)

    assert More.declared_interest()["openat"] == SERVE
    assert More.declared_interest()["read"] == SERVE
    assert (More.display_name(), More().openat.__name__) == ("More", "openat")


@pytest.mark.parametrize(
    ("interests", "message"),
    [
        ({"opennat": SERVE}, "no syscall 'opennat'"),
        ({"%nett": SERVE}, "not one of %file"),
        ({"openat": "watch"}, "not an interest"),
    ],
)
def test_an_interest_that_makes_no_sense_is_refused(interests: dict[str, Interest], message: str) -> None:
    class Wrong(RuntimeServer):
        pass

    Wrong.interests = interests
    with pytest.raises(ServerLoadError, match=message):
        Wrong.declared_interest()


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_servers_load_under_their_names(name: str) -> None:
    server = load(name)
    assert server.display_name() == name


def test_a_class_in_a_module_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_servers_x.py").write_text(
        "from ptserver.server import RuntimeServer\nclass Mine(RuntimeServer): pass\nother = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load("my_servers_x:Mine") is sys.modules["my_servers_x"].Mine
    for spec, message in [
        ("my_servers_x:Nobody", "has no 'Nobody'"),
        ("my_servers_x:other", "not a subclass"),
        ("my_servers_y:Mine", "no module 'my_servers_y'"),
        ("json.my:Mine", "no module 'json.my'"),
        ("nobody", "expected one of passthrough"),
        ("a b:C", "expected one of"),
    ]:
        with pytest.raises(ServerLoadError, match=message):
            load(spec)


def test_a_module_that_misses_another_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_servers_z.py").write_text("import there_is_no_such_module_q\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ServerLoadError, match="there is no module 'there_is_no_such_module_q'"):
        load("my_servers_z:Mine")


def test_a_module_that_fails_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_servers_f.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ServerLoadError, match="importing my_servers_f raised ZeroDivisionError: division by zero"
    ):
        load("my_servers_f:Mine")
