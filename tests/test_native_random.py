"""Random networks: capture, compile, run equals PyTorch, whatever passes are left out and however many threads run it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import run64
from native_checks import poison, without_passes
from random_networks import RandomNetwork, networks
from torch import Tensor

from abridged import targets
from abridged.compiler import bands, samples
from abridged.compiler.pipeline import PASSES
from abridged.graph.capture import capture
from abridged.graph.structure import flatten

OPTIONAL = [*PASSES, "samples", "fuse", "bands", "reuse"]
pytestmark = pytest.mark.usefixtures("fast_builds")  # is the C right, not: is it fast
FAST = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(autouse=True, scope="module")
def _bands_wherever_they_can_be_and_parts_of_some_batches() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "worth_it", lambda *_: True)
        patch.setattr(samples, "TOGETHER", 4096)
        yield


def holds(drawn: tuple[RandomNetwork, tuple[Tensor, ...]], without: set[str]) -> None:
    module, inputs = drawn
    graph = capture(module, inputs)
    exact = flatten(run64(module, *inputs))[0]
    with torch.no_grad():
        own = flatten(module(*inputs))[0]
    others = [own, *(moved(module, inputs, seed) for seed in range(3))]
    largest = max(float(y.abs().max()) for y in exact)
    bounds = [
        max(4e-6 * largest, *(8 * float((other[at] - y).abs().max()) for other in others)) for at, y in enumerate(exact)
    ]
    with TemporaryDirectory() as folder:
        targets.build(graph, "native", Path(folder) / "net", tune=False, threads=3).close()
        answers = []
        for count in (1, 2):
            with targets.load(Path(folder) / "net", threads=count) as artifact:
                found = poison(artifact)(*inputs)
                assert list(found) == ["last", "others"]
                answers.append(flatten(found)[0])
    for one, two, other, y, bound in zip(*answers, without_passes(graph, without, inputs), exact, bounds, strict=True):
        assert torch.equal(one, two)
        assert float((one - y).abs().max()) <= bound
        assert float((torch.from_numpy(other) - y).abs().max()) <= bound


def moved(module: RandomNetwork, inputs: tuple[Tensor, ...], seed: int) -> list[Tensor]:
    """The answer in float64 to weights and inputs that are off by up to a rounding of float32: PyTorch's own error can be
    small by luck where a network is ill-conditioned, such as a layer norm of nearly equal numbers."""
    generator = torch.Generator().manual_seed(seed)

    def off(x: Tensor) -> Tensor:
        x = x.double()
        return x * (1 + 2.0**-24 * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1))

    module = copy.deepcopy(module).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(off(parameter))
    return flatten(run64(module, *map(off, inputs)))[0]


@settings(max_examples=20, derandomize=True, **FAST)
@given(networks(), st.sets(st.sampled_from(OPTIONAL)))
def test_random_networks(drawn: tuple[RandomNetwork, tuple[Tensor, ...]], without: set[str]) -> None:
    holds(drawn, without)


@pytest.mark.slow
@settings(max_examples=300, **FAST)
@given(networks(most=20), st.sets(st.sampled_from(OPTIONAL)))
def test_many_random_networks(drawn: tuple[RandomNetwork, tuple[Tensor, ...]], without: set[str]) -> None:
    holds(drawn, without)
