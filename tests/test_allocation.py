"""Allocations: the law-suite of the table, each by its definition, and budgets of MACs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abridged.errors import InputError, UnsupportedError
from abridged.pruning.allocation import ALLOCATIONS, Layer, within_macs
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
    assert set(ALLOCATIONS) == {"uniform", "global", "erdos-renyi", "er", "erk", "lamp"}
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


CONVOLUTIONS = {"a": (16, 3, 3, 3), "b": (32, 16, 3, 3), "c": (64, 32, 3, 3), "d": (10, 64)}


def shaped(shapes: dict[str, tuple[int, ...]]) -> dict[str, Layer]:
    generator = torch.Generator().manual_seed(0)
    return {n: Layer(torch.Size(s), torch.rand(1, math.prod(s), generator=generator)) for n, s in shapes.items()}


@pytest.mark.parametrize("density", [0.01, 0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", ["er", "erk"])
def test_erdos_renyi_by_its_definition(name, density):
    layers = shaped(CONVOLUTIONS)
    found = ALLOCATIONS[name](layers, density)
    part = {n: s if name == "erk" else s[:2] for n, s in CONVOLUTIONS.items()}
    share = {n: sum(s) / math.prod(s) for n, s in part.items()}
    low, high = 0.0, 1e9
    for _ in range(200):  # ε by halving
        middle = (low + high) / 2
        kept = sum(min(1.0, middle * share[n]) * layers[n].size for n in layers)
        low, high = (middle, high) if kept < density * sum(layer.size for layer in layers.values()) else (low, middle)
    assert found == pytest.approx({n: min(1.0, low * share[n]) for n in layers})


def test_lamp_is_one_ranking_of_shares():
    layers = shaped({"a": (5, 4), "b": (7, 3)})
    with_zero = layers["b"].units
    with_zero[0, :3] = torch.finfo(torch.float32).min  # zero already: these go first
    found = ALLOCATIONS["lamp"](layers, 0.5)
    scores = []
    for name, layer in layers.items():
        squares = layer.units[0].double().clamp_min(0).square()
        scores += [(float(s / squares[squares >= s].sum()), name) for s in squares]
    best = [name for _, name in sorted(scores, reverse=True)[: count(0.5, len(scores))]]
    assert {name: round(found[name] * layers[name].size) for name in layers} == {n: best.count(n) for n in layers}


def test_lamp_empties_no_layer():
    layers = shaped({"a": (50, 40), "b": (7, 3)})
    layers["b"].units.mul_(1e-6)
    assert ALLOCATIONS["global"](layers, 0.01)["b"] == 0
    assert ALLOCATIONS["lamp"](layers, 0.01)["b"] > 0


@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
def test_macs_are_met_by_every_allocation(density):
    places = {"a": 99.0, "b": 9.0, "c": 2.0, "d": 1.0}
    layers = {n: Layer(layer.shape, layer.units, places[n]) for n, layer in shaped(CONVOLUTIONS).items()}
    macs = {n: layer.size * layer.positions for n, layer in layers.items()}
    for name in ALLOCATIONS:
        found = within_macs(ALLOCATIONS[name], layers, density)
        assert sum(found[n] * macs[n] for n in layers) == pytest.approx(density * sum(macs.values()), abs=2 * 99)
