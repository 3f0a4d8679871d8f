"""What is fetched with what, as the home of a spread program learns it."""

from ptserver.spread.companions import PAUSE_SECONDS, Companions

_THREAD, _HOST = 7, 1
_WANTED = [100, 300, 200, 500]


class _Waits:
    """A thread that waits for pages, one burst after the other."""

    def __init__(self) -> None:
        self.companions = Companions()
        self.now = 0.0
        self.waits = 0

    def burst(self, pages: list[int], *, host: int = _HOST, write: bool = False) -> set[tuple[int, bool]]:
        """Wait for those of *pages* that have not been fetched; return what has been fetched besides."""
        ahead: set[tuple[int, bool]] = set()
        for page in pages:
            if page not in {fetched for fetched, _ in ahead}:
                self.waits += 1
                ahead |= set(self.companions.wants(_THREAD, host, page, write=write, now=self.now))
        self.now += 2 * PAUSE_SECONDS
        return ahead


def test_what_is_wanted_together_is_fetched_together_from_the_third_time_on() -> None:
    thread = _Waits()
    assert thread.burst(_WANTED) == thread.burst(_WANTED) == set()
    assert thread.burst(_WANTED, write=True) == {(300, False), (200, False), (500, False)}


def test_what_one_host_wants_is_not_fetched_for_another() -> None:
    thread = _Waits()
    for _ in range(3):
        thread.burst(_WANTED)
    assert thread.burst(_WANTED, host=2) == set()


def test_it_is_fetched_to_be_written_if_it_was_written_last() -> None:
    thread = _Waits()
    for _ in range(2):
        thread.burst([100, 300], write=True)
    assert thread.burst([100]) == {(300, True)}


def test_most_waits_are_saved_and_what_is_not_wanted_any_more_is_forgotten() -> None:
    thread = _Waits()
    for _ in range(100):
        thread.burst(_WANTED)
    assert thread.waits < 2 * len(_WANTED) + 100 + 100 // 8 + 2
    for _ in range(500):
        ahead = thread.burst(_WANTED[:2])
    assert {page for page, _ in ahead} <= {300}


def test_a_call_ends_a_burst() -> None:
    companions = Companions()
    for _ in range(3):
        list(companions.wants(_THREAD, _HOST, 100, write=False, now=0.0))
        companions.pause(_THREAD)
        assert list(companions.wants(_THREAD, _HOST, 300, write=False, now=0.0)) == []
        companions.pause(_THREAD)


def test_who_reads_in_sequence_gets_more_and_more_of_what_follows() -> None:
    thread = _Waits()
    pages = list(range(1000, 1200))
    ahead = thread.burst(pages)
    assert thread.waits < 25
    assert {page for page, _ in ahead} >= set(pages[4:]) - {
        page for page in pages if (page, False) not in ahead
    }
    assert max(page for page, _ in ahead) < 1200 + 16


def test_who_writes_in_sequence_what_it_has_read_gets_it_to_write() -> None:
    companions = Companions()
    wants = [
        set(companions.wants(_THREAD, _HOST, page, write=write, now=0.0))
        for page, write in ((10, False), (10, True), (11, False))
    ]
    assert wants == [set(), set(), {(12, True), (13, True)}]
