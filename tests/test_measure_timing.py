"""That candidates are timed side by side."""

from collections.abc import Callable

import pytest

from subquad.measure import timing
from subquad.measure.timing import interleaved


class FakeTime:
    """A clock that only computations move."""

    def __init__(self) -> None:
        self.now = self.busy = 0.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.busy

    def takes(self, *seconds: float, busy: float = 1.0) -> Callable[[], None]:
        """A computation whose calls last this long, one after the other; the last for ever."""
        left = list(seconds)

        def compute() -> None:
            passed = left.pop(0) if len(left) > 1 else left[0]
            self.now += passed
            self.busy += busy * passed

        return compute


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(timing, "time", fake)
    return fake


def test_candidates_take_turns(clock):
    called = []

    def candidate(name: str) -> Callable[[], None]:
        compute = clock.takes(1)
        return lambda: (called.append(name), compute())[1]

    interleaved({name: candidate(name) for name in "abc"}, repeats=4, seconds=0, warmup=0)
    assert "".join(called) == "abccbaabccba"


def test_median_and_quartiles_are_in_milliseconds(clock):
    found = interleaved({"a": clock.takes(3, 1, 5, 4, 2)}, repeats=5, seconds=0, warmup=0)["a"]
    assert (found.low, found.median, found.high, found.repeats) == (2000, 3000, 4000, 5)


def test_a_single_round_is_its_own_median(clock):
    found = interleaved({"a": clock.takes(3)}, repeats=1, seconds=0, warmup=0)["a"]
    assert (found.low, found.median, found.high, found.repeats) == (3000, 3000, 3000, 1)


def test_rounds_go_on_until_the_seconds_have_passed(clock):
    found = interleaved({"a": clock.takes(1), "b": clock.takes(1)}, repeats=2, seconds=9, warmup=0)
    assert [found[name].repeats for name in "ab"] == [5, 5]


def test_rounds_are_as_many_as_asked_for_however_long(clock):
    assert interleaved({"a": clock.takes(100)}, repeats=7, seconds=1, warmup=0)["a"].repeats == 7


def test_the_limit_ends_the_rounds_but_not_one_in_progress(clock):
    slow = {"a": clock.takes(4), "b": clock.takes(4)}
    found = interleaved(slow, repeats=7, seconds=1, limit=10, warmup=0)
    assert [found[name].repeats for name in "ab"] == [2, 2]


def test_a_quick_computation_is_called_until_a_sample_is_full(clock, monkeypatch):
    monkeypatch.setattr(timing, "SAMPLE_S", 2)
    found = interleaved({"a": clock.takes(0.5)}, repeats=3, seconds=0, warmup=0)["a"]
    assert (found.median, clock.now) == (500, 3 * 2)


def test_warming_up_is_not_timed(clock):
    found = interleaved({"a": clock.takes(50, 1)}, repeats=3, seconds=0, warmup=0.1)["a"]
    assert (found.high, found.repeats) == (1000, 3)


def test_the_processors_clock_leaves_out_waiting(clock):
    found = interleaved({"a": clock.takes(1, busy=0.25)}, repeats=3, seconds=0, clock="cpu")["a"]
    assert found.median == 250


@pytest.mark.parametrize(("candidates", "repeats"), [({}, 3), ({"a": print}, 0)])
def test_there_must_be_something_to_time(candidates, repeats):
    with pytest.raises(ValueError, match="give at least one of each"):
        interleaved(candidates, repeats=repeats)
