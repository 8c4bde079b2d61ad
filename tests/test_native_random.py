"""Random networks: capture, compile, run equals PyTorch, whatever passes are left out and however many threads run it."""

from __future__ import annotations

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
from abridged.compiler.pipeline import PASSES
from abridged.graph.capture import capture
from abridged.graph.structure import flatten

OPTIONAL = [*PASSES, "fuse", "reuse"]
pytestmark = pytest.mark.usefixtures("fast_builds")  # is the C right, not: is it fast
FAST = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def holds(drawn: tuple[RandomNetwork, tuple[Tensor, ...]], without: set[str]) -> None:
    module, inputs = drawn
    graph = capture(module, inputs)
    exact = flatten(run64(module, *inputs))[0]
    with torch.no_grad():
        own = flatten(module(*inputs))[0]
    largest = max(float(y.abs().max()) for y in exact)
    bounds = [max(8 * float((y - z).abs().max()), 4e-6 * largest) for y, z in zip(own, exact, strict=True)]
    with TemporaryDirectory() as folder:
        targets.build(graph, "native", Path(folder) / "net", tune=False, threads=1).close()
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


@settings(max_examples=20, derandomize=True, **FAST)
@given(networks(), st.sets(st.sampled_from(OPTIONAL)))
def test_random_networks(drawn: tuple[RandomNetwork, tuple[Tensor, ...]], without: set[str]) -> None:
    holds(drawn, without)


@pytest.mark.slow
@settings(max_examples=300, **FAST)
@given(networks(most=20), st.sets(st.sampled_from(OPTIONAL)))
def test_many_random_networks(drawn: tuple[RandomNetwork, tuple[Tensor, ...]], without: set[str]) -> None:
    holds(drawn, without)
