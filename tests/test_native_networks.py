"""Target `native` equals PyTorch on torchvision's convolutional networks, dense and with 90 % zeros, on one and two threads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import FAST, network, own_size, run64
from native_checks import poison
from test_networks import LIST, _all_names
from torch import Tensor, nn

from abridged import targets
from abridged.graph.capture import capture

EPS = torch.finfo(torch.float32).eps
HANDFUL = ("mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1")


def _convolutional(name: str) -> bool:
    return not name.startswith(("vit", "swin", "maxvit"))


@torch.no_grad()
def _pruned(model: nn.Module, zeros: float) -> nn.Module:
    """Random zeros in every weight of two or more axes."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter *= torch.rand(parameter.shape, generator=generator) >= zeros
    return model


def _equals_torch(models, name: str, zeros: float, size: int, folder: Path, built_for: int = 2) -> None:
    """Within 8 times PyTorch's own error against float64; bit for bit the same on one thread and on two, for whichever it was built."""
    model = _pruned(network(models, name), zeros)
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    exact = run64(model, x)
    with torch.no_grad():
        own = (model(x) - exact).abs().max().item()
    assert exact.abs().max() > 0
    bound = 8 * max(own, EPS * exact.abs().max().item())
    targets.build(capture(model, x), "native", folder / "net", threads=built_for, tune=False).close()
    answers: list[Tensor] = []
    for threads in (1, 2):
        with targets.load(folder / "net", threads=threads) as artifact:
            answers.append(poison(artifact)(x))
    print(f"{name}, {zeros:.0%} zeros: {(answers[0] - exact).abs().max().item() / bound:.3f} of the bound")
    assert (answers[0] - exact).abs().max().item() <= bound
    assert torch.equal(*answers)


@pytest.mark.parametrize("zeros", [0.0, 0.9], ids=["dense", "90 % zeros"])
@pytest.mark.parametrize("name", HANDFUL)
@pytest.mark.parametrize("built_for", [1, 2, 3])
def test_a_handful_of_networks(torchvision_models, name: str, zeros: float, built_for: int, tmp_path: Path) -> None:
    _equals_torch(torchvision_models, name, zeros, FAST[name], tmp_path, built_for)


@pytest.mark.slow
@pytest.mark.skipif(not LIST.exists(), reason="needs the list of networks in ../shared")
@pytest.mark.parametrize("zeros", [0.0, 0.9], ids=["dense", "90 % zeros"])
@pytest.mark.parametrize("name", [name for name in _all_names() if _convolutional(name)])
def test_every_convolutional_network(torchvision_models, name: str, zeros: float, tmp_path: Path) -> None:
    _equals_torch(torchvision_models, name, zeros, own_size(name), tmp_path)


def test_the_list_has_60_convolutional_networks() -> None:
    if not LIST.exists():
        pytest.skip("needs the list of networks in ../shared")
    assert len([name for name in _all_names() if _convolutional(name)]) == 61
