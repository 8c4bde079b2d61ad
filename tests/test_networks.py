"""The oracle equals PyTorch on torchvision's classification networks: random weights, random statistics, training off."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from models import FAST, network, own_size, run64

from abridged.graph.capture import capture
from abridged.graph.interpret import interpret

LIST = Path(__file__).resolve().parents[2] / "shared" / "networks.txt"
EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


def _all_names() -> list[str]:
    lines = LIST.read_text().splitlines() if LIST.exists() else []
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _largest(x: torch.Tensor) -> float:
    return float(x.abs().max())


def _equals_torch(models, name: str, size: int) -> None:
    """Interpret against PyTorch, in float32 within 8 times PyTorch's own error, and in float64 within the same bound scaled."""
    model = network(models, name)
    x = torch.randn(2 if size < 200 else 1, 3, size, size, generator=torch.Generator().manual_seed(1))
    start = time.perf_counter()
    graph = capture(model, x)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        own = model(x)
    exact = run64(model, x)
    assert torch.isfinite(exact).all()
    assert _largest(exact) > 0
    floor = EPS32 * _largest(exact)
    bound = 8 * max(_largest(own.double() - exact), floor)
    error = _largest(interpret(graph, x).double() - exact)
    error64 = _largest(interpret(graph, x, dtype=torch.float64) - exact)
    bound64 = bound * EPS64 / EPS32
    print(f"{name}: {error / bound:.3f} of the bound, float64 {error64 / bound64:.3f}, captured in {seconds:.2f} s")
    assert error <= bound
    assert error64 <= bound64
    _provenance_holds(graph, model)


def _provenance_holds(graph, model: torch.nn.Module) -> None:
    """Constants are the module's own tensors, under their keys; nodes name modules and lines."""
    state = model.state_dict(keep_vars=True)
    named = {constant.keys: constant for constant in graph.constants.values() if constant.keys}
    for keys, constant in named.items():
        assert all(constant.tensor.data_ptr() == state[key].data_ptr() for key in keys)
    weights = {key for key, tensor in model.named_parameters()}
    assert weights <= {key for keys in named for key in keys}, "a parameter is missing from the graph"
    paths = {path for path, _ in model.named_modules()}
    assert all(node.path in paths and node.source for node in graph)


@pytest.mark.parametrize("name", FAST)
def test_one_network_of_every_family(torchvision_models, name: str) -> None:
    _equals_torch(torchvision_models, name, FAST[name])


@pytest.mark.slow
@pytest.mark.skipif(not LIST.exists(), reason="needs the list of networks in ../shared")
@pytest.mark.parametrize("name", _all_names())
def test_every_network(torchvision_models, name: str) -> None:
    _equals_torch(torchvision_models, name, own_size(name))


def test_the_list_has_68_networks_of_the_families_above() -> None:
    if not LIST.exists():
        pytest.skip("needs the list of networks in ../shared")
    assert len(_all_names()) == 68
    assert set(FAST) <= set(_all_names())


def test_resnet50_is_captured_in_five_seconds(torchvision_models) -> None:
    model = network(torchvision_models, "resnet50")
    x = torch.zeros(1, 3, 224, 224)
    start = time.process_time()
    graph = capture(model, x)
    seconds = time.process_time() - start
    assert len(graph.nodes) == 175
    assert seconds < 5
