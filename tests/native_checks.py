"""How a network of target `native` is held against the oracle."""

from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from abridged import targets
from abridged.compiler import threads as pool
from abridged.compiler.build import build_library, find_compiler
from abridged.compiler.library import Library, _pointer
from abridged.compiler.pipeline import compile_graph
from abridged.compiler.plan import Machine
from abridged.graph.capture import capture
from abridged.graph.graph import Graph
from abridged.graph.interpret import interpret
from abridged.targets.artifact import Artifact


def poison(artifact: Artifact) -> Artifact:
    """Fill the arena with NaN: a number that is read before it is written shows."""
    library = artifact._engine._library  # type: ignore[union-attr]
    library._arena[:] = 0xFF
    library._library.model_prepare(_pointer(library._arena))
    return artifact


def agrees(module: nn.Module, *inputs: Tensor, threads: int = 2) -> None:
    """The artifact's error against float64 is at most 8 times PyTorch's own, or rounding of the largest output."""
    graph = capture(module.eval(), inputs)
    exact = interpret(graph, *inputs, dtype=torch.float64)
    with torch.no_grad():
        own = (module(*inputs) - exact).abs().max().item()
    bound = max(8 * own, 4e-6 * exact.abs().max().item())
    with targets.build(graph, "native", threads=threads, tune=False) as artifact:
        assert (poison(artifact)(*inputs) - exact).abs().max().item() <= bound


def without_passes(graph: Graph, without: Collection[str], inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    """The flat outputs, on two threads, of the network compiled without some passes."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        for name, content in compile_graph(graph, without, Machine(threads=2)).files.items():
            (folder / name).write_bytes(content)
        (folder / "threads.c").write_bytes(pool.source())
        parts, out = {"model.c": 1, "threads.c": 1}, folder / "model.so"
        build_library(parts, folder, out, compiler=find_compiler(), flags=[])
        library = Library(folder, 2)
        outputs = [np.empty(graph.values[name].shape, np.float32) for name in graph.outputs]
        library.run([x.numpy() for x in inputs], outputs)
        library.close()
    return outputs
