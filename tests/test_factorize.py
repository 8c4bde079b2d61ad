"""`ab.factorize` from the outside: amounts, ranks, what is left and why, bad input, targets, recipes."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import abridged as ab
from abridged import recipe as recipes
from abridged.errors import InputError
from abridged.factorization.factorize import factorize, rebuild, report, smallest
from abridged.graph.capture import capture
from abridged.graph.cost import cost


class Net(nn.Module):
    """Low-rank by nature, so that there is something to find."""

    def __init__(self, rank=3):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.point = nn.Conv2d(24, 32, 1)
        self.fc = nn.Linear(32, 20)
        with torch.no_grad():
            for layer in (self.conv2, self.point, self.fc):
                flat = layer.weight.flatten(1)
                low = torch.randn(len(flat), rank) @ torch.randn(rank, flat.shape[1]) / flat.shape[1] ** 0.5
                layer.weight.copy_((low + 0.02 * flat).reshape(layer.weight.shape))

    def forward(self, x):
        x = torch.relu(self.point(torch.relu(self.deep(torch.relu(self.conv2(torch.relu(self.conv1(x))))))))
        return self.fc(x.mean((2, 3)))


X = torch.zeros(1, 3, 12, 12)


@pytest.fixture
def net():
    return Net().eval()


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model, x=X):
    graph = capture(model, x)
    return sum(cost(node, graph).macs for node in graph)


def test_the_input_stays_as_it_was_and_the_factors_are_plain(net):
    before = copy.deepcopy(net.state_dict())
    net.train()
    thin = ab.factorize(net, X, method="svd", rank=2, include=["conv2", "fc"])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert isinstance(net.conv2, nn.Conv2d)
    assert net.training
    assert all(module.training for module in thin.modules())
    assert list(thin.state_dict()) != list(net.state_dict())
    assert [name for name, _ in thin.fc.named_parameters()] == ["reduce.weight", "expand.weight", "expand.bias"]
    assert all(parameter.requires_grad for parameter in thin.parameters())
    thin(torch.randn(2, 3, 12, 12)).sum().backward()


@pytest.mark.parametrize("method", ["svd", "channel", "spatial", "tucker", "cp", "tt"])
def test_every_method_gives_a_smaller_network_that_counts_as_promised(net, method):
    thin = factorize(net, X, method, rank=2)
    done = report(thin)
    assert done.parameters == (size(net), size(thin))
    saved = sum(line.macs[0] - line.macs[1] for line in done.lines)
    assert macs(net) - macs(thin) == saved
    assert size(net) - size(thin) == sum(line.parameters[0] - line.parameters[1] for line in done.lines) > 0
    assert all(0 <= line.error <= 1 + 1e-9 for line in done.lines)
    assert {line.path for line in done.lines} | set(done.left) == {"conv1", "conv2", "deep", "point", "fc"}


@pytest.mark.parametrize("of", ["parameters", "macs"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.9])
def test_a_ratio_is_kept_over_the_whole_model(net, of, ratio):
    thin = factorize(net, X, "svd", ratio=ratio, of=of)
    count = size if of == "parameters" else macs
    assert count(thin) <= ratio * count(net)
    assert count(thin) > 0.5 * ratio * count(net)


def kept(thin):
    """What all layers keep: the product that a ratio makes greatest."""
    return math.prod(1 - line.error for line in report(thin).lines)


def test_more_is_kept_as_the_ratio_grows(net):
    shares = [kept(factorize(net, X, ratio=ratio)) for ratio in (0.2, 0.4, 0.6, 0.8)]
    assert shares == sorted(shares)


def test_no_layer_is_given_up_for_the_others():
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(3)), nn.Linear(32, 400))
    thin = factorize(model, torch.zeros(1, 32), ratio=0.5)
    assert max(line.error for line in report(thin).lines) < 0.8


def test_methods_compete_for_each_layer(net):
    alone = [kept(factorize(net, X, method, ratio=0.4)) for method in ("svd", "spatial")]
    both = kept(factorize(net, X, ("svd", "spatial"), ratio=0.4))
    assert both >= 0.99 * max(alone)  # but for what the last step leaves over


def test_energy_is_kept_by_each_layer_with_fewest_parameters(net):
    done = report(factorize(net, X, "svd", energy=0.95))
    assert {line.path: line.ranks for line in done.lines}["conv2"] <= (4,)
    assert all(line.error <= 0.05 for line in done.lines)
    assert "would not be smaller" in done.left["conv1"]


def test_evbmf_finds_the_ranks_that_were_planted():
    done = report(factorize(Net(rank=3), X, "svd", rank="evbmf", include=["conv2", "point", "fc"]))
    assert {line.path: line.ranks for line in done.lines} == {"conv2": (3,), "point": (3,), "fc": (3,)}
    with pytest.raises(InputError, match="cp has no matrices"):
        factorize(Net(), X, "cp", rank="evbmf", include=["conv2"])


def test_ranks_by_layer(net):
    done = report(factorize(net, X, "tucker", rank={"conv2": (4, 5), "conv*": 2}))
    assert {line.path: line.ranks for line in done.lines} == {"conv2": (4, 5), "conv1": (2, 2)}
    assert done.left["deep"] == "no rank was given for it"


def test_a_layer_whose_factors_are_not_smaller_stays_dense_and_the_report_says_why(net):
    done = report(factorize(net, X, rank={"fc": 20, "conv2": 2}))
    assert "left dense: with rank 20 the factors would not be smaller (1,040 weights, not 640)" in done.left["fc"]
    assert any("fc: left dense" in line for line in done.summary)
    assert str(done).startswith("svd, rank {'fc': 20, 'conv2': 2}: 1 of 5 layers")


def test_a_layer_that_is_not_faster_stays_dense_when_time_is_measured(net):
    def seconds(graph):  # a machine on which a chain of 1×1 convolutions is slow
        return (
            1e-3 * (1 + len(graph.nodes))
            if any(v.shape == (1, 32, 6, 6) for v in graph.values.values())
            else 1e-3 / len(graph.nodes)
        )

    done = report(factorize(net, X, rank={"conv2": 2, "point": 2}, cost=seconds))
    assert [line.path for line in done.lines] == ["conv2"]
    assert done.left["point"] == "left dense: rank 2 takes 3 ms, the dense layer 2 ms"
    assert done.notes == ()
    missed = report(factorize(net, X, ratio=0.2, cost=seconds))  # more than the others can save
    assert "point" in missed.left
    assert missed.notes[0].endswith("of the parameters are left, not 0.2: factors of the rest would not be faster")


def test_what_slow_layers_do_not_save_is_asked_of_the_others(net):
    def seconds(graph):  # a machine on which the factors of conv2 are slow
        slow = {(1, 16, 12, 12), (1, 24, 6, 6)} <= {value.shape for value in graph.values.values()}
        return 1.0 if slow and len(graph.nodes) > 1 else 1e-3 / len(graph.nodes)

    assert [line.path for line in report(factorize(net, X, ratio=0.8)).lines] == ["conv2"]
    timed = factorize(net, X, ratio=0.8, cost=seconds)
    assert size(timed) <= 0.8 * size(net)
    assert report(timed).left["conv2"].startswith("left dense: rank")
    assert report(timed).notes == ()


def test_a_ratio_of_seconds(net):
    def seconds(graph):
        return sum(cost(node, graph).macs for node in graph) * 1e-9

    thin = factorize(net, X, ratio=0.5, of="seconds", cost=seconds)
    assert macs(thin) <= 0.5 * macs(net)
    with pytest.raises(InputError, match="cost must give seconds above 0"):
        factorize(net, X, ratio=0.5, of="seconds", cost=lambda graph: -1.0)


def test_what_cannot_be_taken_apart_is_left_with_the_reason():
    class Own(nn.Linear):
        pass

    tied = nn.Linear(8, 30, bias=False)
    parts = {
        "own": Own(8, 8), "up": nn.ConvTranspose1d(8, 8, 3), "tied": tied, "embedding": nn.Embedding(30, 8),
        "normed": nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), "hooked": nn.Linear(8, 8), "free": nn.Linear(64, 64),
    }  # fmt: skip

    class Model(nn.ModuleDict):
        def forward(self, x):
            return self["free"](x)

    model = Model(parts | {"idle": nn.Linear(8, 8)})
    model["embedding"].weight = tied.weight
    model["hooked"].register_forward_hook(lambda *_: None)
    model["watched"] = nn.Linear(8, 8)
    model["watched"].register_full_backward_hook(lambda *_: None)
    thin = factorize(model, torch.zeros(1, 64), rank=2)
    left = report(thin).left
    assert left["own"] == "Own, a Linear that may compute something else"
    assert left["up"] == "ConvTranspose1d, which no method takes apart"
    assert left["tied"] == left["embedding"] == "weight shared with another layer"
    assert left["normed"] == "weight that is computed (a parametrization)"
    assert left["hooked"] == left["watched"] == "hooks, which would be lost"
    assert left["idle"] == "never called on the example: whoever uses the weight reads it itself"


def test_a_model_that_cannot_be_copied_is_refused_with_the_mend():
    model = nn.Sequential(nn.Linear(8, 8))
    nn.utils.spectral_norm(model[0])  # the old one keeps a computed weight after the first pass
    model(torch.zeros(1, 8))
    with pytest.raises(InputError, match=r"cannot be copied: a weight is computed.*torch\.nn\.utils\.parametrizations"):
        factorize(model, torch.zeros(1, 8), rank=2)


def test_seconds_may_be_any_real_number(net):
    thin = factorize(net, X, rank=2, include="fc", cost=lambda graph: np.float32(1 / len(graph.nodes)))
    assert [line.path for line in report(thin).lines] == ["fc"]


def test_the_smallest_factors_are_offered_where_errors_take_long():
    wide = nn.Sequential(nn.Linear(100, 100, bias=False))
    few = torch.randn(8, 100)
    thin = factorize(wide, few[:1], ratio=0.021, data=few)  # rank 1 alone is so small
    assert report(thin).lines[0].ranks == (1,)


@pytest.mark.parametrize("method", ["svd", "whitened", "tucker", ("whitened", "spatial")])
def test_the_rehearsal_of_a_recipe_has_the_smallest_factors_and_refuses_what_they_miss(net, method):
    thin = smallest(net, X, method, ratio=0.5, of="macs", exclude=["conv1"])
    assert thin(X).shape == (1, 20)
    assert thin.conv2[0].out_channels == 1
    assert isinstance(thin.conv1, nn.Conv2d)
    left = macs(thin) / macs(net)
    with pytest.raises(InputError, match="cannot be reached"):
        smallest(net, X, method, ratio=0.9 * left, of="macs", exclude=["conv1"])


def test_a_layer_used_twice_stays_one_layer():
    layer = nn.Linear(32, 32)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    thin = factorize(model, torch.zeros(2, 32), rank=4)
    assert thin[0] is thin[2]
    (line,) = report(thin).lines
    assert line.macs == (2 * 2 * 32 * 32, 2 * 2 * 32 * 8)


def test_frozen_weights_and_types_stay(net):
    net = net.double().requires_grad_(False)
    thin = factorize(net, X.double(), rank=2)
    assert not any(parameter.requires_grad for parameter in thin.parameters())
    assert {parameter.dtype for parameter in thin.parameters()} == {torch.float64}


def test_pruned_zeros_are_lost_with_a_warning(net):
    ab.prune(net, 0.5)
    assert any("zeros of" in line and "are lost" in line for line in report(factorize(net, X, rank=2)).summary)


def test_a_saved_model_is_rebuilt(net, tmp_path):
    thin = factorize(net, X, "tucker", rank=2)
    ab.save(thin, tmp_path / "thin.safetensors")
    again = rebuild(Net(), report(thin).structure)
    ab.load_into(again, tmp_path / "thin.safetensors")
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(again.eval()(x), thin.eval()(x))


@pytest.mark.parametrize("method", ["svd", "channel", "spatial", "tucker", "cp", "tt"])
def test_a_file_alone_says_the_form_of_the_factors(net, method, tmp_path):
    thin = factorize(net, X, method, rank=2)
    with torch.no_grad():
        for parameter in thin.parameters():  # trained since, so that a new factorization would give other weights
            parameter.add_(0.01)
    ab.save(copy.deepcopy(thin), tmp_path / "thin.safetensors")
    torch.save(thin.state_dict(), tmp_path / "thin.pt")
    x = torch.randn(2, 3, 12, 12)
    for file in ("thin.safetensors", "thin.pt"):
        fresh = Net()
        again = ab.load_factorized(fresh, tmp_path / file)
        assert list(again.state_dict()) == list(thin.state_dict())
        assert torch.equal(again.eval()(x), thin(x))
        assert isinstance(fresh.conv2, nn.Conv2d)  # what was given stays as it was


def test_factors_of_embeddings_and_the_whole_model_are_loaded(tmp_path):
    for model, x in (
        (nn.Sequential(nn.Embedding(50, 32, padding_idx=3), nn.Linear(32, 4)), torch.tensor([[1, 3]])),
        (nn.Linear(32, 32), torch.randn(1, 32)),
    ):
        thin = ab.factorize(model, x, rank=3)
        ab.save(thin, tmp_path / "thin.safetensors")
        again = ab.load_factorized(model, tmp_path / "thin.safetensors")
        assert torch.equal(again(x), thin(x))
        assert [str(module) for module in again.modules()] == [str(module) for module in thin.modules()]


def test_a_file_of_factors_and_one_without_are_told_apart(net, tmp_path):
    ab.save(factorize(net, X, rank=2), tmp_path / "thin.safetensors")
    ab.save(net, tmp_path / "dense.safetensors")
    with pytest.raises(InputError, match=r"missing .*; unexpected .*; ab.load_factorized\(model, path\) reads factors"):
        ab.load_into(net, tmp_path / "thin.safetensors")
    with pytest.raises(InputError, match=r"dense\.safetensors holds no factors of this model's layers"):
        ab.load_factorized(net, tmp_path / "dense.safetensors")
    with pytest.raises(InputError, match="does not fit") as error:
        ab.load_into(nn.Sequential(nn.Linear(2, 2)), tmp_path / "dense.safetensors")
    assert "load_factorized" not in str(error.value)


def test_what_was_done_and_what_was_left_is_said(net, capsys):
    lines = []
    thin = ab.factorize(net, X, rank=2, exclude="fc", say=lines.append)
    assert lines == list(report(thin).summary)
    assert lines[0].startswith("svd, rank 2: 3 of 5 layers")
    assert any("fc: left by include and exclude" in line for line in lines)
    ab.factorize(net, X, rank=2, say=None)
    assert capsys.readouterr() == ("", "")
    ab.factorize(net, X, rank=2)
    assert "svd, rank 2: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "target"),
    [("tucker", "onnxruntime"), ("cp", "native")]
    + [
        pytest.param(method, target, marks=pytest.mark.slow)
        for method in ("svd", "channel", "spatial", "tucker", "cp", "tt")
        for target in ("onnxruntime", "openvino", "native", "c")
    ],
)
def test_factors_deploy(net, method, target, tmp_path):
    if target == "openvino":
        pytest.importorskip("openvino")
    thin = factorize(net, X, method, rank=2)
    x = torch.randn(1, 3, 12, 12)
    with ab.deploy(thin, x, target=target, out=tmp_path / "net", threads=1) as artifact:
        assert torch.allclose(artifact(x), thin(x), atol=1e-5)


def test_factors_can_be_pruned(net):
    thin = factorize(net, X, ratio=0.5)
    masks = ab.prune(thin, 0.5)
    assert masks.sparsity == pytest.approx(0.5, abs=1e-3)


# --- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "exactly one of rank, energy and ratio, not none"),
        ({"rank": 2, "ratio": 0.5}, "not rank and ratio"),
        ({"rank": 0}, "whole number from 1"),
        ({"rank": -3}, "whole number from 1"),
        ({"rank": 2.5}, "whole number from 1"),
        ({"rank": True}, "whole number from 1"),
        ({"rank": ()}, "whole number from 1"),
        ({"rank": b"x"}, "whole number from 1"),
        ({"rank": {}}, "it is empty"),
        ({"rank": {"fc": None}}, "whole number from 1"),
        ({"rank": 2, "say": 3}, "say must be a function that takes a line, or None, not 3"),
        ({"rank": {"fc": -1}}, "whole number from 1"),
        ({"rank": "evbm"}, "unknown rank rule 'evbm'; did you mean 'evbmf'"),
        ({"rank": 500}, "conv1: left dense: rank 500 is above 16, the largest of svd for (16, 3, 3, 3)"),
        ({"rank": {"conv2": (3, 4)}}, "conv2: svd takes one rank here, not (3, 4)"),
        ({"rank": (3,), "method": "tucker"}, "conv1: tucker takes 2 ranks here, not (3,)"),
        ({"rank": {"conv2": (300,)}}, "are above (24,)"),
        ({"rank": {"convv2": 3}}, "'convv2' matches no layer that can be factorized; did you mean 'conv2'"),
        ({"ratio": 0}, "in (0, 1), not 0"),
        ({"ratio": 1.0}, "in (0, 1), not 1.0"),
        ({"ratio": float("nan")}, "in (0, 1), not nan"),
        ({"ratio": "half"}, "must be a number"),
        ({"ratio": 0.01}, "ratio 0.01 cannot be reached"),
        ({"ratio": 0.01, "of": "macs"}, "of the MACs are left"),
        ({"energy": 1.5}, "in (0, 1], not 1.5"),
        ({"energy": -0.1}, "in (0, 1]"),
        ({"ratio": 0.5, "of": "mac"}, "unknown count 'mac'; did you mean 'macs'"),
        ({"ratio": 0.5, "of": "seconds"}, "needs cost"),
        ({"rank": 2, "of": "macs"}, "says what a ratio counts"),
        ({"rank": 2, "cost": 3}, "cost must be a function"),
        ({"rank": 2, "method": "sdv"}, "unknown factorization method 'sdv'; did you mean 'svd'"),
        ({"rank": 2, "method": ()}, "method is empty"),
        ({"rank": 2, "method": ("svd", "cp")}, "with rank give one method"),
        ({"ratio": 0.5, "method": ("svd", "whitened")}, "give calibration data="),
        ({"rank": 2, "include": "conv9"}, "'conv9' matches no module with parameters; did you mean 'conv"),
        ({"rank": 2, "exclude": ["*"]}, "nothing to factorize: conv1, conv2, deep, point and 1 more: left by include"),
        ({"rank": 16, "include": "fc"}, "nothing was factorized: fc: left dense"),
    ],
)
def test_a_mistake_is_one_clear_line_and_changes_nothing(net, options, words):
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError) as caught:
        factorize(net, X, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_models_that_cannot_be_factorized(net):
    for bad in (float("nan"), float("inf")):
        net.fc.weight.data[0, 0] = bad
        with pytest.raises(InputError, match=r"fc.weight has NaN or infinite values"):
            factorize(net, X, rank=2)
    with pytest.raises(InputError, match="meta device"):
        factorize(nn.Linear(4, 4, device="meta"), torch.zeros(1, 4), rank=1)
    with pytest.raises(InputError, match=r"takes an nn\.Module"):
        factorize("net", X, rank=2)
    with pytest.raises(InputError, match="the model has no Linear"):
        factorize(nn.ReLU(), X, rank=2)
    with pytest.raises(InputError, match="does not run on the example"):
        factorize(nn.Linear(4, 4), torch.zeros(1, 5), rank=1)
    with pytest.raises(InputError, match="no model that factorize returned"):
        report(nn.ReLU())


class Reads(nn.Module):
    """Uses `fc` and reads its weight, too."""

    def __init__(self):
        super().__init__()
        self.fc, self.free, self.last = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x):
        return self.last(self.free(nn.functional.linear(self.fc(x), self.fc.weight)))


def test_a_layer_whose_weight_the_model_reads_itself_is_left_alone():
    thin = factorize(Reads(), torch.zeros(1, 64), rank=2)
    assert report(thin).left == {"fc": "left dense: something else reads its weight"}
    assert [line.path for line in report(thin).lines] == ["free", "last"]
    assert type(thin.fc) is nn.Linear
    with pytest.raises(InputError, match="nothing to factorize: fc: left dense: something else reads its weight"):
        factorize(Reads(), torch.zeros(1, 64), ratio=0.5, include="fc")


def test_all_of_the_energy_is_kept_to_rounding():
    weight = torch.randn(64, 2) @ torch.randn(2, 64)
    model = nn.Sequential(nn.Linear(64, 64))
    model[0].weight.data.copy_(weight)
    assert report(factorize(model.double(), torch.zeros(1, 64).double(), energy=1.0)).lines[0].ranks[0] > 1
    with pytest.raises(InputError, match=r"keep 0\.999999 of the energy would not be smaller"):
        factorize(nn.Sequential(nn.Linear(64, 64)), torch.zeros(1, 64), energy=0.999999)


# --- recipes --------------------------------------------------------------------------------------------------------------


def test_factorize_after_pruning_is_refused_with_the_reason():
    steps = [{"prune": {"sparsity": 0.5}}, {"factorize": {"ratio": 0.5}}]
    with pytest.raises(InputError, match="factorize after prune loses the zeros"):
        recipes.load(steps)
    steps[1]["factorize"]["lose_zeros"] = True
    assert recipes.load(steps).compression[1].title == "Factorize (svd, 50 % of the parameters left)"
    assert recipes.load([steps[1], steps[0], "distill"]).compression[0].kind == "factorize"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps:\n - factorize: {}", "exactly one of rank, energy and ratio"),
        ("steps:\n - factorize: {rank: 2, ratio: 0.5}", "exactly one of rank, energy and ratio"),
        ("steps:\n - factorize: {rank: 2, of: macs}", "of='macs' says what a ratio counts"),
        ("steps:\n - factorize: {rank: 0}", "whole number from 1"),
        ("steps:\n - factorize: {rank: true}", "whole number from 1"),
        ("steps:\n - factorize: {rank: 2.0}", "whole number from 1"),
        ("steps:\n - factorize: {rank: {fc: -1}}", "whole number from 1"),
        ("steps:\n - factorize: {rank: evb}", "unknown rank rule 'evb'; did you mean 'evbmf'"),
        ("steps:\n - factorize: {rank: 2, method: [svd, tucker]}", "with rank give one method"),
        ("steps:\n - factorize: {ratio: 0.5, method: []}", "method is empty"),
        ("steps:\n - factorize: {energy: true}", "energy"),
        ("steps:\n - factorize: {ratio: '0.5'}", "ratio"),
        ("steps:\n - factorize: {ratio: 1.5}", "less than 1"),
        ("steps:\n - factorize: {rank: 2, method: sdv}", "sdv"),
    ],
)
def test_bad_recipes(text, words):
    with pytest.raises(InputError) as caught:
        recipes.from_yaml(text, "r.yaml")
    assert words in str(caught.value)


THEN = {"epochs": 0, "schedule": "one-shot"}


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"factorize": {"ratio": 0.8}}, {"factorize": {"energy": 0.5}}], ""),
        ([{"factorize": {"ratio": 0.8}}, {"factorize": {"rank": 4}}], ""),
        ([{"factorize": {"ratio": 0.8}}, {"prune": {"keep": 2000} | THEN}], ""),
        ([{"factorize": {"ratio": 0.8}}, {"prune": {"keep": 500_000} | THEN}], "keep=500000 is more than"),
        (
            [{"factorize": {"ratio": 0.8, "calibrate": True}}, {"prune": {"keep": 500_000} | THEN}],
            "(in a rehearsal, whose factors were chosen without data)",
        ),
        (
            [{"factorize": {"rank": 3}}, {"distill": {"epochs": 1, "loss": "hint", "layers": {"fc.expand": "fc"}}}],
            "control: the dense network is trained by the same steps: layers: the student has no module 'fc.expand'",
        ),
    ],
)
def test_later_steps_are_rehearsed_on_likely_factors(net, steps, words):
    from abridged import run

    recipe, data = recipes.load(steps), tiny_data()
    plan = run.Plan(recipe, "net", data, run.positional(data.example_input()), 0, Path("run"))
    if not words:
        run._rehearse(plan, net)
        return
    with pytest.raises(InputError) as caught:
        run._rehearse(plan, net)
    assert words in str(caught.value)


def test_layers_that_stay_dense_keep_their_masks(net):
    from abridged import steps

    work = steps.Work(net, net, tiny_data(), 0)
    work.masks = ab.prune(net, 0.5)
    options = {"factorize": {"ratio": 0.5, "lose_zeros": True, "exclude": "conv1"}}
    (step,) = recipes.load([{"prune": {"sparsity": 0.5}}, options]).compression[1:]
    steps.RUNNERS["factorize"](work, step, Path("unused"))
    assert "conv1.weight" in work.masks
    assert not [name for name in work.masks if name.startswith("fc.")]
    assert bool((work.model.conv1.weight == 0).any())


def tiny_data():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 3, 12, 12, generator=generator), torch.randint(0, 20, (64,), generator=generator)
    return ab.Data((x, y), (x, y))


@pytest.mark.parametrize(
    "steps",
    [
        [{"factorize": {"ratio": 0.5}}, {"prune": {"sparsity": 0.5, "epochs": 1}}],
        *(
            pytest.param(steps, marks=pytest.mark.slow)
            for steps in (
                [{"factorize": {"ratio": 0.5}}, {"prune": {"sparsity": 0.5, "epochs": 1}}, {"distill": {"epochs": 1}}],
                [
                    {"prune": {"sparsity": 0.5, "epochs": 1}},
                    {"factorize": {"ratio": 0.5, "lose_zeros": True}},
                    "finetune",
                ],
                [{"distill": {"epochs": 1}}, {"factorize": {"method": "tucker", "rank": 2}}],
                [{"factorize": {"ratio": 0.95, "of": "seconds"}}],
                [{"factorize": {"method": "whitened", "rank": 2}}, {"factorize": {"method": "whitened", "ratio": 0.9}}],
                [
                    {"prune": {"macs": 0.8, "pattern": "channel", "epochs": 1}},
                    "shrink",
                    {"factorize": {"method": ["whitened", "spatial"], "ratio": 0.7, "of": "macs"}},
                    {"distill": {"epochs": 1}},
                    {"deploy": {"target": "native"}},
                ],
            )
        ),
    ],
)
def test_recipes_in_every_order_that_makes_sense(net, steps, tmp_path):
    done = ab.compress(net, tiny_data(), recipe=steps, out=tmp_path / "run", threads=1, control=False)
    rows = [row for row in done.ledger.rows if row.name.endswith("-factorize")]
    assert rows
    assert any("→" in note for note in rows[0].notes)
    assert rows[0].theory.parameters < done.ledger.dense.theory.parameters
    again = ab.compress(net, tiny_data(), recipe=steps, out=tmp_path / "run", threads=1, control=False, resume=True)
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(done.model.eval()(x), again.model.eval()(x))
