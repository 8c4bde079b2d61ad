"""Coupling: every op has a rule and every rule tells the truth; the groups of networks whose coupling is known."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import Layers, network
from test_ops import _all_cases
from torch import Tensor, nn

from abridged.graph.capture import capture
from abridged.graph.graph import Constant, Graph, Node, Value
from abridged.graph.ops import OPS, apply, infer
from abridged.pruning.coupling.groups import COUPLING, Coupling, couple
from abridged.pruning.coupling.labels import Flow
from abridged.pruning.coupling.moves import reshaped

CASES = _all_cases()


def test_every_op_has_a_coupling_rule() -> None:
    assert set(COUPLING) == set(OPS)
    assert all(COUPLING.summary(op) for op in COUPLING)


def _one_node(op: str, case) -> Graph:
    """The op alone, each of its inputs a weight."""
    names = tuple(None if x is None else f"x{i}" for i, x in enumerate(case.inputs))
    tensors = {name: x for name, x in zip(names, case.inputs, strict=True) if name}
    values = {name: Value(name, tuple(x.shape), x.dtype) for name, x in tensors.items()}
    results = apply(Node(op, (), (), case.attrs), case.inputs)
    node = Node(op, names, tuple(f"y{i}" for i in range(len(results))), case.attrs)
    values |= {value.name: value for value in infer(node, values)}
    constants = {name: Constant(x, (name,)) for name, x in tensors.items()}
    return Graph((node,), values, constants, (), (), {"tuple": []}, {"tuple": []})


def _holding(coupling: Coupling, name: str, unit: int) -> Tensor:
    """Where a value's elements go with a unit."""
    shape = coupling.graph.values[name].shape
    where = np.zeros(shape, bool)
    for units in coupling.fields.get(name, []):
        where |= np.broadcast_to(units == unit, shape)
    return torch.from_numpy(where)


def _disturbed(x: Tensor, where: Tensor) -> Tensor:
    other = ~x if x.dtype == torch.bool else x + 1
    return torch.where(where, other, x)


tested: set[str] = set()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("op", "case"), CASES)
def test_what_stays_does_not_depend_on_what_goes(op: str, case, exact: bool) -> None:
    """Disturb every element of a unit: the elements that stay are as they were, unless a sum ends the unit or (not exact) a norm narrows."""
    if not exact and op in ("layer_norm", "rms_norm", "group_norm", "mean", "var"):
        return
    graph = _one_node(op, case)
    coupling = couple(graph, exact=exact)
    (node,) = graph.nodes
    right = apply(node, case.inputs)
    ended = {int(unit) for ending in coupling.endings for unit in ending.units}
    for unit in sorted(set(range(coupling.count)) - ended)[:12]:
        inputs = tuple(
            None if x is None else _disturbed(x, _holding(coupling, f"x{i}", unit)) for i, x in enumerate(case.inputs)
        )
        for name, wanted, found in zip(node.outputs, right, apply(node, inputs), strict=True):
            stays = ~_holding(coupling, name, unit)
            assert torch.allclose(found[stays], wanted[stays], rtol=1e-5, atol=1e-5, equal_nan=True), (op, unit)
            tested.add(op)


def test_the_law_tested_something() -> None:
    data = {"conv", "linear", "matmul", "batch_norm", "add", "where", "relu", "cat", "split", "reshape", "permute"}
    assert data <= tested
    assert len(tested) > 60


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((6,), (2, 3)),
        ((2, 3), (6,)),
        ((4, 6), (2, 2, 3, 2)),
        ((1, 6, 1), (6,)),
        ((5, 1, 4), (5, 4)),
        ((4, 6), (8, 3)),
        ((1,), ()),
    ],
)
def test_reshaped_labels_are_reshaped_elements(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    for axis in range(len(old)):
        field = np.arange(old[axis]).reshape([-1 if a == axis else 1 for a in range(len(old))])
        wanted = np.broadcast_to(field, old).reshape(new)
        assert (np.broadcast_to(reshaped(field, old, new), new) == wanted).all()


def _sizes(model: nn.Module, x: Tensor, **options) -> list[int]:
    coupling = couple(capture(model.eval(), x), **options)
    return sorted(len(group.units) for group in coupling.groups)


IMAGE = torch.zeros(1, 3, 8, 8)


def test_a_residual_ties_both_branches_and_a_concat_keeps_them_apart() -> None:
    layers = {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(3, 6, 1), "c": nn.Conv2d(6, 2, 1), "d": nn.Conv2d(12, 2, 1)}
    added = Layers(lambda m, x: m.c(m.a(x) + m.b(x)), **layers)
    assert _sizes(added, IMAGE) == [6]
    joined = Layers(lambda m, x: m.d(torch.cat([m.a(x), m.b(x)], 1)), **layers)
    assert _sizes(joined, IMAGE) == [6, 6]


def test_grouped_and_depthwise_convolutions() -> None:
    depthwise = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1))
    assert _sizes(depthwise, IMAGE) == [6]
    grouped = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
    assert _sizes(grouped, IMAGE) == [3, 4]


def test_a_flatten_ties_the_positions_of_a_channel() -> None:
    assert _sizes(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Flatten(), nn.Linear(6 * 64, 4)), IMAGE) == [6]


def _shuffled(x: Tensor, groups: int = 2) -> Tensor:
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def test_a_shuffle_ties_the_same_place_of_each_group_and_no_more() -> None:
    net = Layers(lambda m, x: m.b(_shuffled(m.a(x))), a=nn.Conv2d(3, 12, 1), b=nn.Conv2d(12, 2, 1))
    assert _sizes(net, IMAGE) == [6]


def test_halves_of_a_shuffled_stream_go_in_whole_orbits() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        y = m.a(x)
        for branch in (m.b, m.c):
            kept, taken = _shuffled(y).chunk(2, 1)
            y = torch.cat([kept, branch(taken)], 1)
        return m.out(y)

    layers = {
        "a": nn.Conv2d(3, 24, 1),
        "b": nn.Conv2d(12, 12, 1),
        "c": nn.Conv2d(12, 12, 1),
        "out": nn.Conv2d(24, 2, 1),
    }
    # 12 pairs by the first shuffle, 6 by its halves, 3 by those of the second; what c makes is read as it is.
    assert _sizes(Layers(forward, **layers), IMAGE) == [3, 12]


def test_parts_of_one_size_stay_so() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        a, b = m.a(x).chunk(2, 1)
        return m.b(a) + m.c(b)

    net = Layers(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(4, 2, 1), c=nn.Conv2d(4, 2, 1))
    assert _sizes(net, IMAGE) == [4]
    parts = Layers(
        lambda m, x: m.b((s := m.a(x).split([6, 2], 1))[0]) + m.c(s[1]),
        a=net.a,
        b=nn.Conv2d(6, 2, 1),
        c=nn.Conv2d(2, 2, 1),
    )
    assert _sizes(parts, IMAGE) == [2, 6]


def test_squeeze_and_excitation_ties_the_gate() -> None:
    layers = {"a": nn.Conv2d(3, 8, 1), "down": nn.Conv2d(8, 4, 1), "up": nn.Conv2d(4, 8, 1), "c": nn.Conv2d(8, 2, 1)}
    net = Layers(lambda m, x: m.c((y := m.a(x)) * torch.sigmoid(m.up(F.relu(m.down(y.mean((2, 3), True)))))), **layers)
    assert _sizes(net, IMAGE) == [4, 8]


def test_norms_hold_what_they_read_unless_told_otherwise() -> None:
    x = torch.zeros(1, 5, 4)
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    coupling = couple(capture(net, x))
    assert not coupling.groups
    assert any("layer norm reads it" in group.reason for group in coupling.held)
    assert _sizes(net, x, exact=False) == [8]
    groups = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.Conv2d(8, 2, 1))
    assert _sizes(groups, IMAGE) == [4]  # whole groups
    assert _sizes(groups, IMAGE, exact=False) == [2]  # the same channel of each
    assert _sizes(nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8), nn.Conv2d(8, 2, 1)), IMAGE) == [8]


def test_attention_goes_by_heads() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (4, 3)).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))
        return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    net = Layers(forward, qkv=nn.Linear(6, 36), out=nn.Linear(12, 6))
    coupling = couple(capture(net, torch.zeros(1, 5, 6)))
    (group,) = coupling.groups
    assert len(group.units) == 4
    assert group.heads


def test_einsum_ties_and_ends_letters() -> None:
    net = Layers(
        lambda m, x: m.b(torch.einsum("btc,dc->btd", m.a(x), m.w.weight)),
        a=nn.Linear(4, 6),
        w=nn.Linear(6, 8, False),
        b=nn.Linear(8, 2),
    )
    assert _sizes(net, torch.zeros(1, 5, 4)) == [6, 8]


def test_shared_weights_are_one_group() -> None:
    shared = nn.Linear(6, 6)
    assert _sizes(nn.Sequential(nn.Linear(4, 6), shared, nn.ReLU(), shared, nn.Linear(6, 2)), torch.zeros(1, 4)) == [6]


def test_labels_of_inputs_and_outputs_are_fixed() -> None:
    flow = Flow(capture(nn.Linear(4, 6), torch.zeros(1, 4)), exact=True).walk()
    assert {reason for _, reason in flow.frozen} >= {"an output of the network"}
    assert not couple(flow.graph).groups


@pytest.mark.slow
def test_resnet152_is_coupled_in_five_seconds(torchvision_models) -> None:
    graph = capture(network(torchvision_models, "resnet152"), torch.zeros(1, 3, 64, 64))
    start = time.process_time()
    assert couple(graph).groups
    assert time.process_time() - start < 5
