"""Strided convolutions that read their input as it lies: any shape, any machine, and nothing beyond their memory."""

import numpy as np
import pytest
import torch
from kernel_checks import guarded
from native_checks import agrees
from torch import nn

import abridged as ab
from abridged.compiler.pipeline import plan
from abridged.compiler.plan import Machine
from abridged.graph.capture import capture

MACHINES = [Machine(), *(Machine(*vectors, hosted=True) for vectors in ((16, 4), (16, 8), (32, 1), (32, 4), (32, 16)))]


def two(channels: int = 64, zeros: float = 0.0, stride: int = 2, **second: int) -> nn.Module:
    """A strided layer, and one that wants zeros around what it reads."""
    torch.manual_seed(0)
    first = nn.Conv2d(channels, channels, 3, stride, 1)
    if zeros:
        ab.prune(first, zeros, say=None)
    return nn.Sequential(first, nn.Conv2d(channels, 8, 3, **{"padding": 1, **second})).eval()


@pytest.mark.parametrize("zeros", [0.0, 0.9], ids=["dense", "90 % zeros"])
@pytest.mark.parametrize(
    "shape", [(1, 64, 9, 1), (2, 64, 9, 2), (2, 64, 2, 2), (2, 64, 1, 9), (3, 64, 15, 33)], ids=str
)
def test_maps_may_be_one_position_wide_or_high(shape: tuple[int, ...], zeros: float) -> None:
    agrees(two(zeros=zeros), torch.randn(shape))


def test_so_may_sequences() -> None:
    torch.manual_seed(0)
    agrees(nn.Sequential(nn.Conv1d(64, 64, 3, 2, 1), nn.Conv1d(64, 64, 3, 1, 1)), torch.randn(2, 64, 2))


@pytest.mark.parametrize("kept", [slice(0, 3), slice(1, 2)], ids=["all taps", "the centre"])
@pytest.mark.parametrize("outputs", [1, 12, 17, 64])
def test_every_machine_has_a_kernel_for_any_weight(outputs: int, kept: slice) -> None:
    for zeros in (0.0, 0.5, 0.7, 0.95):
        layer = nn.Conv2d(64, outputs, 3, 2, 1)
        with torch.no_grad():
            only = torch.zeros_like(layer.weight)
            only[:, :, kept, kept] = 1
            layer.weight *= only * (torch.rand(layer.weight.shape) >= zeros)
        graph = capture(layer.eval(), torch.zeros(1, 64, 13, 11))
        for machine in MACHINES:
            assert all(step.choices for step in plan(graph, machine=machine).steps)


@pytest.mark.parametrize("zeros", [0.0, 0.9], ids=["dense", "90 % zeros"])
@pytest.mark.parametrize("stride", [2, 3, 8, 16, 17])
def test_nothing_behind_the_arena_is_read(stride: int, zeros: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer behind wants so wide a gap between lines that a stride across it would leave the input far behind."""

    def fenced(size: int) -> np.ndarray:
        return guarded(-(-size // 64) * 16, at_end=True).view(np.uint8)[:size]

    monkeypatch.setattr("abridged.compiler.library.aligned", fenced)
    agrees(two(32, zeros, stride, padding=100, dilation=100), torch.randn(2, 32, 9, 9))
