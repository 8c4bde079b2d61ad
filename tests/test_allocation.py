"""Allocations: the law-suite of the table, and that global is one exact ranking."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abridged.errors import InputError, UnsupportedError
from abridged.pruning.allocation import ALLOCATIONS, Layer
from abridged.pruning.ranking import count, top

models = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=20), min_size=1, max_size=5)


def layers_of(values: list[list[int]]) -> dict[str, Layer]:
    units = [torch.tensor([scores], dtype=torch.float32) for scores in values]
    return {f"layer{i}": Layer(u.shape, u) for i, u in enumerate(units)}


@pytest.mark.parametrize("name", ALLOCATIONS)
@given(values=models, density=st.floats(0, 1))
def test_law_of_allocations(name, values, density):
    layers = layers_of(values)
    densities = ALLOCATIONS[name](layers, density)
    assert densities.keys() == layers.keys()
    assert all(0 <= d <= 1 for d in densities.values())
    total = sum(layer.units.numel() for layer in layers.values())
    kept = sum(count(densities[key], layer.units.numel()) for key, layer in layers.items())
    assert abs(kept - density * total) <= len(layers) / 2 + 1e-9, "each layer rounds by at most one half"
    assert set(ALLOCATIONS[name](layers, 1.0).values()) == {1.0}
    assert set(ALLOCATIONS[name](layers, 0.0).values()) == {0.0}


def test_table_of_allocations():
    assert set(ALLOCATIONS) == {"uniform", "global"}
    assert all(ALLOCATIONS.summary(name) for name in ALLOCATIONS)
    with pytest.raises(InputError, match="unknown allocation 'globl'; did you mean 'global'"):
        ALLOCATIONS["globl"]


@given(models, st.floats(0, 1))
def test_global_is_the_stable_order_of_all_scores(values, density):
    layers = layers_of(values)
    ranked = sorted((-s, i, j) for i, scores in enumerate(values) for j, s in enumerate(scores))
    best = {(i, j) for _, i, j in ranked[: count(density, len(ranked))]}
    densities = ALLOCATIONS["global"](layers, density)
    for i, layer in enumerate(layers.values()):
        size = layer.units.numel()
        kept = top(layer.units, count(densities[f"layer{i}"], size))
        assert kept[0].tolist() == [(i, j) in best for j in range(size)]


def test_global_refuses_groups_that_fix_the_density():
    layers = {"conv.weight": Layer(torch.Size([4, 4]), torch.rand(4, 4))}
    with pytest.raises(UnsupportedError, match="this pattern fixes the density inside each group of 4"):
        ALLOCATIONS["global"](layers, 0.5)
    assert ALLOCATIONS["uniform"](layers, 0.5) == {"conv.weight": 0.5}
