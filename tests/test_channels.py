"""The pass that leaves out channels: what is zero or unread goes, and the network computes the same."""

import pytest
import torch
from native_checks import agrees
from torch import nn

from abridged.compiler.channels import drop_channels
from abridged.compiler.fold import drop_dead
from abridged.graph.capture import capture
from abridged.graph.graph import Graph
from abridged.graph.interpret import interpret
from abridged.graph.verify import verify


def weights(graph: Graph) -> list[tuple[int, ...]]:
    return [graph.values[node.inputs[1] or ""].shape for node in graph if node.op in ("conv", "linear")]


def network(activation: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), activation, nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 1), activation, nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    ).eval()  # fmt: skip


@torch.no_grad()
def silence(layer: nn.Conv2d | nn.Linear, channels: list[int]) -> None:
    layer.weight[channels] = 0
    layer.bias[channels] = 0


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Hardswish(), nn.Sigmoid()])
def test_zero_and_unread_channels_go(activation: nn.Module) -> None:
    net = network(activation)
    silence(net[0], [1, 2])
    silence(net[2], [1])
    with torch.no_grad():
        net[4].weight[:, 5] = 0  # nobody reads channel 5
        net[6].weight[:, [0, 3]] = 0
    x = torch.randn(2, 3, 12, 12)
    graph = capture(net, x)
    small = verify(drop_dead(drop_channels(graph)))
    zeros = 0 if isinstance(activation, nn.Sigmoid) else 1  # sigmoid(0) is not 0: such a channel is read as a constant
    assert weights(small)[0] == (7 - zeros, 3, 3, 3)
    assert weights(small)[2][0] == 4
    exact, got = interpret(graph, x, dtype=torch.float64), interpret(small, x, dtype=torch.float64)
    torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)


def test_one_channel_stays_where_none_is_needed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    silence(net[0], [0, 1, 2, 3])
    x = torch.randn(1, 3, 5, 5)
    small = drop_channels(capture(net, x))
    assert weights(small) == [(1, 3, 1, 1), (2, 1, 1, 1)]
    torch.testing.assert_close(interpret(small, x), net(x))


AXES = {
    "maps into features": (lambda: (nn.Conv2d(4, 9, 3, padding=1), nn.ReLU(), nn.Linear(9, 7)), (1, 4, 9, 9)),
    "other sizes": (lambda: (nn.Conv2d(4, 5, 3, padding=1), nn.Linear(9, 5)), (1, 4, 9, 9)),
    "features into maps": (lambda: (nn.Linear(9, 4), nn.Conv2d(4, 3, 3)), (1, 4, 9, 9)),
    "features pooled": (lambda: (nn.Linear(9, 5), nn.MaxPool1d(3, 1, 1), nn.Linear(5, 4)), (1, 4, 9)),
    "each feature pooled": (
        lambda: (nn.Linear(9, 5), nn.Conv1d(4, 4, 3, padding=1, groups=4), nn.Linear(5, 4)),
        (1, 4, 9),
    ),
}


def test_groups_of_several_inputs_are_not_channels_by_themselves(fast_builds: None) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, groups=4), nn.Conv2d(4, 3, 1)).eval()
    silence(net[0], [2])
    agrees(net, torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("name", AXES)
def test_features_and_channels_lie_along_axes_of_their_own(name: str, fast_builds: None) -> None:
    layers, shape = AXES[name]
    net = nn.Sequential(*layers()).eval()
    silence(net[0], [2])
    agrees(net, torch.randn(shape))


def test_features_go_between_linear_layers_of_any_rank() -> None:
    net = nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
    silence(net[0], [2])
    x = torch.randn(2, 3, 9)
    small = verify(drop_channels(capture(net, x)))
    assert weights(small) == [(4, 9), (4, 4)]
    torch.testing.assert_close(interpret(small, x), net(x))


def test_nothing_to_drop_leaves_the_graph() -> None:
    graph = capture(network(nn.ReLU()), torch.randn(1, 3, 12, 12))
    assert drop_channels(graph) is graph
