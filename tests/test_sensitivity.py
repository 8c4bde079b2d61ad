"""Sensitivity: curves by their definition, the allocation that is best for them, and allocations per layer in prune."""

import itertools

import pytest
import torch
from torch import nn

import abridged as ab
from abridged.data import Data
from abridged.errors import InputError, UnsupportedError
from abridged.pruning.prune import prune
from abridged.pruning.sensitivity import Sensitivity, sensitivity


def trained() -> tuple[nn.Sequential, Data]:
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    y = (x[:, 0] > x[:, 1]).long() + 2 * (x[:, 2] > 0).long()
    model = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 4))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, Data((x, y), (x, y))


def test_curves_are_the_losses_of_one_layer_pruned():
    model, data = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    curves = sensitivity(model, data, sparsities=(0.5, 0.9), samples=200)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert curves.sparsities == (0.0, 0.5, 0.9)
    assert list(curves.losses) == ["0.weight", "2.weight", "4.weight"]
    for name, (dense, *losses) in curves.losses.items():
        assert dense == pytest.approx(float(data.loss_function(model(data.train.x), data.train.y).detach()), rel=1e-5)
        for sparsity, loss in zip((0.5, 0.9), losses, strict=True):
            prune(model, sparsity, include=[name])
            expected = float(data.loss_function(model(data.train.x), data.train.y).detach())
            model.load_state_dict(before)
            assert loss == pytest.approx(expected, rel=1e-5)
    assert curves.dense == curves.losses["0.weight"][0]
    assert str(curves).count("\n") == 3


def test_plot_is_one_page(tmp_path):
    model, data = trained()
    page = ab.sensitivity(model, data, sparsities=(0.5, 1.0)).plot(tmp_path / "curves.html")
    text = page.read_text()
    assert "2.weight" in text
    assert "Sparsity of the layer" in text


@pytest.mark.parametrize("density", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_allocation_is_the_best_of_all_for_convex_curves(density):
    grid = (0.0, 0.25, 0.5, 0.75, 1.0)
    losses = {"a": (0.0, 0.1, 0.3, 0.9, 3.0), "b": (0.0, 0.0, 0.0, 0.1, 5.0), "c": (0.0, 1.0, 2.0, 3.0, 4.0)}
    curves = Sensitivity(grid, losses, {"a": 100, "b": 100, "c": 200})
    found = curves.allocate(density)
    kept = sum(found[name] * curves.sizes[name] for name in losses)
    assert kept == pytest.approx(density * 400)

    def cost(name: str, share: float) -> float:
        at = min(int((1 - share) * 4 + 1e-9), 3)
        return losses[name][at] + ((1 - share) * 4 - at) * (losses[name][at + 1] - losses[name][at])

    best = min(
        sum(cost(name, share) for name, share in zip(losses, shares, strict=True))
        for shares in itertools.product([i / 20 for i in range(21)], repeat=3)
        if sum(s * curves.sizes[n] for s, n in zip(shares, losses, strict=True)) <= density * 400 + 1e-6
    )
    assert sum(cost(name, share) for name, share in found.items()) <= best + 1e-9


def test_allocation_under_a_budget_of_macs():
    curves = Sensitivity((0.0, 1.0), {"a": (0.0, 1.0), "b": (0.0, 1.0)}, {"a": 100, "b": 100})
    assert curves.allocate(0.5, {"a": 900.0, "b": 100.0}) == {"a": pytest.approx(4 / 9), "b": 1.0}


@pytest.mark.parametrize("of", ["weights", "macs"])
@pytest.mark.parametrize("schedule", ["one-shot", "cubic"])
def test_prune_by_sensitivity(schedule, of):
    model, data = trained()
    curves = sensitivity(model, data, samples=200)
    times = {} if schedule == "one-shot" else {"steps": 3, "every": 1}
    masks = prune(model, 0.7, allocation=curves, schedule=schedule, of=of, data=data, **times)
    for _ in range(3 if times else 0):
        masks.step()
    assert masks.sparsity == pytest.approx(0.7, abs=2 / 816)
    wanted = curves.allocate(0.3)
    assert {n: float(m.float().mean()) for n, m in masks.items()} == pytest.approx(wanted, abs=0.03)
    again, data = trained()
    named = prune(again, 0.7, allocation="sensitivity", data=data, samples=200)
    assert named.sparsity == pytest.approx(0.7, abs=2 / 816)
    assert "sensitivity" in named.summary[0]
    state = masks.state_dict()
    masks.load_state_dict(state)


def test_mapping_says_it_for_each_layer():
    model, _ = trained()
    masks = prune(model, allocation={"2": 0.9, "?.weight": 0.5}, exclude=["4"])
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"0.weight": 72, "2.weight": 58}
    assert "per layer" in masks.summary[0]
    assert masks.notes == ("left by include and exclude: 4.weight",)
    shared = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    shared[1].weight = shared[0].weight
    assert prune(shared, allocation={"1": 0.5}).sparsity == 0.5


MISTAKES = {
    "both": ({"sparsity": 0.5, "allocation": {"0": 0.5}}, "leave out sparsity"),
    "include": ({"allocation": {"0": 0.5}, "include": ["2"]}, "leave out include"),
    "glob": ({"allocation": {"conv*": 0.5}}, "'conv[*]' matches no parameter"),
    "range": ({"allocation": {"0": 90}}, r"allocation\['0'\] must be a sparsity in \[0, 1\], not 90"),
    "empty": ({"allocation": {}, "sparsity": None}, "exactly one of sparsity"),
    "no data": ({"sparsity": 0.5, "allocation": "sensitivity"}, "allocation='sensitivity' measures the loss"),
    "threshold": ({"threshold": 0.5, "allocation": "sensitivity"}, "a threshold leaves nothing to allocate"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake):
    options, words = MISTAKES[mistake]
    model, data = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if mistake == "threshold":
        options = {**options, "data": data}
    with pytest.raises((InputError, UnsupportedError), match=words) as caught:
        prune(model, **options)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_curves_of_other_layers_and_other_patterns_are_refused():
    model, data = trained()
    curves = sensitivity(model, data, include=["0", "2"], sparsities=[1.0])
    with pytest.raises(InputError, match=r"curves are of other layers: 4\.weight"):
        prune(model, 0.5, allocation=curves)
    with pytest.raises(UnsupportedError, match="fixes the density inside each group"):
        prune(model, allocation={"2": 0.5}, pattern="2:4")
    with pytest.raises(InputError, match="pattern 'channel' goes through the whole network; here a pattern of weights"):
        sensitivity(model, data, pattern="channel")
    for wrong in ([], [0.0], [1.5], ["half"]):
        with pytest.raises(InputError, match=r"sparsities must be numbers in \(0, 1\]"):
            sensitivity(model, data, sparsities=wrong)
    with pytest.raises(InputError, match=r"sensitivity needs data=ab\.Data"):
        sensitivity(model, None)
