"""Patterns: the law-suite of the table, exact counts, ties, and the selection among many scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abridged.errors import InputError
from abridged.pruning.patterns import PATTERNS, SAMPLE, _between, count, kth_largest, top

SHAPES = [(1, 1), (7, 5), (8, 4, 3, 3), (13,), (16, 8, 3)]
rows = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(st.integers(-3, 3), min_size=width, max_size=width), min_size=1, max_size=4)
)


@pytest.mark.parametrize("density", [0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", PATTERNS)
def test_law_of_patterns(name, shape, density):
    pattern, scores = PATTERNS[name], torch.rand(shape)
    arranged, units = pattern.arrange(scores), pattern.score(scores)
    assert torch.equal(arranged.flatten().sort().values, scores.flatten().sort().values), "each element in one place"
    assert torch.allclose(units, arranged.sum(2))
    mask = pattern.mask(units, density, scores.shape)
    assert mask.dtype == torch.bool
    assert mask.shape == scores.shape
    kept = pattern.alive(mask)
    assert torch.equal(pattern.expand(kept, scores.shape), mask), "units stay or go whole"
    assert (kept.sum(1) == count(density, units.shape[1])).all(), "each group keeps its count exactly"
    assert PATTERNS.summary(name)


def test_table_of_patterns():
    assert set(PATTERNS) == {"unstructured"}
    with pytest.raises(InputError, match="unknown pattern 'unstructurd'"):
        PATTERNS["unstructurd"]


@given(rows, st.data())
def test_top_is_the_stable_order_of_each_row(values, data):
    units = torch.tensor(values, dtype=torch.float32)
    keep = data.draw(st.integers(0, units.shape[1]))
    expected = torch.zeros_like(units, dtype=torch.bool)
    for row, scores in enumerate(values):
        best = sorted(range(len(scores)), key=lambda i, s=scores: (-s[i], i))
        expected[row, best[:keep]] = True
    assert torch.equal(top(units, keep), expected)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.data())
def test_top_is_nested(values, data):
    units = torch.tensor([values], dtype=torch.float32)
    low = data.draw(st.integers(0, len(values)))
    high = data.draw(st.integers(low, len(values)))
    assert not (top(units, low) & ~top(units, high)).any()


def test_infinite_scores_are_ordered():
    units = torch.tensor([[-float("inf"), 1.0, torch.finfo(torch.float32).min, -float("inf")]])
    assert top(units, 2).tolist() == [[False, True, True, False]]
    assert top(units, 3).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("kind", ["normal", "ties", "constant", "sorted", "periodic", "infinite"])
@settings(max_examples=10, deadline=None)
@given(share=st.floats(0, 1))
def test_kth_largest_of_many_is_that_of_a_sort(kind, share):
    torch.manual_seed(0)
    size = 10 * SAMPLE
    scores = {
        "normal": lambda: torch.randn(size),
        "ties": lambda: torch.randint(0, 3, (size,)).float(),
        "constant": lambda: torch.ones(size),
        "sorted": lambda: torch.arange(size).float(),
        # Every tenth score is large, and the sample takes every tenth: its bracket must not be believed.
        "periodic": lambda: (torch.arange(size) % 10 == 0) * 100 + torch.rand(size),
        "infinite": lambda: torch.where(torch.rand(size) < 0.5, -torch.inf, torch.randn(size)),
    }[kind]()
    k = max(1, round(share * size))
    parts = list(scores.split([7, size // 2, size - size // 2 - 7]))
    assert kth_largest(parts, k) == scores.sort(descending=True).values[k - 1]


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.3), (-torch.inf, 0.5), (0.5, torch.inf), (2.0, 3.0)])
def test_counting_a_bracket_is_the_same_off_the_cpu(low, high):
    scores = torch.rand(50_000)

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    above, inside = _between(scores, low, high)
    assert above == int((scores > high).sum())
    assert inside.tolist() == [x for x in scores.tolist() if low <= x <= high]
    above_there, inside_there = _between(scores.as_subclass(Elsewhere), low, high)
    assert above_there == above
    assert torch.equal(inside_there.as_subclass(torch.Tensor), inside)


def test_counts_by_hand():
    assert [count(0.5, n) for n in range(6)] == [0, 1, 1, 2, 2, 3]  # halves stay
    assert count(1 - 0.9, 10) == 1
    assert count(1.0, 7) == 7
