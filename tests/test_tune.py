"""How kernels are chosen: from measurements alone, which are invented here."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from abridged.compiler import tune


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "ROUNDS", (1, 1))


def clock(time: Callable[[int, int, int], float]) -> Callable[[list[int]], list[float]]:
    """Milliseconds of each step by its number, its choice, and the choice of the step before it."""
    return lambda picks: [time(i, pick, picks[i - 1] if i else 0) for i, pick in enumerate(picks)]


def test_the_fastest_choice_of_each_key_is_taken_and_noise_is_not() -> None:
    times = {"a": [5.0, 3.0, 4.0], "b": [2.0, 1.99, 2.5], "c": [1.0]}
    keys = ["a", "b", "a", "c"]
    measure = clock(lambda i, pick, before: times[keys[i]][pick])
    assert tune._alone([3, 3, 3, 1], keys, measure) == [1, 0, 1, 0]


def test_a_choice_is_judged_with_what_it_does_to_the_step_behind_it() -> None:
    """Alone the second choice of step 0 is the faster one; but then step 1 finds its input in the wrong cache."""
    measure = clock(lambda i, pick, before: (10.0, 9.0)[pick] if i == 0 else 10.0 + 5 * (pick != before))
    assert tune._alone([2, 2], ["a", "b"], measure) == [1, 0]  # of which step 1 knows nothing yet
    assert tune._among_neighbours([1, 0], [2, 2], ["a", "b"], measure) in ([0, 0], [1, 1])


def test_nothing_changes_for_less_than_noise() -> None:
    measure = clock(lambda i, pick, before: 10.0 - 0.1 * pick)
    assert tune._among_neighbours([0, 0], [2, 2], ["a", "b"], measure) == [0, 0]


def test_neighbours_never_change_at_once() -> None:
    keys = ["a", "b", "c", "b", "d", "a", "a"]
    sets = tune._apart(keys)
    assert sorted(key for some in sets for key in some) == ["a", "b", "c", "d"]
    for left, right in pairwise(keys):
        assert left == right or not any(left in some and right in some for some in sets)
    assert len(sets) < 4  # and those that may, do
