"""What several hosts do at once with a counter, a map under a lock and a channel has an order in which one alone
could have done it: each operation takes effect at one moment between its beginning and its end.
"""

import os
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import pytest

from tests.gofixtures import build
from tests.process.commands import ptserver


class Operation(NamedTuple):
    """start, end: ns; what was done, with which argument, and what came of it."""

    start: int
    end: int
    what: str
    argument: int
    result: int


State = Hashable
#: Returns the state after an operation that came in this state to its result; None if it could not.
Model = Callable[[State, Operation], State | None]


def _counter(state: State, operation: Operation) -> State | None:
    assert isinstance(state, int)
    after = state + operation.argument if operation.what == "add" else state
    return after if operation.result == after else None


def _map(state: State, operation: Operation) -> State | None:
    if operation.result != state:
        return None
    return operation.argument if operation.what == "put" else state


def _channel(state: State, operation: Operation) -> State | None:
    """A queue. How much room it has is not looked at: a send that waits takes effect when it begins to."""
    assert isinstance(state, tuple)
    if operation.what == "send":
        return (*state, operation.argument)
    return state[1:] if state and state[0] == operation.result else None


_MODELS: dict[str, tuple[Model, State]] = {
    "counter": (_counter, 0),
    "map": (_map, 0),
    "channel": (_channel, ()),
}


def is_linearizable(operations: Sequence[Operation], model: Model, state: State) -> bool:
    """Whether some order of *operations* that keeps those apart which did not overlap is possible for *model*.

    Searches depth first, and no (set of done operations, state) twice, as Wing and Gong, and Lowe do.
    """
    everything = (1 << len(operations)) - 1
    seen: set[tuple[int, State]] = set()
    waiting = [(0, state)]
    while waiting:
        done, state = waiting.pop()
        if done == everything:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        left = [index for index in range(len(operations)) if not done >> index & 1]
        first_end = min(operations[index].end for index in left)
        for index in left:
            if operations[index].start <= first_end:
                after = model(state, operations[index])
                if after is not None:
                    waiting.append((done | 1 << index, after))
    return False


@pytest.mark.parametrize(
    ("object_", "operations", "possible"),
    [
        ("counter", [(0, 5, "add", 1, 2), (1, 4, "add", 1, 1)], True),
        ("counter", [(0, 1, "add", 1, 2), (2, 3, "add", 1, 1)], False),
        ("counter", [(0, 1, "add", 1, 1), (2, 3, "get", 0, 0)], False),
        ("map", [(0, 9, "put", 7, 0), (1, 2, "get", 0, 7), (3, 4, "get", 0, 0)], False),
        ("map", [(0, 9, "put", 7, 0), (1, 2, "get", 0, 0), (3, 4, "get", 0, 7)], True),
        ("channel", [(0, 1, "send", 1, 0), (2, 3, "send", 2, 0), (4, 5, "receive", 0, 2)], False),
        ("channel", [(0, 3, "send", 1, 0), (2, 3, "send", 2, 0), (4, 5, "receive", 0, 2)], True),
    ],
)
def test_the_check_tells_possible_histories_from_others(
    object_: str, operations: list[tuple[int, int, str, int, int]], possible: bool
) -> None:
    model, state = _MODELS[object_]
    assert is_linearizable([Operation(*each) for each in operations], model, state) is possible


@pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel accesses needs privileges")
@pytest.mark.parametrize(
    "place", ["stay", *(pytest.param(f"random:{seed}", marks=pytest.mark.slow) for seed in range(5))]
)
def test_what_three_hosts_do_at_once_has_an_order(place: str) -> None:
    words = (
        "--spread",
        "local,local",
        "--straight",
        "all",
        "--place",
        place,
        build("spread_tasks", stub=True),
        "history",
    )
    status, out, err = ptserver("run", *words, env={"GOMAXPROCS": "4"}, timeout=250)
    assert (status, err) == (0, "")
    histories: dict[str, list[Operation]] = {name: [] for name in _MODELS}
    for line in out.splitlines():
        name, start, end, what, argument, result = line.split()
        histories[name].append(Operation(int(start), int(end), what, int(argument), int(result)))
    for name, operations in histories.items():
        assert len(operations) == 36
        assert is_linearizable(operations, *_MODELS[name]), (name, sorted(operations))
