"""Theory: counts by hand, the whole is the sum of its layers, shared weights count once."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from abridged.graph.capture import capture
from abridged.measurement.theory import COLUMNS, batch_size, theory, total
from abridged.weights import packed_bytes


def small(width: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 5)
    ).eval()


def zero_some(model: nn.Module, fraction: float, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[torch.rand(parameter.shape, generator=generator) < fraction] = 0


def test_every_column_by_hand() -> None:
    model = small()
    with torch.no_grad():
        model[1].weight.fill_(1)
        model[1].bias.fill_(1)
        model[4].weight[0] = 0
    counted = theory(capture(model, torch.zeros(2, 3, 6, 6)))
    conv, norm, relu, flatten, linear = counted.layers
    assert [layer.path for layer in counted.layers] == ["0", "1", "2", "3", "4"]
    assert [layer.ops for layer in counted.layers] == [("conv",), ("batch_norm",), ("relu",), ("reshape",), ("linear",)]
    assert (conv.parameters, conv.macs, conv.shape) == (108, 2 * 16 * 108, (2, 4, 4, 4))
    assert (norm.parameters, norm.bytes_dense) == (8, 64), "the statistics are stored, but are no parameters"
    assert relu.parameters == relu.macs == relu.bytes_dense == flatten.macs == 0
    assert (linear.parameters, linear.nonzeros) == (325, 325 - 64)
    assert (linear.macs, linear.effective_macs) == (2 * 320, 2 * 256)
    assert linear.bytes_packed == packed_bytes(model[4].weight) + 20
    assert counted.batch == 2
    assert counted.parameters == sum(p.numel() for p in model.parameters()) == 441
    assert counted.sparsity == 1 - (441 - 64) / 441


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 6), st.floats(0, 1), st.integers(0, 9))
def test_the_whole_is_the_sum_of_its_layers(width: int, fraction: float, seed: int) -> None:
    model = small(width)
    zero_some(model, fraction, seed)
    counted = theory(capture(model, torch.zeros(1, 3, 6, 6)))
    assert total(counted.layers) == {name: getattr(counted, name) for name in COLUMNS}
    assert counted.nonzeros == sum(int(p.count_nonzero()) for p in model.parameters())
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert counted.effective_macs <= counted.macs
    assert counted.bytes_packed <= counted.bytes_dense


class Tied(nn.Module):
    """An embedding whose table is also the output layer's weight, and a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.twice = nn.Linear(4, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.table.weight
        self.register_buffer("scale", torch.ones(4))

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.twice(self.twice(self.table(ids)) * 0.5) * self.scale)


def test_a_shared_weight_counts_once_and_its_work_as_often_as_it_is_done() -> None:
    model = Tied().eval()
    counted = theory(capture(model, torch.zeros(2, 3, dtype=torch.long)))
    assert counted.parameters == 28 + 20 == sum(p.numel() for p in model.parameters())
    assert counted.macs == 6 * (16 + 16 + 28)
    assert counted.bytes_dense == 4 * (28 + 20 + 4), "0.5 is code"
    rows = {layer.path: layer for layer in counted.layers}
    assert (rows["table"].parameters, rows["out"].parameters) == (28, 0)
    assert (rows["twice"].parameters, rows["twice"].macs) == (20, 6 * 32)


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, self.answer


def test_a_constant_that_is_an_output_counts() -> None:
    counted = theory(capture(Constant(), torch.tensor(1.0)))
    assert (counted.parameters, counted.macs, counted.batch) == (3, 0, 1)


def test_frozen_parameters_are_parameters() -> None:
    model = nn.Linear(3, 2).requires_grad_(False)
    assert theory(capture(model, torch.zeros(1, 3))).parameters == 8


def test_no_parameters_at_all() -> None:
    counted = theory(capture(nn.ReLU(), torch.zeros(4, 3)))
    assert (counted.parameters, counted.sparsity, batch_size(capture(nn.ReLU(), torch.zeros(4, 3)))) == (0, 0.0, 4)


def test_parameters_of_whole_networks(torchvision_models) -> None:
    models = [
        torchvision_models.mobilenet_v3_small(weights=None),
        torchvision_models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10),
        torchvision_models.SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=10),
    ]
    for model in models:
        zero_some(model, 0.5)
        counted = theory(capture(model.eval(), torch.zeros(1, 3, 32, 32)))
        assert counted.parameters == sum(p.numel() for p in model.parameters())
        assert counted.nonzeros == sum(int(p.count_nonzero()) for p in model.parameters())
        assert 0.3 < counted.effective_macs / counted.macs < 0.7
        assert total(counted.layers)["bytes_packed"] == counted.bytes_packed < 0.75 * counted.bytes_dense
