"""Patterns: the law-suite of the table, exact counts, ties, and the selection among many scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from abridged.errors import InputError
from abridged.pruning.layers import Form, form_of
from abridged.pruning.patterns import PATTERNS, MisfitError
from abridged.pruning.prune import prune
from abridged.pruning.ranking import SAMPLE, _between, count, kth_largest, top

SHAPES = [(1, 1, 1, 1), (1, 7, 5, 1), (1, 8, 4, 9), (1, 13, 1, 1), (2, 8, 8, 3), (3, 4, 6, 2)]
rows = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(st.integers(-3, 3), min_size=width, max_size=width), min_size=1, max_size=4)
)


@pytest.mark.parametrize("density", [0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", [*PATTERNS, "3:5", "block 2x3", "block 7x1"])
def test_law_of_patterns(name, shape, density):
    pattern, scores = PATTERNS[name], torch.rand(shape)
    assert PATTERNS.summary(name)
    try:
        layout = pattern.layout(shape)
    except MisfitError:
        return
    arranged = layout.arrange(scores)
    assert torch.equal(arranged.flatten().sort().values, scores.flatten().sort().values), "each element in one place"
    mask = layout.mask(arranged.sum(2), density, scores.shape)
    assert mask.dtype == torch.bool
    assert mask.shape == scores.shape
    kept = layout.alive(mask)
    assert torch.equal(layout.expand(kept, scores.shape), mask), "units stay or go whole"
    assert (kept.sum(1) == count(density, arranged.shape[1])).all(), "each set keeps its count exactly"


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_fits_some_shape(name):
    assert PATTERNS[name].layout((2, 8, 8, 9))


def test_table_of_patterns():
    assert {"unstructured", "2:4", "4:8", "block 1x4", "block 4x4", "kernel", "row", "column"} <= set(PATTERNS)
    with pytest.raises(InputError, match="unknown pattern 'unstructurd'; did you mean 'unstructured'"):
        PATTERNS["unstructurd"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("4:2", "N of M needs 0 < N < M"),
        ("0:4", "N of M needs 0 < N < M"),
        ("4:4", "N of M needs 0 < N < M"),
        ("block 0x4", "at least 1x1"),
        ("block4x4", "a block of outputs x inputs 'block 4x1'"),
        ("block 4", "a block of outputs x inputs 'block 4x1'"),
        ("2/4", "N:M is written '2:4'"),
        ("", "unknown pattern ''"),
        (None, "unknown pattern"),
    ],
)
def test_names_that_cannot_be_read(name, words):
    with pytest.raises(InputError, match=words):
        PATTERNS[name]


def test_patterns_by_hand():
    weight = torch.arange(2 * 4 * 2.0).reshape(1, 2, 4, 2)  # (groups, outputs, inputs, taps)
    assert PATTERNS["row"].layout((1, 2, 4, 2)).arrange(weight)[0, 1].tolist() == [8, 9, 10, 11, 12, 13, 14, 15]
    assert PATTERNS["column"].layout((1, 2, 4, 2)).arrange(weight)[0, 1].tolist() == [2, 3, 10, 11]
    assert PATTERNS["kernel"].layout((1, 2, 4, 2)).arrange(weight)[0, 5].tolist() == [10, 11]
    assert PATTERNS["2:4"].layout((1, 2, 4, 2)).arrange(weight)[:, :, 0].tolist() == [
        [0, 2, 4, 6], [1, 3, 5, 7], [8, 10, 12, 14], [9, 11, 13, 15],
    ]  # fmt: skip
    assert PATTERNS["block 2x2"].layout((1, 2, 4, 2)).arrange(weight)[0].tolist() == [
        [0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "form"),
    [
        (nn.Linear(4, 6), Form()),
        (nn.Conv2d(4, 6, 3), Form()),
        (nn.Conv1d(4, 6, 3, groups=2), Form(2)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), Form(2, True)),
    ],
)
def test_forms_turn_there_and_back(layer, form):
    weight = layer.weight.detach()
    assert form_of(layer, "weight") == form
    canonical = form.canonical(weight)
    groups = form.groups
    assert canonical.shape[:3] == (groups, 6 // groups, 4 // groups)
    assert torch.equal(form.original(canonical, weight.shape), weight)


def test_a_row_is_an_output_and_a_column_an_input_of_every_layer():
    for layer in (nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2)):
        x = torch.randn(1, 4, 5, 5)
        layer.bias.data.zero_()
        prune(layer, 1 / 6, pattern="row")
        assert int((layer(x).detach() == 0).all((2, 3)).sum()) == 1, "one output is silent"
        layer.reset_parameters()
        prune(layer, 1 / 4, pattern="column")
        read = torch.autograd.grad(layer(x.requires_grad_()).sum(), x)[0].abs().sum((0, 2, 3))
        assert int((read == 0).sum()) == 1, "one input is not read"


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


@given(seed=st.integers(0, 1000), keep=st.integers(0, 40), guess=st.one_of(st.none(), st.floats(-3, 3)))
def test_a_guess_at_the_cut_changes_nothing(seed, keep, guess):
    generator = torch.Generator().manual_seed(seed)
    units = torch.randint(-3, 4, (1, 40), generator=generator).float()
    for cut in (guess, float(units[0, seed % 40])):
        assert torch.equal(top(units, keep, cut), top(units, keep))
