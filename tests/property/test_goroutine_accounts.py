"""The accounts of goroutines, whatever comes in whatever order: nothing is lost, made up, or kept without bound."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ptserver.inspection.goroutine_stats import NO_GOROUTINE, Accounts, Listed, ThreadSample, Totals
from ptserver.tracelog.events import SyscallEvent
from tests.ringrecords import Record, batch_of

goids = st.integers(0, 12)
tids = st.integers(100, 104)
names = st.sampled_from(["read", "write", "sendfile", "openat", "mq_timedreceive", "futex"])
calls = st.tuples(st.just("call"), tids, goids, names, st.integers(-1, 1 << 40), st.integers(0, 1 << 40))
samples = st.tuples(
    st.just("threads"),
    st.dictionaries(tids, st.tuples(st.integers(0, 1 << 40), st.booleans(), goids), max_size=5),
)
listings = st.tuples(st.just("listing"), st.dictionaries(goids, st.booleans(), max_size=12))
steps = st.lists(st.tuples(st.integers(0, 1 << 30), st.one_of(calls, samples, listings)), max_size=60)


def call(now: int, tid: int, goid: int, name: str, value: int, duration: int) -> SyscallEvent:
    errno = 5 if value < 0 else 0
    return SyscallEvent(now, duration, 1, tid, name, (0,) * 6, value=value, errno=errno, goid=goid or None)


@given(steps, st.integers(1, 20))
def test_nothing_is_lost_or_made_up(things: list[tuple[int, tuple]], most: int) -> None:  # type: ignore[type-arg]
    accounts = Accounts(max_goroutines=most)
    cpu: dict[int, int] = {}
    expected: Counter[str] = Counter()
    now, sampled, first_listing, last_listing = 0, False, 0, None
    for elapsed, (kind, *rest) in things:
        now += elapsed
        if kind == "call":
            tid, goid, name, value, duration = rest
            accounts.take_call(call(now, tid, goid, name, value, duration))
            expected["calls"] += 1
            expected["errors"] += value < 0
            expected["call_ns"] += duration
            if name in ("read", "sendfile", "mq_timedreceive") and value > 0:
                expected["read_bytes"] += value
            if name in ("write", "sendfile") and value > 0:
                expected["written_bytes"] += value
        elif kind == "threads":
            grown = {}
            for tid, (used, _, _) in rest[0].items():
                expected["cpu_ns"] += used if sampled or tid in cpu else 0
                grown[tid] = cpu.get(tid, 0) + used
            cpu = grown  # a thread that is missing has ended; its number may come again
            accounts.take_threads(
                now, [ThreadSample(tid, cpu[tid], runs, goid) for tid, (_, runs, goid) in rest[0].items()]
            )
            sampled = True
        else:
            listed = [Listed(goid, waits, f"site {goid % 3}") for goid, waits in rest[0].items() if goid]
            accounts.take_listing(now, listed)
            first_listing = now if last_listing is None else first_listing
            last_listing = now
        total = accounts.total()
        assert {name: getattr(total, name) for name in expected} == expected
        summed = Totals()
        for site in accounts.by_site():
            summed.add(site)
        nobody = accounts.get(NO_GOROUTINE)
        if nobody is not None:
            summed.add(nobody)
        assert summed.cpu_ns + accounts.pending_cpu_ns == total.cpu_ns
        assert summed.calls == total.calls
        assert summed.blocked_ns == total.blocked_ns
        assert len(accounts.by_goroutine()) <= most + 1
        for account in accounts.by_goroutine():
            assert account.cpu_error_ns <= account.cpu_ns
            assert account.blocked_unsure_ns <= account.blocked_ns <= (last_listing or 0) - first_listing


@given(st.lists(st.tuples(st.integers(0, 10**9), st.booleans()), min_size=1, max_size=30))
def test_a_goroutine_that_always_runs_gets_all(steps: list[tuple[int, bool]]) -> None:
    accounts = Accounts()
    used = 0
    accounts.take_threads(0, [ThreadSample(1, 10**6, True, 7)])
    for now, (more, runs) in enumerate(steps, 1):
        used += more
        accounts.take_threads(now, [ThreadSample(1, 10**6 + used, runs, 7)])
    account = accounts.get(7)
    given_ns = 0 if account is None else account.cpu_ns
    assert given_ns + accounts.pending_cpu_ns == used
    if steps[-1][1]:
        assert given_ns == used


values = st.one_of(st.integers(-5000, 5000), st.integers(-(1 << 62), 1 << 62))
records = st.tuples(names, values, goids, st.integers(0, 1 << 40)).map(
    lambda made: Record(made[0], value=made[1], goid=made[2], duration=made[3])
)


@given(st.lists(records, max_size=40))
def test_many_calls_at_once_are_the_same_as_each(made: list[Record]) -> None:
    each, at_once = Accounts(), Accounts()
    batch = batch_of(made)
    events = batch.tuples(SyscallEvent)
    for event in events:
        each.take_call(event)
    by_name = at_once.take_batch(batch, 5)
    fields = ("goid", "calls", "errors", "call_ns", "read_bytes", "written_bytes")
    one, other = (
        {tuple(getattr(account, name) for name in fields) for account in accounts.by_goroutine()}
        for accounts in (each, at_once)
    )
    assert one == other
    assert by_name == {
        name: (
            sum(event.name == name for event in events),
            sum(event.name == name and event.errno != 0 for event in events),
            sum(event.duration_ns or 0 for event in events if event.name == name),
        )
        for name in {event.name for event in events}
    }


def test_the_error_is_the_deviation_of_many_samples() -> None:
    """Two goroutines share a thread by 3 to 1; the shares that samples give are off by no more than is said."""
    from random import Random

    random, inside = Random(17), 0
    for _ in range(200):
        accounts = Accounts()
        accounts.take_threads(0, [ThreadSample(1, 0, False, 0)])
        for number in range(1, 101):
            goid = 5 if random.random() < 0.75 else 6
            accounts.take_threads(number, [ThreadSample(1, number * 1000, True, goid)])
        five = accounts.get(5)
        assert five is not None
        inside += abs(five.cpu_ns - 75_000) <= five.cpu_error_ns
    assert inside >= 0.68 * 200


def test_what_ended_goes_to_where_it_was_created() -> None:
    accounts = Accounts()
    accounts.take_listing(0, [Listed(1, True, "main"), Listed(2, True, "worker"), Listed(3, False, "worker")])
    for goid in (2, 2, 3):
        accounts.take_call(call(5, 100, goid, "read", 10, 2))
    accounts.take_listing(100, [Listed(1, True, "main")])
    assert accounts.get(2) is not None  # its last calls may be on their way
    accounts.take_listing(200, [Listed(1, True, "main")])
    assert accounts.get(2) is None
    (main, worker) = sorted(accounts.by_site(), key=lambda site: site.site)
    assert (main.live, main.ended, main.blocked_ns) == (1, 0, 200)
    assert (worker.live, worker.ended, worker.calls, worker.read_bytes) == (0, 2, 3, 30)


def test_who_knows_better_needs_no_estimate() -> None:
    accounts = Accounts(estimate_blocked=False)
    accounts.take_listing(0, [Listed(4, True, "x")])
    accounts.take_listing(1000, [Listed(4, True, "x")])
    accounts.take_blocked(4, 123, end_ns=900)
    account = accounts.get(4)
    assert account is not None
    assert (account.blocked_ns, account.blocked_unsure_ns) == (123, 0)
