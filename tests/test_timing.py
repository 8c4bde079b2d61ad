"""Timing: the statistics are right, and the runs interleave, warm up and stop as the docstring says."""

import gc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abridged import timing
from abridged.timing import Samples, percentile, round_order, time_interleaved

times = st.lists(st.floats(0, 1e4, allow_nan=False), min_size=1, max_size=50)


class Clock:
    """A clock that only the calls move, so that a test says exactly what time passes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        self.log: list[str] = []
        monkeypatch.setattr(timing, "perf_counter_ns", lambda: self.now)

    def call(self, name: str, ms: float):
        def run() -> None:
            self.log.append(name)
            self.now += int(ms * 1e6)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@given(times, st.floats(0, 1))
def test_percentiles_are_those_of_numpy(values: list[float], fraction: float) -> None:
    assert percentile(values, fraction) == pytest.approx(float(np.quantile(values, fraction)), abs=1e-6)


@given(times)
def test_statistics_do_not_depend_on_the_order(values: list[float]) -> None:
    forward, backward = Samples(tuple(values)), Samples(tuple(reversed(values)))
    assert (forward.median, forward.p95, forward.spread) == (backward.median, backward.p95, backward.spread)
    assert min(values) - 1e-6 <= forward.median <= forward.p95 + 1e-6 <= max(values) + 2e-6
    assert forward.spread >= 0


def test_spread_is_the_interquartile_range_over_the_median() -> None:
    assert Samples((1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx(2 / 3)
    assert Samples((0.0, 0.0)).spread == 0


def test_no_runs_is_no_time() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Samples(())


def test_runs_take_turns_after_the_warm_up(clock: Clock) -> None:
    calls = {name: clock.call(name, ms) for name, ms in (("a", 1), ("b", 2), ("c", 5))}
    found = time_interleaved(calls, seconds=0, min_runs=12, warmup=2)
    assert {name: samples.ms for name, samples in found.items()} == {"a": (1,) * 12, "b": (2,) * 12, "c": (5,) * 12}
    assert clock.log[:6] == list("abcabc"), "warm-up"
    rounds = ["".join(clock.log[i : i + 3]) for i in range(6, len(clock.log), 3)]
    assert len(rounds) == 12
    assert all(sorted(each) == list("abc") for each in rounds)
    for place in range(3):
        assert set(Counter(each[place] for each in rounds).values()) == {4}, "each is equally often at each place"


def test_the_budget_sets_the_number_of_runs(clock: Clock) -> None:
    calls = {"a": clock.call("a", 4), "b": clock.call("b", 6)}
    assert time_interleaved(calls, seconds=1.0, min_runs=5)["a"].runs == 100
    assert time_interleaved(calls, seconds=0.001, min_runs=5)["b"].runs == 5
    assert time_interleaved(calls, seconds=1e9, min_runs=5, max_runs=7)["b"].runs == 7


def test_a_turn_pauses_wakes_and_repeats(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "sleep", lambda seconds: clock.log.append(f"sleep {seconds}"))
    calls = {"a": clock.call("a", 1), "b": clock.call("b", 2)}
    found = time_interleaved(calls, seconds=0, min_runs=5, warmup=0, repeat=3, pause=0.01)
    assert found["a"].ms == (1,) * 6, "rounded up to whole turns"
    turn = {name: ["sleep 0.01", *[name] * 4] for name in "ab"}
    assert clock.log == [*turn["a"], *turn["b"], *turn["b"], *turn["a"]]


def test_progress_is_told_from_nothing_to_nearly_all(clock: Clock) -> None:
    told: list[float] = []
    time_interleaved({"a": clock.call("a", 10)}, seconds=1.0, min_runs=10, progress=told.append)
    assert told[0] == 0
    assert told == sorted(told)
    assert 0.9 <= told[-1] <= 1
    time_interleaved({"a": clock.call("a", 10)}, seconds=0, min_runs=2, progress=told.append)


def test_nothing_to_time_and_bad_counts() -> None:
    assert time_interleaved({}) == {}
    with pytest.raises(ValueError, match="min_runs"):
        time_interleaved({"a": lambda: None}, min_runs=0)
    with pytest.raises(ValueError, match="repeat"):
        time_interleaved({"a": lambda: None}, repeat=0)
    with pytest.raises(ValueError, match="max_runs"):
        time_interleaved({"a": lambda: None}, min_runs=5, max_runs=4)


@pytest.mark.parametrize("enabled", [True, False])
def test_collection_is_off_while_timing_and_then_as_before(enabled: bool) -> None:
    seen: list[bool] = []
    (gc.enable if enabled else gc.disable)()
    try:
        time_interleaved({"a": lambda: seen.append(gc.isenabled())}, seconds=0, min_runs=1, warmup=0)
        assert seen == [False]
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def test_an_error_of_a_call_is_the_callers() -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        time_interleaved({"a": fail})
    assert gc.isenabled()


@given(st.integers(1, 6), st.integers(0, 100))
def test_every_round_runs_each_once(count: int, index: int) -> None:
    names = [str(i) for i in range(count)]
    assert sorted(round_order(names, index)) == names
