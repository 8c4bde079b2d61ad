"""Criteria: the law-suite of the table, what each one says, and that it asks for what it needs."""

import math

import pytest
import torch
from torch import nn

import abridged as ab
from abridged.data import Data
from abridged.errors import InputError, UnsupportedError
from abridged.pruning.collect import Collector
from abridged.pruning.criteria import CRITERIA, NEEDS, Stats
from abridged.pruning.layers import Form, weights_of
from abridged.pruning.prune import prune


def stats_for(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Stats:
    """Statistics of the right shapes, random, for whatever a criterion needs."""
    groups, outputs, inputs, taps = shape
    generator = torch.Generator().manual_seed(1)

    def make(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    rows = make(groups, max(1, inputs * taps), 3 + inputs * taps)
    every = {
        "input_norm": make(groups, 1, inputs, taps).abs(),
        "input_gram": (rows @ rows.transpose(1, 2))[:, : inputs * taps, : inputs * taps],
        "scale": make(groups, outputs),
        "active": make(groups, outputs).abs().clamp(max=1),
        "activation": make(groups, outputs).abs(),
        "gradient_squared": make(*shape).square(),
        "hessian_diagonal": make(*shape).abs(),
        "positions": 3.0,
    }
    needs = CRITERIA[name].needs
    return Stats("layer.weight", **{need: every.get(need, make(*shape)) for need in needs})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 7, 5, 1), (2, 3, 2, 9)], ids=str)
@pytest.mark.parametrize("name", CRITERIA)
def test_law_of_criteria(name, shape, dtype):
    weight, criterion = torch.randn(shape).to(dtype), CRITERIA[name]
    stats = stats_for(name, shape, dtype)
    before = weight.clone()
    scores = criterion.score(weight, stats)
    assert scores.shape == (weight.shape if criterion.per == "weight" else weight.shape[:2])
    assert scores.is_floating_point()
    assert torch.isfinite(scores).all()
    assert torch.equal(weight, before)
    own = {value.data_ptr() for value in vars(stats).values() if isinstance(value, torch.Tensor)}
    assert scores.data_ptr() not in own | {weight.data_ptr()}
    assert torch.equal(scores, criterion.score(weight, stats))
    assert criterion.needs <= NEEDS
    if criterion.per == "weight":
        units = criterion.combine(scores.reshape(1, -1, 1))
        assert units.shape == (1, weight.numel())
        assert criterion(weight, stats).shape == weight.shape
    assert CRITERIA.summary(name)
    assert "(" in criterion.__doc__ or name in ("random", "linf"), "it names its paper"


def test_table_of_criteria():
    assert {"magnitude", "l2", "linf", "random", "lamp", "taylor", "snip", "grasp", "synflow", "fisher"} <= set(
        CRITERIA
    )
    with pytest.raises(InputError, match="unknown criterion 'magnitud'; did you mean 'magnitude'"):
        CRITERIA["magnitud"]
    with pytest.raises(ValueError, match="Stats has no"):
        CRITERIA.entry("wrong", needs=["gradeint"])


def test_magnitude_is_the_absolute_value():
    assert CRITERIA["magnitude"](torch.tensor([[-3.0, 0.0], [0.5, -0.0]]), Stats("w")).tolist() == [[3, 0], [0.5, 0]]


def test_norms_of_units():
    terms = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    assert CRITERIA["l1"].combine(terms).tolist() == [[7, 0]]
    assert CRITERIA["l2"].combine(terms).tolist() == [[5, 0]]
    assert CRITERIA["linf"].combine(terms).tolist() == [[4, 0]]
    assert CRITERIA["taylor"].combine(torch.tensor([[[3.0, -4.0]]])).tolist() == [[1]]


def test_random_depends_on_seed_and_name_alone():
    weight = torch.randn(50)
    first = CRITERIA["random"](weight, Stats("a", 1))
    torch.manual_seed(99)
    assert torch.equal(first, CRITERIA["random"](weight * 2, Stats("a", 1)))
    assert not torch.equal(first, CRITERIA["random"](weight, Stats("b", 1)))
    assert not torch.equal(first, CRITERIA["random"](weight, Stats("a", 2)))
    assert 0 <= first.min() <= first.max() < 1


@pytest.mark.parametrize("size", [1, 2, 13, 64])
def test_lamp_by_its_definition(size):
    weight = torch.randn(size, dtype=torch.float64)
    squares = weight.square()
    expected = [float(s / squares[squares >= s].sum()) for s in squares]
    assert CRITERIA["lamp"](weight, Stats("w")).tolist() == pytest.approx(expected)


def test_lamp_of_zeros_and_tiny_weights_is_finite():
    assert CRITERIA["lamp"](torch.zeros(5), Stats("w")).tolist() == [0] * 5
    assert torch.isfinite(CRITERIA["lamp"](torch.tensor([1e-30, 0.0]), Stats("w"))).all()


def test_geometric_median_goes_first():
    filters = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 9.0]])
    assert int(CRITERIA["fpgm"](filters.reshape(1, 4, 2, 1), Stats("w")).argmin()) == 0


# --- what needs data ------------------------------------------------------------------------------------------------


def small() -> tuple[nn.Sequential, Data]:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).double().eval()
    x, y = torch.randn(90, 2, 4, 4, dtype=torch.float64), torch.randint(0, 3, (90,))
    return model, Data((x, y), (x, y))


def collected(name: str, model: nn.Module, data: Data | None, **options) -> dict[str, Stats]:
    weights = weights_of(model, ["0.weight", "3.weight"])
    return Collector(data, **options)(model, weights, {}, CRITERIA[name].needs)


def mean_loss(model: nn.Module, data: Data) -> torch.Tensor:
    x, y = data.train
    return data.loss_function(model(x), y)


def test_gradient_is_that_of_the_mean_loss():
    model, data = small()
    found = collected("taylor", model, data)
    mean_loss(model, data).backward()
    for name, form in (("0.weight", Form(2)), ("3.weight", Form())):
        assert torch.allclose(found[name].gradient, form.canonical(model.get_parameter(name).grad))


def test_squared_gradients_are_of_single_samples():
    model, data = small()
    found = collected("fisher", model, data)
    x, y = data.train
    expected = torch.zeros(3, 16, dtype=torch.float64)
    for i in range(len(x)):
        loss = data.loss_function(model(x[i : i + 1]), y[i : i + 1])
        expected += torch.autograd.grad(loss, model[3].weight)[0].square() / len(x)
    assert torch.allclose(found["3.weight"].gradient_squared[0, :, :, 0], expected)


def test_grasp_is_the_change_of_the_gradient_flow():
    model, data = small()
    weights = [model[0].weight, model[3].weight]

    def flow() -> float:
        return sum(float(g.square().sum()) for g in torch.autograd.grad(mean_loss(model, data), weights))

    found = collected("grasp", model, data)
    score = CRITERIA["grasp"](weights_of(model, ["3.weight"])["3.weight"].canonical, found["3.weight"])
    before, share = flow(), 1e-5
    for row, column in ((0, 0), (1, 7), (2, 15)):
        kept = model[3].weight[row, column].item()
        with torch.no_grad():
            model[3].weight[row, column] = kept * (1 - share)
        change = (flow() - before) / share
        with torch.no_grad():
            model[3].weight[row, column] = kept
        assert change == pytest.approx(-2 * score[0, row, column, 0].item(), rel=1e-3, abs=1e-9)


def test_hessian_diagonal_of_a_quadratic_is_exact():
    model = nn.Linear(6, 1, bias=False).double()
    x = torch.diag(torch.arange(1.0, 7, dtype=torch.float64))  # H = 2/n · diag(x²): ±1 probes see the diagonal alone
    data = Data((x, torch.zeros(6, 1, dtype=torch.float64)), (x, x[:, :1]), loss="mse", metric="mse")
    found = Collector(data=data)(model, weights_of(model, ["weight"]), {}, CRITERIA["obd"].needs)["weight"]
    assert torch.allclose(found.hessian_diagonal.flatten(), 2 / 6 * torch.arange(1.0, 7, dtype=torch.float64).square())


def test_collecting_leaves_everything_as_it_was():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3)
    ).train()
    x, y = torch.randn(20, 2, 4, 4), torch.randint(0, 3, (20,))
    data = Data((x, y), (x, y))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    for name in ("taylor", "fisher", "grasp", "obd", "synflow"):
        Collector(data=data)(model, weights_of(model, ["0.weight", "4.weight"]), {}, CRITERIA[name].needs)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert model[1].training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_fresh_batch_norms_normalize_by_the_batch():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()
    x, y = 100 * torch.randn(60, 4, dtype=torch.float64) + 7, torch.randint(0, 3, (60,))
    data = Data((x, y), (x, y))
    found = Collector(data=data)(model, weights_of(model, ["0.weight"]), {}, CRITERIA["snip"].needs)["0.weight"]
    model.train()
    expected = torch.autograd.grad(mean_loss(model, data), model[0].weight)[0]
    assert torch.allclose(found.gradient[0, :, :, 0], expected)


@pytest.mark.parametrize("name", [name for name in CRITERIA if CRITERIA[name].needs and name != "movement"])
def test_missing_data_is_named_before_anything_changes(name):
    pattern = "row" if CRITERIA[name].per == "output" else "unstructured"
    model = nn.Linear(6, 3)
    before = model.weight.detach().clone()
    with pytest.raises((InputError, UnsupportedError), match="needs"):
        prune(model, 0.5, criterion=name, pattern=pattern)
    assert torch.equal(model.weight, before)


def test_data_without_labels_and_broken_losses_are_named():
    model, x = nn.Linear(4, 3), torch.randn(8, 4)
    with pytest.raises(InputError, match="there are no labels"):
        prune(model, 0.5, criterion="taylor", data=Data((x, None), (x, None)))
    bad, y = torch.full((8, 4), math.nan), torch.zeros(8).long()
    with pytest.raises(InputError, match="the loss on the training samples is nan"):
        prune(model, 0.5, criterion="taylor", data=Data((bad, y), (x, y)))
    with pytest.raises(InputError, match=r"data must be an ab\.Data, not tuple"):
        prune(model, 0.5, criterion="taylor", data=(x, x))


# --- of inputs and outputs ------------------------------------------------------------------------------------------


def test_wanda_ranks_within_each_output():
    weight = torch.tensor([[1.0, -3.0, 2.0, 2.0], [100.0, 300.0, 1.0, 200.0]])[None, :, :, None]
    stats = Stats("w", input_norm=torch.tensor([1.0, 1.0, 1.0, 0.1])[None, None, :, None])
    assert CRITERIA["wanda"](weight, stats)[0, :, :, 0].tolist() == [[0.5, 1, 0.75, 0.25], [0.75, 1, 0.25, 0.5]]
    equal = torch.ones(1, 1, 4, 1)
    assert CRITERIA["wanda"](equal, Stats("w", input_norm=equal))[0, 0, :, 0].tolist() == [1, 0.75, 0.5, 0.25]
    assert CRITERIA["wanda-layer"](weight, stats)[0, 0, 3, 0] == pytest.approx(0.2)


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_wanda_keeps_the_same_share_of_every_output(sparsity):
    model, x = nn.Linear(16, 6), torch.randn(40, 16)
    masks = prune(model, sparsity, criterion="wanda", allocation="uniform", example=x)
    assert (masks["weight"].sum(1) == 16 * (1 - sparsity)).all()


def test_obs_is_the_error_after_the_best_repair():
    rows, weight = torch.randn(200, 5, dtype=torch.float64), torch.randn(1, 2, 5, 1, dtype=torch.float64)
    gram = rows.T @ rows
    score = CRITERIA["obs"](weight, Stats("w", input_gram=gram[None]))
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(5, dtype=torch.float64)
    for output in range(2):
        w = weight[0, output, :, 0]
        for j in range(5):
            rest = [k for k in range(5) if k != j]  # min over d with d_j = −w_j of dᵀ H d
            d = -torch.linalg.solve(damped[rest][:, rest], damped[rest, j]) * -w[j]
            whole = torch.zeros(5, dtype=torch.float64)
            whole[rest], whole[j] = d, -w[j]
            assert score[0, output, j, 0] == pytest.approx(float(whole @ damped @ whole))


def test_inputs_and_outputs_by_their_definition():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 2)).eval()
    with torch.no_grad():
        model[1].weight.uniform_(-1, 1)
        model[1].bias.uniform_(-1, 1)
    x = torch.randn(9, 4, 5, 5)
    weights = weights_of(model, ["0.weight", "3.weight"])
    needs = frozenset({"input_norm", "input_gram", "active", "activation", "scale"})
    found = Collector(example=x)(model, weights, {}, needs)
    columns = nn.functional.unfold(x, 3).reshape(9, 2, 18, 9)
    gram = torch.einsum("ngap,ngbp->gab", columns, columns)
    assert torch.allclose(found["0.weight"].input_gram, gram, atol=1e-3)
    norms = gram.diagonal(dim1=1, dim2=2).sqrt().reshape(2, 1, 2, 9)
    assert torch.allclose(found["0.weight"].input_norm, norms, atol=1e-3)
    normed = model[1](model[0](x)).detach()
    assert torch.allclose(found["0.weight"].active.flatten(), (normed > 0).double().mean((0, 2, 3)))
    assert torch.allclose(found["0.weight"].activation.flatten(), normed.double().abs().mean((0, 2, 3)))
    assert torch.equal(found["0.weight"].scale, model[1].weight.detach().abs().reshape(2, 3))
    assert found["3.weight"].scale is None
    assert torch.allclose(found["3.weight"].activation.flatten(), model(x).detach().double().abs().mean((0, 2, 3)))


@pytest.mark.parametrize("name", ["bn-scale", "apoz", "activation"])
def test_criteria_of_channels(name):
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3)).eval()
    with torch.no_grad():
        model[1].weight[2] = 1e-3  # the channel that every one of them finds idle
        model[1].bias[2] = -1e-2
    masks = prune(model, 1 / 6, criterion=name, pattern="channel", example=torch.randn(8, 2, 7, 7))
    assert not masks["0.weight"][2].any()
    assert masks["0.weight"].sum() == 5 * 18


# --- synaptic flow --------------------------------------------------------------------------------------------------


def test_synaptic_flow_of_two_layers_by_hand():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    found = Collector(example=torch.randn(1, 3))(
        model, weights_of(model, ["0.weight", "2.weight"]), {}, CRITERIA["synflow"].needs
    )
    first, second = (layer.weight.detach().abs().double() for layer in (model[0], model[2]))
    assert torch.allclose(found["0.weight"].flow[0, :, :, 0], second.sum(0)[:, None].expand(4, 3))
    assert torch.allclose(found["2.weight"].flow[0, :, :, 0], first.sum(1)[None].expand(2, 4))


def test_synflow_keeps_a_path_at_a_handful_of_weights():
    model = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(40, 40, bias=False), nn.ReLU())])
    masks = prune(model, keep=90, criterion="synflow", example=torch.randn(1, 40))
    assert sum(int(mask.sum()) for mask in masks.values()) == 90
    assert model(torch.ones(1, 40)).shape == (1, 40)
    flow = torch.ones(1, 40)
    for mask in masks.values():
        flow = (flow @ mask.float().T).clamp(max=1)
    assert flow.any(), "some path leads through"


def test_synflow_of_a_wide_and_deep_network_stays_in_range_or_says_so():
    deep = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(40)])
    with torch.no_grad():
        for layer in deep:
            layer.weight.fill_(1e3)  # R = 64,000^40 = 2e192: far out of float32
    assert prune(deep, 0.5, criterion="synflow", example=torch.randn(1, 64)).sparsity == pytest.approx(0.5)
    with torch.no_grad():
        for layer in deep:
            layer.weight.fill_(1e7)
    with pytest.raises(UnsupportedError, match="exceeds float64"):
        prune(deep, 0.4, criterion="synflow", example=torch.randn(1, 64))


# --- movement -------------------------------------------------------------------------------------------------------


def test_movement_accumulates_while_training_and_resumes():
    torch.manual_seed(0)
    model, x, y = nn.Linear(6, 3), torch.randn(30, 6), torch.randint(0, 3, (30,))
    masks = prune(model, 0.5, criterion="movement", schedule="cubic", steps=10, every=5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    masks.hold(optimizer)
    sums = torch.zeros(3, 6)
    for step in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        sums += model.weight.detach() * model.weight.grad
        optimizer.step()
        if step == 6:
            state = {
                key: value.clone() if hasattr(value, "clone") else value for key, value in masks.state_dict().items()
            }
            assert torch.allclose(state["movement.weight"], sums)
    assert masks.sparsity == 0.5
    again = prune(nn.Linear(6, 3), 0.5, criterion="movement", schedule="cubic", steps=10, every=5)
    again.load_state_dict(state)
    assert torch.equal(again.state_dict()["movement.weight"], state["movement.weight"])


def test_movement_at_once_is_refused():
    with pytest.raises(UnsupportedError, match="learnt while training: give a schedule such as 'cubic'"):
        prune(nn.Linear(6, 3), 0.5, criterion="movement")


@pytest.mark.parametrize("criterion", ["obd", "grasp"])
def test_second_derivatives_pass_through_attention(criterion):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 2)).eval()
    x, y = torch.randn(6, 3, 8), torch.arange(6) % 2
    masks = prune(model, 0.5, criterion=criterion, data=Data((x, y), (x, y), (x, y)), say=None)
    assert masks.sparsity == 0.5


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "obd", "snip", "grasp", "synflow"])
def test_a_module_that_stands_at_two_places_and_a_tied_weight_come_out_as_they_went_in(criterion):
    shared, tied = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6, bias=False)
    tied.weight = shared.weight
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), shared, torch.nn.ReLU(), shared, tied, torch.nn.Linear(6, 3))
    before = {name: id(parameter) for name, parameter in net.named_parameters(remove_duplicate=False)}
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    ab.prune(net, 0.5, criterion=criterion, data=ab.Data((x, y), (x, y)), samples=8, say=None)
    assert {name: id(parameter) for name, parameter in net.named_parameters(remove_duplicate=False)} == before
    assert int(shared.weight.count_nonzero()) < 36
