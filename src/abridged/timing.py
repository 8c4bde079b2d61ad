"""How long calls take, told apart from the noise of the machine: warm-up, interleaving, robust statistics.

Calls that are compared are run in turn (A B C, then C A B …), so that a drift of the machine (clock speed, heat, other
work) falls on all of them alike; the order rotates, and every other cycle runs backwards, so that none always follows
the same neighbour. Runtimes with thread pools of their own disturb each other: for some milliseconds after a call its
threads wait in a loop that keeps a core busy. So each turn may begin with a pause in which they fall asleep, and one run
that is thrown away, which wakes the threads and fills the caches of the one whose turn it is. Of the times of one call
we report

* `median`, the 50th percentile, which a few disturbed runs do not move;
* `p95`, the 95th percentile, what a slow call takes;
* `spread`, the interquartile range over the median, how far the times agree: 0.02 is a quiet machine, above 0.2 a
  difference of 20 % says nothing.

Percentiles interpolate linearly between the closest ranks (Hyndman & Fan 1996, type 7). Times are wall-clock.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns, sleep


@dataclass(frozen=True)
class Samples:
    """The milliseconds of one call's runs, in the order in which they ran.

    >>> few = Samples((4.0, 1.0, 2.0, 3.0, 90.0))
    >>> few.median, few.p95, round(few.spread, 2)
    (3.0, 72.8, 0.67)
    """

    ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.ms:
            raise ValueError("no runs: a time needs at least one")

    @property
    def runs(self) -> int:
        return len(self.ms)

    @property
    def median(self) -> float:
        return percentile(self.ms, 0.50)

    @property
    def p95(self) -> float:
        return percentile(self.ms, 0.95)

    @property
    def spread(self) -> float:
        """Interquartile range as a fraction of the median (0 when every run took no measurable time)."""
        median = self.median
        return (percentile(self.ms, 0.75) - percentile(self.ms, 0.25)) / median if median else 0.0


def percentile(values: Sequence[float], fraction: float) -> float:
    """The value below which `fraction` (in [0, 1]) of the values lie, linear between the closest ranks."""
    ranked = sorted(values)
    place = fraction * (len(ranked) - 1)
    low = math.floor(place)
    high = math.ceil(place)
    return round(ranked[low] + (ranked[high] - ranked[low]) * (place - low), 9)


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    min_runs: int = 20,
    max_runs: int = 10_000,
    warmup: int = 3,
    repeat: int = 1,
    pause: float = 0.0,
    progress: Callable[[float], object] | None = None,
) -> dict[str, Samples]:
    """Time every call equally often, in turn, and give each one's milliseconds.

    After `warmup` runs of each that are thrown away, rounds go on until `seconds` have passed in all, but at least until
    each has `min_runs` and at most until it has `max_runs`. In a round each has one turn of `repeat` runs, which with a
    `pause` (in seconds) begins with the pause and one run that is thrown away. Garbage is collected before and not
    during the rounds. `progress` is told the fraction done, between rounds and outside the times. What a call raises,
    it raises.

    >>> both = time_interleaved({"a": lambda: 1, "b": lambda: 2}, seconds=0, min_runs=5)
    >>> {name: samples.runs for name, samples in both.items()}
    {'a': 5, 'b': 5}
    """
    if not 1 <= min_runs <= max_runs or repeat < 1:
        raise ValueError(f"expected 1 <= min_runs <= max_runs and 1 <= repeat, got {min_runs}, {max_runs}, {repeat}")
    for _ in range(warmup):
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    least, most = math.ceil(min_runs / repeat), math.ceil(max_runs / repeat)
    budget = seconds * 1e9
    with _no_collection():
        start = perf_counter_ns()
        for done in range(most if calls else 0):
            elapsed = perf_counter_ns() - start
            if done >= least and elapsed >= budget:
                break
            if progress is not None:
                progress(min(done / least, elapsed / budget if budget else 1.0))
            for name in round_order(tuple(calls), done):
                times[name] += _turn(calls[name], repeat, pause)
    return {name: Samples(tuple(ms)) for name, ms in times.items()}


def _turn(call: Callable[[], object], repeat: int, pause: float) -> list[float]:
    """The milliseconds of `repeat` runs in a row; with a `pause` before them, also of one run that does not count."""
    if pause:
        sleep(pause)
        call()
    times = []
    for _ in range(repeat):
        before = perf_counter_ns()
        call()
        times.append((perf_counter_ns() - before) / 1e6)
    return times


def round_order(names: Sequence[str], index: int) -> list[str]:
    """The order of one round: rotated by one each round, reversed every other cycle of rounds.

    >>> ["".join(round_order("abc", i)) for i in range(6)]
    ['abc', 'bca', 'cab', 'cba', 'acb', 'bac']
    """
    cycle, shift = divmod(index, len(names))
    order = [*names[shift:], *names[:shift]]
    return order[::-1] if cycle % 2 else order


@contextmanager
def _no_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
