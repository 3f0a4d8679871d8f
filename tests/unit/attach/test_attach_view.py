"""The live view, without a program and without a terminal: what keys do, and what is drawn."""

import io
from collections.abc import Iterable

import pytest
from rich.console import Console

from ptserver.attach.screen import KEYS, split_keys
from ptserver.attach.snapshot import CallUse, GoroutineUse, GroupUse, SiteUse, Snapshot, Use, decode, encoder
from ptserver.attach.view import View
from ptserver.inspection.goroutine_list import FrameRow

PARK = (FrameRow("runtime.gopark", "/go/proc.go", 400), FrameRow("main.serve", "/src/main.go", 7))
SPIN = (FrameRow("main.spin[/red]", "/src/spin.go", 9),)

AT_SPIN, AT_SERVE = "main.spin spin.go:9", "main.serve main.go:7"
SNAPSHOT = Snapshot(
    title="process 7 (main)",
    pid=7,
    monotonic_ns=10**10,
    interval_ns=2 * 10**9,
    goroutines=42,
    states={"select": 41, "running": 1},
    threads=5,
    cores=2,
    recent=Use(cpu_ns=10**9, calls=5000, errors=20, read_bytes=1 << 21),
    total=Use(cpu_ns=4 * 10**9, calls=9000),
    lost=3,
    stopped_ns=2_500_000,
    stops=2,
    calls=(CallUse("read", 4000, 20, 8 * 10**9), CallUse("openat", 1000, 0, 10**6)),
    top=(
        GoroutineUse(0, recent=Use(cpu_ns=10**8, cpu_error_ns=10**7)),
        GoroutineUse(
            5, "running", "", None, AT_SPIN, "main.main main.go:1", 12, 1, Use(10**9), Use(4 * 10**9)
        ),
        GoroutineUse(
            6, "waiting", "select", 3 * 10**9, AT_SERVE, "main.main main.go:2", 0, 0, Use(calls=5000)
        ),
    ),
    groups=(
        GroupUse(41, "waiting", "select", (6, 8), 10**9, 3 * 10**9, 0),
        GroupUse(1, "running", "", (5,), None, None, 1),
    ),
    sites=(SiteUse("main.main main.go:2", 41, 9, Use(calls=5000), Use(calls=9000)),),
    stacks=(PARK, SPIN),
)


def drawn(view: View, width: int = 110, height: int = 24) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, height=height).print(view.render(width, height))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def pressed(keys: Iterable[str]) -> View:
    view = View()
    view.show(SNAPSHOT)
    view.render(110, 24)
    for key in keys:
        view.press(key)
    return view


def row_with(lines: list[str], text: str) -> list[str]:
    (line,) = [line for line in lines if text in line]
    return line.split()


def test_nothing_has_come_yet() -> None:
    assert drawn(View()) == ["attaching..."]


def test_what_stands_above_every_page() -> None:
    lines = drawn(pressed(""))
    assert lines[0] == "process 7 (main)  42 goroutines  5 threads  50% of 2 cores' 200%"
    assert lines[1].startswith(
        "2500 calls/s, 10 failed, 3 LOST  in 1.0 MiB/s  out 0 B/s  stopped 2 times, 2.5 ms"
    )
    assert lines[2] == "41 select, 1 running"
    assert "goid" in lines[4]


def test_goroutines_by_use() -> None:
    lines = drawn(pressed(""))
    assert [line.split()[0] for line in lines[5:8]] == ["5", "-", "6"]
    assert row_with(lines, "main.spin")[:3] == ["5", "running", "50.0±0.0"]
    assert row_with(lines, "main.serve")[:4] == ["6", "select", "3.0s", "0.0"]
    assert "2500" in row_with(lines, "main.serve")
    assert "(no goroutine" in " ".join(lines)


@pytest.mark.parametrize(
    ("keys", "first"),
    [("", "5"), ("r", "6"), ("oo", "6"), ("O", "6"), ("OOO", "-"), ("OOOr", "6")],
    ids=["cpu", "reversed", "calls", "waits", "goid", "goid-reversed"],
)
def test_order(keys: str, first: str) -> None:
    assert drawn(pressed(keys))[5].split()[0] == first


def test_since_the_start() -> None:
    lines = drawn(pressed("t"))
    assert "since the start" in lines[3]
    assert row_with(lines, "main.spin")[2] == "4.00s±0.00s"


def test_pages() -> None:
    assert row_with(drawn(pressed("2")), "main.serve") == ["41", "select", "3.0s", "main.serve"]
    assert drawn(pressed("3"))[5].split() == ["41", "select"]
    assert row_with(drawn(pressed("4")), "main.go:2")[:2] == ["41", "9"]
    assert row_with(drawn(pressed("5")), "  read")[:3] == ["2000.0", "10.0", "2ms"]
    assert drawn(pressed(["tab", "tab", "tab", "tab", "tab"])) == drawn(pressed(""))


def test_a_stack_is_shown_and_left() -> None:
    lines = drawn(pressed(["2", "down", "enter"]))
    assert "1 goroutines [running]" in lines[4]
    assert lines[5] == "main.spin[/red]"  # what a program calls itself is no markup
    assert lines[6].strip() == "/src/spin.go:9"
    lines = drawn(pressed(["enter"]))
    assert lines[4] == "goroutine 5 [running]"
    # The runtime's own calls are left out where there are others.
    assert "runtime.gopark" not in " ".join(drawn(pressed(["2", "enter"])))
    assert drawn(pressed(["enter", "escape"])) == drawn(pressed(""))
    assert "no stack is known" in " ".join(drawn(pressed(["down", "enter"])))


def test_filter() -> None:
    view = pressed("/serve")
    assert "/serve_" in drawn(view)[3]
    assert [line.split()[0] for line in drawn(view)[5:-1]] == ["6"]
    view.press("enter")
    view.press("2")
    assert [line.split()[0] for line in drawn(view)[5:-1]] == ["41"]
    view.press("escape")
    assert len(drawn(view)[5:-1]) == 2
    assert "/q" in drawn(pressed("/q"))[3]
    assert not pressed("/q").quits
    assert drawn(pressed(["/", "x", "backspace", "escape"])) == drawn(pressed(""))


def test_pause() -> None:
    view = pressed(" ")
    view.show(Snapshot(title="another", pid=8, monotonic_ns=1, interval_ns=1))
    assert "PAUSED" in drawn(view)[3]
    assert drawn(view)[0].startswith("process 7")
    view.press(" ")
    view.show(
        Snapshot(
            title="another", pid=8, monotonic_ns=1, interval_ns=1, ended="it has ended", notes=("a note",)
        )
    )
    assert drawn(view)[0].startswith("another")
    assert "a note" in drawn(view)
    assert "it has ended" in drawn(view)
    view.press("enter")  # no line to open


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_leaving(key: str) -> None:
    assert pressed([key]).quits


def test_help_names_every_key() -> None:
    text = " ".join(drawn(pressed("h")))
    for word in ("Tab", "PgUp", "Home", "Esc", "order", "text", "pause", "detach"):
        assert word in text
    assert drawn(pressed("hh")) == drawn(pressed(""))


@pytest.mark.parametrize(("width", "height"), [(20, 6), (110, 7), (300, 80), (1, 1)])
def test_any_window(width: int, height: int) -> None:
    for keys in ("", "2", "3", "4", "5", "h", ["enter"], ["pagedown", "end", "up", "home", "pageup"]):
        lines = drawn(pressed(keys), width, height)
        assert all(len(line) <= width for line in lines)


def test_scrolling_follows_the_chosen_line() -> None:
    view = View()
    rows = tuple(GoroutineUse(goid, at=f"main.f{goid} x") for goid in range(1, 101))
    view.show(Snapshot(title="t", pid=1, monotonic_ns=1, interval_ns=10**9, top=rows))
    for key, expected in [("end", 100), ("home", 1), ("pagedown", 20), ("down", 21), ("up", 20)]:
        drawn(view)
        view.press(key)
        lines = drawn(view)
        assert any(f"main.f{expected} " in line for line in lines), key


def test_all_pages_for_who_has_no_terminal() -> None:
    view = View()
    view.show(SNAPSHOT)
    out = io.StringIO()
    Console(file=out, width=160).print(view.print_all(160, 2))
    text = out.getvalue()
    for word in ("goroutines", "stacks", "states", "created at", "calls", "main.serve", "openat"):
        assert word in text


def test_keys() -> None:
    assert split_keys(b"q\x1b[A\x1b[6~\r\x1b") == ["q", "up", "pagedown", "enter", "escape"]
    assert split_keys("jä/\x7f".encode()) == ["j", "ä", "/", "backspace"]
    assert split_keys(b"\x1b[1;5Cx\x1bOPy") == ["x", "y"]
    assert split_keys(b"\x1b[1") == []
    assert split_keys(b"\xff\xfe") == ["��"]
    for sent, name in KEYS.items():
        assert split_keys(sent) == [name]


def test_a_snapshot_as_json() -> None:
    assert decode(encoder()(SNAPSHOT)) == SNAPSHOT


def test_use_since() -> None:
    before, now = Use(cpu_ns=10, cpu_error_ns=3, calls=1), Use(cpu_ns=30, cpu_error_ns=5, calls=4)
    assert now.since(before) == Use(cpu_ns=20, cpu_error_ns=4, calls=3)
