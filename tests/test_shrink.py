"""Shrink: outputs of the masked and the shrunk model are equal, on networks of every family; what cannot go stays and says why."""

from __future__ import annotations

import copy
import gc
import time
import weakref

import pytest
import torch
import torch.nn.functional as F
from models import Layers, network, own_size, randomize
from test_networks import LIST, _all_names
from torch import Tensor, nn

import abridged as ab
from abridged.errors import InputError
from abridged.graph.cost import cost
from abridged.pruning.shrink import shrink
from abridged.pruning.trials import answer, close

FAST = {
    "densenet121": 64,
    "googlenet": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
}
ATTENTION = ("vit", "swin", "maxvit")


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _conv_macs(model: nn.Module, x: Tensor) -> int:
    graph = ab.capture(model, x)
    return sum(cost(node, graph, {}).macs for node in graph if node.op == "conv")


def _equal(masked: nn.Module, small: nn.Module, *x: Tensor) -> bool:
    with torch.no_grad():
        both = (answer(copy.deepcopy(model).double().eval(), x) for model in (masked, small))
    return all(close(*pair) for pair in zip(*both, strict=True))


def _halved(model: nn.Module, x: Tensor, **options) -> tuple[nn.Module, list[str]]:
    lines: list[str] = []
    ab.prune(model, 0.5, pattern="channel", example=x, **options)
    return shrink(model, x, say=lines.append), lines


@pytest.mark.parametrize("name", FAST)
def test_one_network_of_every_family_is_halved(torchvision_models, name: str) -> None:
    model = network(torchvision_models, name)
    x = torch.randn(2, 3, FAST[name], FAST[name])
    small, _ = _halved(model, x)
    assert type(small) is type(model)
    assert _count(small) < 0.6 * _count(model)
    assert _equal(model, small, x)


@pytest.mark.slow
@pytest.mark.skipif(not LIST.exists(), reason="needs the list of networks in ../shared")
@pytest.mark.parametrize("name", _all_names())
def test_every_network_is_halved(torchvision_models, name: str) -> None:
    model = network(torchvision_models, name)
    x = torch.randn(1, 3, own_size(name), own_size(name))
    start = time.process_time()
    small, _ = _halved(model, x)
    seconds = time.process_time() - start
    share = _count(small) / _count(model)
    print(f"{name}: {share:.3f} of the parameters, {seconds:.1f} s")
    assert share < (0.75 if name.startswith(ATTENTION) else 0.6)
    assert _equal(model, small, x)


IMAGE = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(3))


def _cnn(activation: nn.Module, padding: int = 0, bias: bool = True) -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), activation, nn.Conv2d(8, 6, 3, padding=padding, bias=bias)]
    return randomize(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))).eval()


def test_attributes_are_right_and_the_input_model_is_untouched() -> None:
    model = _cnn(nn.ReLU())
    ab.prune(model, 0.5, pattern="channel", example=IMAGE)
    before = copy.deepcopy(model.state_dict())
    small = ab.shrink(model, IMAGE)
    assert (small[0].out_channels, small[1].num_features, small[3].in_channels, small[6].in_features) == (4, 4, 4, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    assert model[0].out_channels == 8
    assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("bias", [True, False])
def test_what_an_activation_makes_of_zero_is_folded(bias: bool) -> None:
    model = _cnn(nn.Sigmoid(), bias=bias).double()
    small, _ = _halved(model, IMAGE.double())
    assert small[0].out_channels == 4
    assert _equal(model, small, IMAGE)


def test_zero_padding_keeps_a_constant_from_being_folded() -> None:
    model = _cnn(nn.Sigmoid(), padding=1)
    with torch.no_grad():
        for parameter in (*model[0].parameters(), *model[1].parameters()):
            parameter[:3] = 0
    with pytest.raises(InputError, match=r"nothing to shrink: left, .* zero padding is: 0\.weight"):
        ab.shrink(model, IMAGE)


def test_the_shrunk_model_trains_saves_loads_and_exports(tmp_path) -> None:
    model = _cnn(nn.ReLU())
    small, _ = _halved(model, IMAGE)
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    small.train()(IMAGE).square().sum().backward()
    optimizer.step()
    small.eval()
    ab.save(small, tmp_path / "net.safetensors")
    other = copy.deepcopy(small)
    nn.init.zeros_(other[0].weight)
    ab.load_into(other, tmp_path / "net.safetensors")
    assert torch.equal(other(IMAGE), small(IMAGE))
    assert ab.capture(small, IMAGE).values


def test_masks_hold_the_zeros_while_training() -> None:
    model = _cnn(nn.ReLU())
    masks = ab.prune(model, 0.5, pattern="channel", example=IMAGE)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    masks.hold(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        model(IMAGE).square().sum().backward()
        optimizer.step()
    assert ab.shrink(model, IMAGE)[0].out_channels == 4


def test_a_number_in_forward_freezes_its_group_with_a_reason() -> None:
    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 6, 1), "out": nn.Linear(6, 4)}
    literal = Layers(
        lambda m, x: m.out(F.relu(m.b(F.relu(m.a(x).reshape(2, 8, -1)).reshape(2, 8, 10, 10))).mean((2, 3))), **layers
    )
    small, lines = _halved(literal, IMAGE)
    assert small.a.out_channels == 8
    assert small.b.out_channels == 3
    masks = ab.prune(literal, 0.5, pattern="channel", example=IMAGE)
    assert any("forward does not bear it" in line and "a.weight" in line for line in masks.summary)
    assert lines


def test_a_literal_slice_that_reads_other_channels_is_found_by_its_answer() -> None:
    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(4, 6, 1), "c": nn.Conv2d(4, 6, 1), "out": nn.Linear(6, 4)}
    net = Layers(lambda m, x: m.out((m.b((y := m.a(x))[:, :4]) + m.c(y[:, -4:])).mean((2, 3))), **layers)
    small, _ = _halved(net, IMAGE)
    assert small.a.out_channels == 8
    assert _equal(net, small, IMAGE)


def test_inexact_narrows_streams_that_norms_read() -> None:
    block = {"inn": nn.Linear(6, 8), "norm": nn.LayerNorm(8), "up": nn.Linear(8, 16), "down": nn.Linear(16, 8)}
    net = Layers(lambda m, x: m.out((y := m.inn(x)) + m.down(F.gelu(m.up(m.norm(y))))), **block, out=nn.Linear(8, 4))
    x = torch.randn(2, 5, 6)
    exact, _ = _halved(copy.deepcopy(net), x)
    assert (exact.inn.out_features, exact.up.out_features) == (8, 8)
    ab.prune(net, 0.5, pattern="channel", example=x, exact=False)
    narrow = shrink(net, x, exact=False)
    assert (narrow.inn.out_features, narrow.norm.normalized_shape, narrow.up.out_features) == (4, (4,), 8)
    assert narrow(x).shape == (2, 5, 4)


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(8), nn.GroupNorm(8, 8), nn.GroupNorm(4, 8), nn.GroupNorm(1, 8)])
def test_inexact_narrows_norms_of_groups(norm: nn.Module) -> None:
    net = randomize(nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 4, 1))).eval()
    ab.prune(net, 0.5, pattern="channel", exact=False, example=IMAGE)
    small = shrink(net, IMAGE, exact=False)
    assert (small[0].out_channels, small[3].in_channels) == (4, 4)
    groups = getattr(norm, "num_groups", 8)
    if groups == 8:  # the groups that stay are as they were
        torch.testing.assert_close(small(IMAGE), net(IMAGE))


def test_inexact_narrows_a_norm_that_derives_what_it_adds_from_the_dtype() -> None:
    net = randomize(nn.Sequential(nn.Linear(5, 8), nn.RMSNorm(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))).eval()
    x = torch.randn(2, 5)
    ab.prune(net, 0.5, pattern="channel", exact=False, example=x)
    small = shrink(net, x, exact=False)
    assert (small[0].out_features, small[1].normalized_shape, small[2].out_features) == (4, (4,), 3)
    assert small[1].eps is None


def _silenced(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter[::2] = 0
    return model


KEPT = {
    "zero padding": ((nn.Sigmoid(), nn.Conv2d(8, 6, 3, padding=1)), {}, "a constant for 2 that is not 0, and its zero padding"),
    "no bias": ((nn.Sigmoid(), nn.ConvTranspose2d(8, 6, 3)), {}, "a constant for 2 that is not 0, and it has no bias"),
    "not constant": ((nn.GroupNorm(4, 8, affine=False), nn.Conv2d(8, 6, 3)), {"exact": False}, "not known to be constant for 2"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KEPT)
def test_prune_zeroes_nothing_that_shrink_keeps_and_both_say_why(kind: str) -> None:
    layers, options, why = KEPT[kind]
    x = torch.randn(2, 3, 8, 8)
    ends = (nn.ReLU(), nn.Conv2d(6, 4, 1))
    model = randomize(nn.Sequential(nn.Conv2d(3, 8, 3), *layers, *ends)).eval()
    masks = ab.prune(model, 0.5, pattern="channel", example=x, say=None, **options)
    assert sorted(masks) == ["2.bias", "2.weight"]
    assert any(why in line and line.endswith(": 0.weight") for line in masks.summary), masks.summary
    lines: list[str] = []
    small = shrink(_silenced(model), x, say=lines.append, **options)
    assert small[0].out_channels == 8
    assert any(why in line for line in lines), lines
    alone = _silenced(randomize(nn.Sequential(nn.Conv2d(3, 8, 3), *layers)).eval())
    with pytest.raises(InputError, match=f"nothing to shrink: left, .*{why}.*: 0.weight"):
        shrink(alone, x, **options)


def test_heads_alone() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (-1, 3)).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))
        return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    net = Layers(forward, qkv=nn.Linear(6, 36), out=nn.Linear(12, 6))
    x = torch.randn(1, 5, 6)
    masks = ab.prune(net, 0.5, pattern="heads", example=x, round_to=6)  # two heads
    assert masks.summary[0].startswith("2 of 4 heads removed in 1 of 1 groups")
    small = ab.shrink(net, x)
    assert (small.qkv.out_features, small.out.in_features) == (18, 6)
    assert _equal(net, small, x)


@pytest.mark.parametrize("goal", [{"macs": 0.5}, {"parameters": 0.3}, {"sparsity": 0.7, "allocation": "global"}])
def test_goals_are_met_from_below(goal) -> None:
    model = randomize(
        nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 10, 3))
    ).eval()
    macs, parameters = _conv_macs(model, IMAGE), _count(model)
    ab.prune(model, pattern="channel", example=IMAGE, **goal)
    small = ab.shrink(model, IMAGE)
    assert 0.9 * goal.get("macs", 0) <= _conv_macs(small, IMAGE) / macs <= goal.get("macs", 1)
    assert 0.9 * goal.get("parameters", 0) <= _count(small) / parameters <= goal.get("parameters", 1)


def test_channels_are_rounded_to_multiples() -> None:
    model = randomize(nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Linear(50, 33), nn.ReLU(), nn.Linear(33, 2))).eval()
    small, _ = _halved(model, torch.zeros(1, 4), round_to=8)
    assert (small[0].out_features, small[2].out_features) == (24, 16)


def _grouped(width: int, groups: int) -> nn.Module:
    grouped = nn.Conv2d(width, width, 3, groups=groups)
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.ReLU(), grouped, nn.ReLU(), nn.Conv2d(width, 10, 1))


@pytest.mark.parametrize(
    ("width", "groups", "wanted"),
    [
        (128, 32, 64),  # 4 units of 32 channels
        (12, 4, 8),  # 3 of 4: two at a time
        (12, 6, 12),  # one of 2 units would leave 6
    ],
)
def test_the_channels_of_a_grouped_convolution_are_rounded_not_its_units(width: int, groups: int, wanted: int) -> None:
    model = randomize(_grouped(width, groups)).eval()
    if width // groups == 2:
        with pytest.raises(InputError, match="round_to=8 keeps all of their channels"):
            _halved(model, IMAGE, round_to=8)
        return
    small, lines = _halved(model, IMAGE, round_to=8)
    assert (small[0].out_channels, small[2].out_channels) == (wanted, wanted)
    assert lines[0].startswith(f"{2 * (width - wanted)} of {2 * width} channels")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"sparsity": 0.5}, "give example="),
        ({"example": IMAGE}, "exactly one of sparsity, macs and parameters"),
        ({"sparsity": 0.5, "macs": 0.5, "example": IMAGE}, "not sparsity and macs"),
        ({"macs": 1.5, "example": IMAGE}, "in \\[0, 1\\]"),
        ({"macs": 0.0001, "example": IMAGE}, "ask for more"),
        ({"sparsity": 0.5, "keep": 3, "example": IMAGE}, "keep does not go with pattern channel"),
        ({"sparsity": 0.5, "round_to": 0, "example": IMAGE}, "round_to"),
        ({"sparsity": 0.5, "allocation": "erk", "example": IMAGE}, "allocation 'erk'"),
        ({"sparsity": 0.5, "include": ["nothing"], "example": IMAGE}, "leave no group|no parameter"),
        ({"sparsity": 0.5, "example": torch.zeros(1, 2)}, "forward does not accept the example"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_touched(options, why: str) -> None:
    model = _cnn(nn.ReLU())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ab.AbridgedError, match=why):
        ab.prune(model, pattern="channel", **options)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))


def test_nothing_to_shrink_is_an_error() -> None:
    with pytest.raises(
        InputError, match=r"no channel is zero: .* weights, bias, and .* norm; .* single zeros are left"
    ):
        ab.shrink(_cnn(nn.ReLU()), IMAGE)
    with pytest.raises(InputError, match="exact must be True or False, not str"):
        ab.shrink(_cnn(nn.ReLU()), IMAGE, exact="no")
    with pytest.raises(InputError, match="an output of the network"):
        ab.shrink(nn.Linear(3, 2), torch.zeros(1, 3))
    with pytest.raises(InputError, match="macs does not go with"):
        ab.prune(_cnn(nn.ReLU()), macs=0.5)


def test_a_whole_number_that_only_looks_like_a_size_is_left_as_it_was() -> None:
    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(inputs, outputs, 1), nn.Conv2d(outputs, outputs, 1)
            self.more = outputs - inputs  # as many as `inputs`, which are halved

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.b(F.relu(self.a(x))) + F.pad(x, (0, 0, 0, 0, self.more // 2, self.more // 2)))

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    net = randomize(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), Block(8, 16), *head)).eval()
    small, _ = _halved(net, IMAGE)
    assert (small[0].out_channels, small[2].a.out_channels, small[2].b.out_channels) == (4, 8, 12)
    assert small[2].more == 8
    assert _equal(net, small, IMAGE)


def test_only_the_kind_of_group_that_forward_does_not_bear_is_frozen() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x.reshape(-1, 8, 10, 10) + self.b(F.relu(self.a(x))))  # the literal is the stream's

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    net = randomize(nn.Sequential(nn.Conv2d(3, 8, 1), Block(), Block(), *head)).eval()
    small, _ = _halved(net, IMAGE)
    assert [small[0].out_channels, *(small[i].a.out_channels for i in (1, 2))] == [8, 3, 3]


def test_where_two_kinds_are_guilty_the_innocent_one_goes() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        wide = F.relu(m.a(x)).reshape(-1, 8) + F.relu(m.b(x)).reshape(-1, 8)  # either literal raises
        return m.out(wide) + m.down(F.relu(m.innocent(x)))

    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(6, 8), "innocent": nn.Linear(6, 10), "down": nn.Linear(10, 3)}
    net = randomize(Layers(forward, **layers, out=nn.Linear(8, 3))).eval()
    masks = ab.prune(net, 0.5, pattern="channel", example=(x := torch.randn(4, 6)))
    small = ab.shrink(net, x)
    assert (small.a.out_features, small.b.out_features, small.innocent.out_features) == (8, 8, 5)
    assert not any("innocent" in line for line in masks.summary)
    assert _equal(net, small, x)


def test_wrong_answers_are_blamed_on_as_few_kinds_as_will_do() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        a, b = F.relu(m.a(x)), F.relu(m.b(x))
        doubled = 2.0 if a.shape[-1] + b.shape[-1] < 12 else 1.0  # only both cuts together reach it
        return doubled * (m.c(a) + m.d(b)) + m.down(F.relu(m.innocent(x)))

    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(6, 8), "c": nn.Linear(8, 3), "d": nn.Linear(8, 3)}
    net = randomize(Layers(forward, **layers, innocent=nn.Linear(6, 10), down=nn.Linear(10, 3))).eval()
    small, _ = _halved(net, x := torch.randn(4, 6))
    assert sorted((small.a.out_features, small.b.out_features)) == [4, 8]
    assert small.innocent.out_features == 5
    assert _equal(net, small, x)


def test_a_model_that_is_pruned_is_not_exported_again_to_be_shrunk_unless_it_changed(monkeypatch) -> None:
    from abridged.pruning import coupled

    calls = []
    monkeypatch.setattr(coupled, "capture", lambda *args: calls.append(0) or ab.capture(*args))
    net = Layers(lambda m, x: m.b(F.relu(m.a(x)) * m.scale), a=nn.Linear(4, 8), b=nn.Linear(8, 2))
    net.scale = 1.0
    _, x = ab.prune(net, 0.5, pattern="channel", example=torch.zeros(1, 4)), torch.ones(3, 4)
    ab.shrink(net, torch.zeros(1, 4))
    assert len(calls) == 1
    for change in (
        lambda: setattr(net, "scale", 2.0),
        lambda: setattr(net, "b", nn.Linear(8, 3)),
        lambda: setattr(net.b, "weight", nn.Parameter(torch.ones(5, 8))) or setattr(net.b, "bias", None),
        lambda: net.double().float(),
        lambda: delattr(net, "scale") or net.register_buffer("scale", torch.ones(1), persistent=False),
        lambda: net.scale.mul_(3),
    ):
        change()
        small = ab.shrink(net, torch.zeros(1, 4))
        assert _equal(net, small, x)
    assert len(calls) == 7
    ab.shrink(net, torch.zeros(1, 4), exact=False), ab.shrink(net, torch.zeros(2, 4))
    assert len(calls) == 9


def test_what_is_kept_of_a_model_does_not_keep_it_alive() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    ab.prune(net, 0.5, pattern="channel", example=torch.zeros(1, 4))
    alive = weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_left_with_a_reason_and_what_is_around_them_goes(kind: type[nn.Module]) -> None:
    layers = {"inn": nn.Linear(6, 16), "rnn": kind(16, 12, batch_first=True)}
    net = Layers(
        lambda m, x: m.out(F.relu(m.mid(m.rnn(F.relu(m.inn(x)))[0][:, -1]))),
        **layers, mid=nn.Linear(12, 20), out=nn.Linear(20, 3),
    )  # fmt: skip
    x = torch.randn(2, 5, 6)
    masks = ab.prune(net, 0.5, pattern="channel", example=x)
    assert any("input.size(-1) must be equal to input_size" in line and "inn.weight" in line for line in masks.summary)
    small = ab.shrink(net, x)
    assert (small.inn.out_features, small.rnn.input_size, small.mid.out_features) == (16, 16, 10)
    assert _equal(net, small, x)


@pytest.mark.parametrize("solver", ["mean", "least-squares", "obs"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
def test_what_is_left_is_repaired_on_data(solver: str, activation: type[nn.Module]) -> None:
    images = torch.randn(64, 3, 10, 10, generator=torch.Generator().manual_seed(4))
    net, plain, repaired = (_cnn(activation()) for _ in range(3))
    split = (images, torch.zeros(64, dtype=torch.long))
    data = ab.Data(split, split)
    ab.prune(plain, 0.5, pattern="channel", example=IMAGE)
    masks = ab.prune(
        repaired, 0.5, pattern="channel", example=IMAGE, data=data, solver=solver, reestimate=True, samples=64
    )
    assert "repaired by" in str(masks)
    assert "re-estimated: 1 of 1 batch norms" in str(masks)
    zeros = [not repaired.get_parameter(name)[~mask].any() for name, mask in masks.items()]
    assert zeros
    assert all(zeros)
    small = shrink(repaired, IMAGE, say=None)
    assert small[0].out_channels == 4
    assert _equal(repaired, small, IMAGE)
    with torch.no_grad():
        errors = [(model(images) - net(images)).square().mean() for model in (plain, repaired)]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("target", ["onnxruntime", "native"])
def test_the_shrunk_model_deploys(tmp_path, target: str) -> None:
    small, _ = _halved(_cnn(nn.ReLU()), IMAGE)
    with ab.deploy(small, IMAGE, target=target, out=tmp_path / "net") as artifact:
        torch.testing.assert_close(artifact(IMAGE), small(IMAGE).detach(), rtol=1e-4, atol=1e-5)


def test_attention_and_groups_of_the_users_class_have_right_attributes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 1)
            self.group = nn.Conv2d(16, 16, 3, groups=4)
            self.out = nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(self.group(F.relu(self.stem(x)))))

    small, _ = _halved(randomize(Net()).eval(), IMAGE)
    assert type(small) is Net
    sizes = [(m.in_channels, m.out_channels, m.groups, tuple(m.weight.shape)) for m in small.children()]
    assert sizes == [(3, 8, 1, (8, 3, 1, 1)), (8, 8, 4, (8, 2, 3, 3)), (8, 4, 1, (4, 8, 1, 1))]
