"""Pruning by channels: what globs, allocations and goals choose of the coupled groups, and what each mistake says."""

import copy

import pytest
import torch
from models import Layers, randomize
from torch import nn

import abridged as ab
from abridged.errors import AbridgedError, InputError
from abridged.pruning.criteria import CRITERIA

IMAGE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LEARNT = ("movement",)


def cnn() -> nn.Module:
    return randomize(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
        )
    ).eval()  # fmt: skip


def halved(model: nn.Module, **options) -> tuple[list[int], ab.Masks]:
    masks = ab.prune(model, pattern="channel", example=IMAGE, say=None, **options)
    return [int(layer.weight.flatten(1).any(1).sum()) for layer in (model[0], model[3])], masks


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in LEARNT])
def test_every_criterion_ranks_channels(criterion):
    labels = torch.arange(4) % 4
    data = ab.Data((IMAGE, labels), (IMAGE, labels), (IMAGE, labels))
    left, _ = halved(cnn(), sparsity=0.5, criterion=criterion, data=data)
    assert left == [4, 3]


def test_a_channel_counts_by_all_layers_of_its_group():
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1], [2, 2], [1, 1]]))
        model[1].weight.copy_(torch.tensor([[9.0, 1, 1]]))
    ab.prune(model, 1 / 3, pattern="channel", example=torch.zeros(1, 2), say=None)
    # Relative to the means of each layer: 0.75 + 2.45, 1.5 + 0.27, 0.75 + 0.27.
    assert model[0].weight.any(1).tolist() == [True, True, False]


def test_an_allocation_by_globs_says_the_sparsity_of_each_group():
    left, masks = halved(cnn(), allocation={"0": 0.25, "3.weight": 0.5})
    assert left == [6, 3]
    assert "per layer" in masks.summary[0]
    left, masks = halved(cnn(), allocation={"3": 0.5})
    assert left == [8, 3]
    assert "left by include and exclude: 0.weight" in masks.summary


def test_include_and_exclude_choose_groups():
    left, masks = halved(cnn(), sparsity=0.5, exclude=["0", "8"])  # 8, the output, has no channels to go, but exists
    assert left == [8, 3]
    assert any(line.startswith("left by include and exclude: 0.weight") for line in masks.summary)


def test_channels_that_no_parameter_makes_are_left_alone():
    net = Layers(
        lambda m, x: m.out(torch.relu(m.a(x) + m.b(m.table))), a=nn.Linear(3, 6), b=nn.Linear(4, 6), out=nn.Linear(6, 2)
    )
    net.register_buffer("table", torch.randn(1, 4))
    masks = ab.prune(net, 0.5, pattern="channel", example=torch.randn(5, 3), say=None)
    assert "a.weight" in masks
    x = torch.randn(5, 3)
    torch.testing.assert_close(ab.shrink(net, x, say=None)(x), net(x))
    with pytest.raises(InputError, match=r"left by include and exclude: a\.weight"):
        ab.prune(net, 0.5, pattern="channel", example=torch.randn(5, 3), exclude=["*"])


def test_groups_that_rounding_keeps_whole_are_named():
    left, masks = halved(cnn(), sparsity=0.5, round_to=6)
    assert left == [6, 6]
    assert "left, since round_to=6 keeps all of their channels: 3.weight" in masks.summary


def test_a_goal_between_two_shares_keeps_what_matters_most():
    layers = (nn.Linear(10, 10, bias=False) for _ in range(4))
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
    with torch.no_grad():
        for weight, best in zip(model.parameters(), (1.0, 3.0, 2.0, 1.0), strict=True):
            weight.copy_(torch.eye(10) + best * torch.diag(torch.arange(10.0)))
    masks = ab.prune(model, parameters=0.96, pattern="channel", example=torch.ones(1, 10), say=None)
    left = [int(layer.weight.any(1).sum()) for layer in model[::2]]
    assert sorted(left[:3]) == [9, 10, 10], "one share less would remove one channel of each"
    assert sum(mask.numel() for mask in masks.values())


MISTAKES = {
    "nothing above round_to": ({"sparsity": 0.5, "round_to": 8}, "round_to=8 keeps all of their channels: 0.weight, 3.weight"),
    "glob": ({"sparsity": 0.5, "include": ["conv*"]}, "'conv\\*' matches no parameter and no module that has one"),
    "glob of allocation": ({"allocation": {"4.wieght": 0.5}}, "did you mean '4.weight'"),
    "allocation and amount": ({"sparsity": 0.5, "allocation": {"0": 0.5}}, "leave out sparsity"),
    "allocation and macs": ({"macs": 0.5, "allocation": {"0": 0.5}}, "leave out macs"),
    "allocation and include": ({"allocation": {"0": 0.5}, "include": ["0"]}, "leave out include"),
    "allocation out of range": ({"allocation": {"0": 1.5}}, r"allocation\['0'\] must be a sparsity in \[0, 1\]"),
    "too little": ({"sparsity": 0.01}, "sparsity=0.01 removes no channel"),
    "sensitivity": ({"sparsity": 0.5, "allocation": "sensitivity"}, "channels are coupled"),
    "agent without macs": ({"sparsity": 0.5, "allocation": "ddpg"}, "give macs= alone"),
    "agent without data": ({"macs": 0.5, "allocation": "ddpg"}, "judges on data"),
    "nothing": ({"sparsity": 0.0}, "sparsity=0.0 removes nothing: ask for more"),
    "all macs": ({"macs": 1.0}, "macs=1.0 removes nothing: ask for a smaller share"),
    "nothing by globs": ({"allocation": {"0": 0.0}}, "allocation removes nothing, since every sparsity in it is 0: ask for more"),
    "movement": ({"sparsity": 0.5, "criterion": "movement"}, "criterion 'movement' is learnt while training"),
    "budget": ({"macs": 0.001}, "with one channel left in every group 0.0.. are left; ask for more"),
    "all excluded": ({"sparsity": 0.5, "exclude": ["*"]}, "nothing to prune: left by include and exclude: 0.weight, 3.weight"),
    "no heads": ({"sparsity": 0.5, "pattern": "heads"}, "the model has no attention heads that could go|nothing to prune"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_line_and_leaves_the_model(mistake):
    options, words = MISTAKES[mistake]
    model = cnn()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AbridgedError, match=words) as caught:
        ab.prune(model, **{"pattern": "channel", "example": IMAGE, **options})
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_budget_just_missed_is_told_in_as_many_digits_as_it_takes():
    model = nn.Sequential(nn.Linear(10, 24, bias=False), nn.ReLU(), nn.Linear(24, 10, bias=False))
    with pytest.raises(InputError, match=r"with 8 channels left in every group 0\.33333 are left"):
        ab.prune(model, parameters=0.3333, round_to=8, pattern="channel", example=torch.ones(1, 10))


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_channels_that_are_zero_already_go_first_and_are_told_where_fewer_go(allocation):
    model = cnn()
    with torch.no_grad():
        model[3].weight[:, 2:] *= 100  # what reads channels makes them matter, too
        for parameter in (*model[0].parameters(), *model[1].parameters()):
            parameter[2:] = 0
    left, masks = halved(model, sparsity=0.5, allocation=allocation, include=["0"])
    assert left == [2, 6]
    assert not masks["0.weight"][2:].all(1).all()
    assert masks["0.weight"][:2].all()
    assert "2 channels were zero already and are not held, since fewer were to go" in masks.summary
    _, masks = halved(model, sparsity=0.75, allocation=allocation, include=["0"])
    assert not any("zero already" in line for line in masks.summary)


def test_when_forward_bears_no_cut_the_error_says_why():
    net = Layers(lambda m, x: m.b(m.a(x).reshape(-1, 8)), a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    with pytest.raises(InputError, match=r"nothing to prune: left, forward does not bear it: .*: a.weight"):
        ab.prune(net, 0.5, pattern="channel", example=torch.zeros(5, 3))


def test_a_search_refuses_a_criterion_that_is_learnt():
    labels = torch.arange(4) % 4
    data = ab.Data((IMAGE, labels), (IMAGE, labels), (IMAGE, labels))
    with pytest.raises(ab.UnsupportedError, match="criterion 'movement' is learnt while training"):
        ab.search_sparsities(cnn(), data, macs=0.5, criterion="movement", episodes=1)


def test_parametrized_weights_are_refused_by_name():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 8)), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ab.UnsupportedError, match=r"^0.weight is made by a parametrization.*remove_parametrizations"):
        ab.prune(net, 0.5, pattern="channel", example=torch.zeros(2, 3))
    nn.utils.parametrize.remove_parametrizations(net[0], "weight")
    ab.prune(net, 0.5, pattern="channel", example=torch.zeros(2, 3), say=None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
def test_scripted_modules_are_refused():
    with pytest.raises(ab.UnsupportedError, match="a scripted module cannot be followed or cut"):
        ab.prune(torch.jit.script(cnn()), 0.5, pattern="channel", example=IMAGE)


def test_a_model_that_answers_nan_with_its_channels_at_zero_is_refused():
    net = Layers(
        lambda m, x: m.b((y := m.a(x)) / y.detach().abs().amax(0)), a=nn.Linear(3, 8, bias=False), b=nn.Linear(8, 2)
    )
    with pytest.raises(ab.UnsupportedError, match="even its whole copy, with the channels at zero, is no good"):
        ab.prune(net, 0.5, pattern="channel", example=torch.ones(2, 3))


def test_what_training_mode_does_not_bear_is_left():
    def forward(m, x):
        y = m.a(x)
        return m.c(torch.relu(m.b(torch.relu(y + torch.zeros(8) if m.training else y))))

    net = Layers(forward, a=nn.Linear(3, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 2)).eval()
    masks = ab.prune(net, 0.5, pattern="channel", example=torch.ones(2, 3), say=None)
    assert any("does not bear it in training mode" in line and "a.weight" in line for line in masks.summary)
    small = ab.shrink(net, torch.ones(2, 3), say=None)
    assert (small.a.out_features, small.b.out_features) == (8, 3)
    assert not small.training
    assert small.train()(torch.ones(2, 3)).shape == (2, 2)


def test_a_norm_that_wants_more_than_one_value_in_training_is_no_reason():
    model = cnn()
    ab.prune(
        model, 0.5, pattern="channel", example=torch.ones(1, 3, 5, 5), say=None
    )  # one value per channel at the end
    assert ab.shrink(model, torch.ones(1, 3, 5, 5), say=None)[3].out_channels == 3
