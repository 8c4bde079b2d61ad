"""Random networks: capture, compile, run equals PyTorch, whatever passes are left out and however many threads run it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import run64
from native_checks import poison
from random_networks import RandomNetwork, networks
from torch import Tensor

from abridged import targets
from abridged.compiler import build, threads
from abridged.compiler.library import Library
from abridged.compiler.pipeline import PASSES, compile_graph
from abridged.graph.capture import capture
from abridged.graph.graph import Graph
from abridged.graph.structure import flatten

OPTIONAL = [*PASSES, "fuse", "reuse"]
FAST = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module", autouse=True)
def _fast_builds() -> Any:
    """What is asked is whether the C is right, not whether it is fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "FLAGS", ("-O1", *build.FLAGS[1:]))
        yield


def without_passes(graph: Graph, without: set[str], inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    """The flat outputs of the network compiled without some passes."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        for name, content in compile_graph(graph, without=without).files.items():
            (folder / name).write_bytes(content)
        (folder / "threads.c").write_bytes(threads.source())
        parts, compiler = {"model.c": 1, "threads.c": 1}, build.find_compiler()
        build.build_library(parts, folder, folder / "model.so", compiler=compiler, flags=[])
        library = Library(folder, 2)
        outputs = [np.empty(graph.values[name].shape, np.float32) for name in graph.outputs]
        library.run([x.numpy() for x in inputs], outputs)
        library.close()
    return outputs


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
