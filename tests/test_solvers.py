"""Repair: the algebra against oracles in float64, the walk layer by layer, and every solver through `prune`."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import abridged as ab
from abridged.calibration import solve
from abridged.errors import InputError, UnsupportedError
from abridged.pruning.solvers import NORMS, SOLVERS, reestimate, repair

T = torch.float64


def problem(seed, groups=1, outputs=3, features=5, rows=40, density=0.5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, rows, features, generator=generator, dtype=T) @ torch.randn(
        groups, features, features, generator=generator, dtype=T
    )
    w = torch.randn(groups, outputs, features, generator=generator, dtype=T)
    mask = torch.rand(groups, outputs, features, generator=generator) < density
    return x, w, mask, x.mT @ x


# --- least squares --------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 7), st.integers(1, 9), st.floats(0, 1))
def test_least_squares_is_lstsq_on_the_support(seed, groups, outputs, features, density):
    x, w, mask, gram = problem(seed, groups, outputs, features, density=density)
    new = solve.least_squares(w, mask, gram, damping=0.0)
    assert torch.equal(new != 0, new * mask != 0)
    for g in range(groups):
        for o in range(outputs):
            support = mask[g, o].nonzero()[:, 0]
            expected = torch.linalg.lstsq(x[g][:, support], x[g] @ w[g, o, :, None], driver="gelsd").solution[:, 0]
            error = (x[g][:, support] @ (new[g, o, support] - expected)).norm()
            assert error <= 1e-7 * (x[g] @ w[g, o]).norm() + 1e-9


def test_other_inputs_of_the_dense_network_are_aimed_at():
    x, w, mask, _ = problem(1)
    now = x + 0.3 * torch.randn_like(x)
    new = solve.least_squares(w, mask, now.mT @ now, now.mT @ x, damping=0.0)
    for o in range(3):
        support = mask[0, o].nonzero()[:, 0]
        expected = torch.linalg.lstsq(now[0][:, support], x[0] @ w[0, o, :, None]).solution[:, 0]
        assert torch.allclose(new[0, o, support], expected)


def test_chunks_of_rows_do_not_change_the_solution(monkeypatch):
    _, w, mask, gram = problem(2, outputs=13, features=11)
    whole = solve.least_squares(w, mask, gram), solve.saliency(w, mask, gram)
    monkeypatch.setattr(solve, "ELEMENTS", 1)
    assert torch.allclose(solve.least_squares(w, mask, gram), whole[0])
    assert torch.allclose(solve.saliency(w, mask, gram), whole[1])


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_damping_bears_every_rank(rank):
    x = torch.randn(1, rank, 6, dtype=T)
    w, mask = torch.randn(1, 4, 6, dtype=T), torch.rand(1, 4, 6) < 0.5
    gram = x.mT @ x
    for new, kept in (
        (solve.least_squares(w, mask, gram), mask),
        solve.surgeon(w, torch.ones_like(mask), gram, 7),
        solve.sparse_gpt(w, gram, keep=11),
    ):
        assert new.isfinite().all()
        assert torch.equal(new * kept, new)


def test_inputs_that_are_always_zero_change_no_weight():
    w, mask = torch.randn(1, 2, 4, dtype=T), torch.tensor([[[True, True, False, True]] * 2])
    assert torch.allclose(solve.least_squares(w, mask, torch.zeros(1, 4, 4)), w * mask)


# --- OBS ------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 9))
def test_one_weight_is_the_closed_form_of_hassibi_and_stork(seed, features):
    _, w, _, gram = problem(seed, outputs=1, features=features, rows=3 * features)
    gram = gram + 0.1 * torch.eye(features, dtype=T)
    every, inverse = torch.ones_like(w, dtype=torch.bool), torch.linalg.inv(gram[0])
    expected = w[0, 0].square() / inverse.diagonal()
    assert torch.allclose(solve.saliency(w, every, gram, damping=0.0)[0, 0], expected, rtol=1e-6)
    new, mask = solve.surgeon(w, every, gram, features - 1, rounds=1, damping=0.0)
    q = int(expected.argmin())
    assert not mask[0, 0, q]
    assert mask.sum() == features - 1
    closed = w[0, 0] - w[0, 0, q] / inverse[q, q] * inverse[:, q]
    assert torch.allclose(new[0, 0], closed.index_fill(0, torch.tensor(q), 0.0), rtol=1e-5, atol=1e-8)
    assert torch.allclose(solve.error(new, w, gram), expected[q], rtol=1e-5, atol=1e-10)


def test_saliency_off_the_full_support_is_the_growth_of_the_error():
    _, w, mask, gram = problem(3, outputs=2, features=6, density=0.7)
    new = solve.least_squares(w, mask, gram, damping=0.0)
    scores, start = solve.saliency(new, mask, gram, damping=0.0), solve.error(new, w, gram)
    assert torch.equal(scores == -math.inf, ~mask)
    for g, o, j in mask.nonzero().tolist():
        fewer = mask.clone()
        fewer[g, o, j] = False
        grown = solve.error(solve.least_squares(w, fewer, gram, damping=0.0), w, gram) - start
        assert math.isclose(float(grown), float(scores[g, o, j]), rel_tol=1e-6, abs_tol=1e-8)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3, 128]))
def test_sparse_gpt_is_the_slow_removal_of_one_column_after_the_other(seed, block):
    _, w, mask, gram = problem(seed, groups=2, outputs=3, features=8)
    new, kept = solve.sparse_gpt(w, gram, mask=mask, block=block)
    assert torch.equal(kept, mask)
    whole, _ = solve.damped(gram)
    for g in range(2):
        for o in range(3):
            row = w[g, o].clone()
            for i in range(8):
                inverse = torch.linalg.inv(whole[g, i:, i:])
                if not mask[g, o, i]:
                    row[i:] = row[i:] - row[i] / inverse[0, 0] * inverse[:, 0]
            assert torch.allclose(new[g, o], row * mask[g, o], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("group", [(2, 4), (1, 4), (4, 8), (3, 3)])
def test_sparse_gpt_chooses_n_of_m(group):
    _, w, _, gram = problem(5, outputs=4, features=24)
    new, kept = solve.sparse_gpt(w, gram, group=group, block=10)
    assert (kept.reshape(1, 4, -1, group[1]).sum(-1) == group[0]).all()
    assert torch.equal(new * kept, new)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 0.9))
def test_repair_is_never_worse_than_the_mask_alone_and_more_weights_never_hurt(seed, density):
    _, w, mask, gram = problem(seed, outputs=6, features=12, density=density)
    alone, repaired = w * mask, solve.least_squares(w, mask, gram, damping=0.0)
    slack = 1e-9 * solve.error(torch.zeros_like(w), w, gram)
    assert solve.error(repaired, w, gram) <= solve.error(alone, w, gram) + slack
    assert solve.error(repaired, w, gram) <= solve.error(solve.sparse_gpt(w, gram, mask=mask)[0], w, gram) + slack
    more = mask | (torch.rand_like(w) < 0.2)
    assert solve.error(solve.least_squares(w, more, gram, damping=0.0), w, gram) <= (
        solve.error(repaired, w, gram) + slack
    )


def test_choosing_by_saliency_beats_magnitude():
    wins = 0
    for seed in range(10):
        _, w, _, gram = problem(seed, outputs=8, features=32, rows=100)
        keep = w.numel() // 5
        mask = w.abs() >= w.abs().flatten().sort(descending=True).values[keep - 1]
        new, kept = solve.surgeon(w, torch.ones_like(mask), gram, keep)
        assert kept.sum() == keep
        wins += bool(solve.error(new, w, gram) < solve.error(solve.least_squares(w, mask, gram), w, gram))
    assert wins == 10


@pytest.mark.parametrize("options", [{}, {"keep": 5, "group": (2, 4)}, {"group": (2, 3)}, {"group": (0, 4)}])
def test_sparse_gpt_refuses_what_makes_no_sense(options):
    with pytest.raises(InputError):
        solve.sparse_gpt(torch.ones(1, 2, 8), torch.eye(8)[None], **options)


# --- whole networks -------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm1(self.conv1(x)).relu()
        x = x + self.norm2(nn.functional.pad(self.conv2(x), (1, 2, 1, 2))).repeat_interleave(1, 1).mean((2, 3), True)
        return self.head(x.mean((2, 3)))


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(3, 8, 3, bias=False), nn.Conv1d(8, 8, 3, groups=2), nn.Linear(8, 5)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu().mean(2))


NETS = {"2d": (Net, (64, 2, 6, 6)), "1d": (Line, (64, 3, 9))}


def made(kind, seed=0):
    torch.manual_seed(seed)
    build, shape = NETS[kind]
    model, x = build(), torch.randn(shape)
    model.train()
    model(x)  # statistics of batch norms
    return model.eval(), x


@torch.no_grad()
def gap(model, dense, x):
    return float((model(x) - dense(x)).square().mean())


@pytest.mark.parametrize("kind", list(NETS))
@pytest.mark.parametrize("solver", list(SOLVERS))
def test_every_solver_keeps_its_zeros_and_repairs(solver, kind):
    dense, x = made(kind)
    alone, model = copy.deepcopy(dense), copy.deepcopy(dense).train()
    ab.prune(alone, 0.6, allocation="uniform")
    masks = ab.prune(model, 0.6, allocation="uniform", solver=solver, data=ab.Data((x, None), (x, None)))
    assert model.training
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert not weight[~mask].any()
        assert mask.sum() == alone.get_parameter(name).count_nonzero()
    if solver == "none":
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True))
    else:
        assert gap(model.eval(), dense, x) < gap(alone, dense, x)
        assert "repaired by" in str(masks)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("pattern", ["2:4", "row", "block 2x1"])
@pytest.mark.parametrize("solver", ["obs", "sparse-gpt", "least-squares"])
def test_other_patterns_keep_their_masks(pattern, solver):
    torch.manual_seed(0)
    dense, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(100, 8)
    alone, model = copy.deepcopy(dense), copy.deepcopy(dense)
    expected = ab.prune(alone, 0.5, pattern=pattern, allocation="uniform")
    masks = ab.prune(
        model, 0.5, pattern=pattern, allocation="uniform", solver=solver, data=ab.Data((x, None), (x, None))
    )
    assert all(torch.equal(masks[name], expected[name]) for name in masks)
    assert gap(model, dense, x) < gap(alone, dense, x)


def test_bounded_memory_gives_the_same_from_a_pass_per_layer():
    dense, x = made("2d")
    results = []
    for memory in (1 << 30, 1):
        model = copy.deepcopy(dense)
        masks = {
            name: model.get_parameter(name).abs() > 0.15 for name in ("conv1.weight", "conv2.weight", "head.weight")
        }
        repair(model, masks, "least-squares", x, norms=True, memory=memory)
        results.append(model.state_dict())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*(r.values() for r in results), strict=True))


def test_nothing_comes_back_to_life():
    model, x = made("2d")
    ab.prune(model, 0.5)
    zero = {name: p == 0 for name, p in model.named_parameters() if p.ndim > 1}
    ab.prune(model, 0.7, solver="obs", data=ab.Data((x, None), (x, None)))
    assert all(not model.get_parameter(name)[where].any() for name, where in zero.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    torch.manual_seed(0)
    dense, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)).to(dtype), torch.randn(64, 16)
    alone, model = copy.deepcopy(dense), copy.deepcopy(dense)
    ab.prune(alone, 0.5)
    ab.prune(model, 0.5, solver="least-squares", data=ab.Data((x, None), (x, None)))
    assert model[0].weight.dtype == dtype
    assert gap(model, dense, x.to(dtype)) < gap(alone, dense, x.to(dtype))


def test_one_sample_dead_channels_and_frozen_weights():
    model, x = made("2d")
    with torch.no_grad():
        model.conv1.weight[3] = 0
        model.norm1.bias[3] = -1
    model.conv1.weight.requires_grad_(False)
    masks = ab.prune(model, 0.5, solver="obs", reestimate=True, data=ab.Data((x[:1], None), (x, None)))
    assert masks.sparsity == pytest.approx(0.5, abs=1e-3)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert not model.conv1.weight.requires_grad


# --- batch norm -----------------------------------------------------------------------------------------------------


def test_reestimate_sets_what_training_on_one_batch_would():
    model, x = made("2d")
    expected = copy.deepcopy(model)
    for module in (model.norm1, model.norm2):
        module.reset_running_stats()
    lines = []
    assert reestimate(model, x, say=lines.append) == 2
    assert lines == ["2 of 2 batch norms: running mean and variance re-estimated"]
    for module in expected.modules():
        if isinstance(module, NORMS):
            module.momentum = 1.0
    expected.train()(x)
    for name in ("norm1", "norm2"):
        mine, theirs = model.get_submodule(name), expected.get_submodule(name)
        # In training the first norm divides by the biased variance, afterwards by the unbiased: 1 / 2,304 apart.
        assert torch.allclose(mine.running_mean, theirs.running_mean, atol=1e-3)
        assert torch.allclose(mine.running_var, theirs.running_var, rtol=1e-3)
    assert not model.training


@pytest.mark.parametrize("seed", range(4))
def test_what_is_left_of_a_dead_row_is_the_shift_of_its_norm(seed):
    torch.manual_seed(seed)  # statistics that are far from those of the data, as before any training
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten()
    net = nn.Sequential(*layers, nn.Linear(8 * 36, 4)).eval()
    nn.init.uniform_(net[1].bias, 0.1, 0.9)
    x = torch.randn(8, 3, 8, 8)
    data = ab.Data((x, None), (x, None))
    masks = ab.prune(
        net,
        0.5,
        pattern="row",
        allocation="uniform",
        solver="least-squares",
        reestimate=True,
        data=data,
        samples=8,
        say=None,
    )
    dead = ~masks["0.weight"].flatten(1).any(1)
    assert dead.any()
    with torch.no_grad():
        rows = net[:2](x)[:, dead].movedim(1, -1)
    torch.testing.assert_close(rows, net[1].bias.detach()[dead].expand(rows.shape), atol=1e-3, rtol=0)


def test_reestimating_an_unpruned_network_changes_nothing():
    model, x = made("2d")
    before = copy.deepcopy(model.state_dict())
    masks = {"conv1.weight": torch.ones_like(model.conv1.weight, dtype=torch.bool)}
    _, said = repair(model, masks, "none", ab.Data((x, None), (x, None)), norms=True)
    assert said == ("re-estimated: 2 of 2 batch norms",)
    assert all(torch.allclose(value, before[key]) for key, value in model.state_dict().items())


# --- bad input ------------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def wild():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].bias.data.fill_(math.nan)
    return model


X = torch.ones(6, 4)
BAD = X.clone()
BAD[2, 1] = math.nan


@pytest.mark.parametrize(
    ("model", "options", "kind", "message"),
    [
        (nn.Linear(4, 4), {"solver": "obz"}, InputError, "unknown solver 'obz'; did you mean 'obs'?"),
        (nn.Linear(4, 4), {"solver": "obs", "data": None}, InputError, "a solver measures on data: give data=ab.Data"),
        (
            nn.Linear(4, 4),
            {"reestimate": True, "data": None},
            InputError,
            "reestimate measures on data: give data=ab.Data",
        ),
        (nn.Linear(4, 4), {"solver": "obs", "data": X}, InputError, "data must be an ab.Data, not Tensor"),
        (nn.Linear(4, 4), {"solver": "obs", "x": BAD}, InputError, "calibration data holds NaN or infinity"),
        (nn.Linear(4, 4), {"reestimate": True}, InputError, "the model has no batch norm"),
        (nn.Linear(4, 4), {"solver": "obs", "schedule": "cubic", "steps": 9}, InputError, "leave schedule at"),
        (Twice(), {"solver": "obs"}, UnsupportedError, "layer is called several times in one pass"),
        (tied(), {"solver": "obs"}, UnsupportedError, "0.weight is shared (2 layers)"),
        (wild(), {"solver": "mean"}, InputError, "1.weight: NaN or infinity reaches its layer"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(model, options, kind, message):
    x = options.pop("x", X)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind) as caught:
        ab.prune(model, 0.5, **{"data": ab.Data((x, None), (X, None)), **options})
    assert message in str(caught.value)
    assert all(
        torch.equal(
            value,
            before[key],
        )
        or value.isnan().any()
        for key, value in model.state_dict().items()
    )
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_an_error_in_the_middle_of_the_walk_restores_the_model():
    class Fails(nn.Sequential):
        def forward(self, x):
            x = self[0](x)
            if len(x) < 6:
                return self[1](x)
            raise ValueError("no more than five")

    model = Fails(nn.Linear(4, 4), nn.Linear(4, 4))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="no more than five"):
        ab.prune(model, 0.5, solver="obs", data=ab.Data((X, None), (X, None)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("model", [nn.Linear(2, 2), "net"])
def test_reestimate_refuses_what_has_no_batch_norm(model):
    with pytest.raises(InputError):
        reestimate(model, torch.ones(3, 2))


# --- recipes, and trained weights -----------------------------------------------------------------------------------


def test_a_recipe_repairs_at_once():
    from abridged import recipe

    text = "steps:\n  - prune: {sparsity: 0.8, schedule: one-shot, epochs: 0, solver: obs, reestimate: true}\n"
    step = recipe.from_yaml(text, "test").steps[0]
    assert (step.solver, step.reestimate) == ("obs", True)
    with pytest.raises(InputError, match=r"line 2: .*did you mean 'obs'"):
        recipe.from_yaml(text.replace("obs", "obss"), "test")
    with pytest.raises(InputError, match="add schedule: one-shot"):
        recipe.from_yaml(text.replace("one-shot", "cubic").replace("epochs: 0", "epochs: 1"), "test")


def test_the_step_of_a_recipe_repairs_on_its_own_data(tmp_path):
    from abridged.recipe import Prune
    from abridged.steps import Work, remove

    model, x = made("2d")
    data = ab.Data((x, torch.zeros(64)), (x, torch.zeros(64)))
    options = Prune(sparsity=0.5, schedule="one-shot", epochs=0, solver="least-squares", reestimate=True)
    outcome = remove(Work(model, copy.deepcopy(model), data, seed=0), options, tmp_path / "checkpoint")
    assert "repaired by least-squares: 3 of 3 weights" in outcome.notes


def test_what_cannot_be_solved_is_one_line_and_restores_the_model(monkeypatch):
    def singular(problem):
        torch.linalg.cholesky(torch.zeros(2, 2))

    monkeypatch.setitem(SOLVERS._entries, "least-squares", singular)
    net = nn.Sequential(nn.Linear(4, 3))
    before = net[0].weight.detach().clone()
    x = torch.randn(8, 4)
    with pytest.raises(
        InputError, match=r"^0.weight: its inputs hardly differ on this data.*more samples, or exclude it"
    ):
        ab.prune(net, 0.5, solver="least-squares", data=ab.Data((x, None), (x, None)))
    assert torch.equal(net[0].weight, before)
