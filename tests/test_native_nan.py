"""NaN and infinity go through every weight that is stored, as in PyTorch, and through no weight that was pruned."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from native_checks import poison
from torch import Tensor, nn

from abridged import targets
from abridged.graph.capture import capture

pytestmark = pytest.mark.usefixtures("fast_builds")

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "3x3": (nn.Conv2d(8, 12, 3, padding=1), (2, 8, 6, 7)),
    "strided": (nn.Conv2d(8, 12, 3, 2, 1), (2, 8, 6, 7)),
    "grouped": (nn.Conv2d(8, 12, 3, padding=1, groups=4), (1, 8, 5, 6)),
    "depthwise": (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 5, 6)),
    "strided depthwise": (nn.Conv2d(8, 16, 3, 2, 1, groups=8), (1, 8, 5, 6)),
    "transposed": (nn.ConvTranspose2d(8, 6, 3, 2, 1), (1, 8, 4, 5)),
    "over tokens": (nn.Linear(8, 12), (2, 9, 8)),
    "one position": (nn.Linear(40, 33), (1, 40)),
}
SPARSE = [name for name in LAYERS if "depthwise" not in name]  # those store every tap


def reached(layer: Any, x: Tensor) -> Tensor:
    """Where a weight that is not zero reads an element that is not finite."""
    marks = copy.deepcopy(layer)
    with torch.no_grad():
        marks.weight[:] = layer.weight != 0
        marks.bias[:] = 0
        return marks((~x.isfinite()).float()) > 0


def check(layer: Any, shape: tuple[int, ...], zeros: float) -> None:
    with torch.no_grad():
        layer.weight *= torch.rand_like(layer.weight) >= zeros
    inputs = []
    for bad in (torch.nan, torch.inf, -torch.inf):
        for at in (0, -1, torch.Size(shape).numel() // 2):  # corners, beside which there is padding, and inside
            x = torch.randn(shape)
            x.view(-1)[at] = bad
            inputs.append(x)
    with targets.build(capture(layer, inputs[0]), "native", tune=False, threads=1) as artifact, torch.no_grad():
        for x in inputs:
            found, there = poison(artifact)(x), reached(layer, x)
            assert there.any() or zeros
            assert torch.equal(found[there].isnan(), layer(x)[there].isnan())
            assert torch.equal(found[there].nan_to_num(), layer(x)[there].nan_to_num())
            finite = layer(x.nan_to_num(0, 0, 0))
            torch.testing.assert_close(found[~there], finite[~there], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_every_stored_weight_carries_them(name: str) -> None:
    check(*copy.deepcopy(LAYERS[name]), zeros=0.0)


@pytest.mark.parametrize("name", SPARSE)
def test_a_pruned_weight_carries_nothing(name: str) -> None:
    check(*copy.deepcopy(LAYERS[name]), zeros=0.9)


def test_a_weight_that_is_not_finite_is_stored() -> None:
    layer = nn.Conv2d(8, 4, 1)
    with torch.no_grad():
        layer.weight *= 0
        layer.weight[0, 0], layer.weight[1, 1], layer.bias[2] = torch.nan, torch.inf, -torch.inf
    x = torch.rand(1, 8, 3, 3) + 1
    with targets.build(capture(layer, x), "native", tune=False, threads=1) as artifact, torch.no_grad():
        torch.testing.assert_close(poison(artifact)(x), layer(x), equal_nan=True)


class Sums(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        norms = F.layer_norm(x, x.shape[2:]), F.group_norm(x, 5), x.var(1)
        return x.logsumexp(1), x.logsumexp((0, 2), keepdim=True), x.softmax(1), x.log_softmax(2), *norms


@pytest.mark.parametrize("given", [(torch.inf,), (-torch.inf,), (torch.inf, -torch.inf), (torch.nan, torch.inf)])
def test_softmaxes_and_norms_of_infinity(given: tuple[float, ...]) -> None:
    x = torch.randn(2, 5, 17)
    for i, number in enumerate(given):
        x[0, i, ::2] = x[1, :, 3 + i] = x[:, 4, 5 + i :: 2] = number
    with targets.build(capture(Sums(), x), "native", tune=False, threads=1) as artifact:
        for found, wanted in zip(poison(artifact)(x), Sums()(x), strict=True):
            torch.testing.assert_close(found, wanted, equal_nan=True)


RESIZED: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "linear": ((5,), {"scale_factor": 3.0}),
    "bilinear": ((4, 5), {"scale_factor": 3.0}),
    "bilinear by sizes": ((4, 5), {"size": (7, 3)}),
    "bilinear along one axis": ((4, 5), {"size": (4, 15)}),
    "bilinear of one pixel": ((1, 5), {"size": (3, 1)}),
    "bilinear to the same size": ((4, 5), {"size": (4, 5)}),
    "bicubic": ((4, 5), {"scale_factor": 3.0}),
    "bicubic by other factors": ((4, 5), {"scale_factor": (0.5, 1.5)}),
    "bicubic by sizes": ((4, 5), {"size": (7, 3)}),
    "bicubic of one pixel": ((5, 1), {"size": (3, 2)}),
    "bicubic to the same size": ((4, 5), {"size": (4, 5)}),
    "trilinear": ((3, 2, 4), {"size": (5, 4, 4)}),
}


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("name", RESIZED)
def test_every_tap_of_a_resize_carries_them(name: str, corners: bool) -> None:
    """Those of weight 0, too, and at the edge those that meet in one pixel."""
    sizes, options = RESIZED[name]
    layer = nn.Upsample(mode=name.split()[0], align_corners=corners, **options)
    x = torch.randn(torch.Size(sizes).numel(), 1, *sizes)  # each sample has another pixel that is not finite
    with targets.build(capture(layer, x), "native", tune=False, threads=1) as artifact:
        for bad in (torch.nan, torch.inf, -torch.inf):
            x.flatten(1).diagonal()[:] = bad
            torch.testing.assert_close(poison(artifact)(x), layer(x), rtol=1e-5, atol=1e-5, equal_nan=True)


def test_windows_of_padding_alone_can_be_resized() -> None:
    pool = nn.MaxPool2d(2, 3, 1, dilation=2, ceil_mode=True)
    x = torch.randn(1, 3, 14, 1)
    assert pool(x).isinf().any()
    for mode in ("bilinear", "bicubic"):
        module = nn.Sequential(pool, nn.Upsample(scale_factor=3.0, mode=mode))
        with targets.build(capture(module, x), "native", tune=False, threads=1) as artifact:
            torch.testing.assert_close(poison(artifact)(x), module(x), equal_nan=True)
