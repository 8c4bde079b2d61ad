"""How a network of target `native` is held against the oracle."""

import torch
from torch import Tensor, nn

from abridged import targets
from abridged.compiler.library import _pointer
from abridged.graph.capture import capture
from abridged.graph.interpret import interpret
from abridged.targets.artifact import Artifact


def poison(artifact: Artifact) -> Artifact:
    """Fill the arena with NaN: a number that is read before it is written shows."""
    library = artifact._engine._library  # type: ignore[union-attr]
    library._arena[:] = 0xFF
    library._library.model_prepare(_pointer(library._arena))
    return artifact


def agrees(module: nn.Module, *inputs: Tensor) -> None:
    """The artifact's error against float64 is at most 8 times PyTorch's own, or rounding of the largest output."""
    graph = capture(module.eval(), inputs)
    exact = interpret(graph, *inputs, dtype=torch.float64)
    with torch.no_grad():
        own = (module(*inputs) - exact).abs().max().item()
    bound = max(8 * own, 4e-6 * exact.abs().max().item())
    with targets.build(graph, "native", threads=2, tune=False) as artifact:
        assert (poison(artifact)(*inputs) - exact).abs().max().item() <= bound
