"""From a module to an artifact that was run: capture, build for a target, and pass the export gate."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.utils._pytree as pytree

from abridged.errors import InputError
from abridged.graph.capture import capture
from abridged.measurement import gate
from abridged.measurement.accuracy import batch_of
from abridged.measurement.practice import positional
from abridged.measurement.records import Deviation
from abridged.targets import build, load
from abridged.targets.artifact import Artifact

if TYPE_CHECKING:
    from abridged.data import Data

__all__ = ["deliver", "deploy", "load"]

Example = torch.Tensor | np.ndarray[Any, Any] | tuple[Any, ...]


def deploy(
    model: Any,
    example: Example | None = None,
    target: str = "onnxruntime",
    out: str | Path | None = None,
    *,
    threads: int | None = None,
    force: bool = False,
    **options: Any,
) -> Artifact:
    """Build the artifact of a model for one target, run it there, and compare it with PyTorch.

    `model`: an `nn.Module`, or an exported program (then `example` is its own). `example`: a tensor or an array, or a tuple
    of the model's positional inputs; its shapes, batch included, become the artifact's. `out`: a new or empty directory;
    without it, a temporary one that goes with the artifact. `threads`: of the runtime, all cores by default (target c has
    one, whatever is asked for); other options are the target's own.

    Raises `InputError` for input that cannot be used, `UnsupportedError` for an op that the target lacks, and
    `GateError` naming the layer where a deviation above the bound begins; then `out` is as it was.

    >>> import torch, abridged as ab
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    >>> with ab.deploy(net, torch.zeros(1, 4)) as artifact:
    ...     artifact(torch.ones(1, 4)).shape
    torch.Size([1, 3])
    """
    return deliver(model, example, target, out, threads=threads, force=force, **options)[0]


def deliver(
    model: Any,
    example: Example | None,
    target: str,
    out: str | Path | None,
    *,
    data: Data | None = None,
    threads: int | None = None,
    force: bool = False,
    **options: Any,
) -> tuple[Artifact, Deviation]:
    """`deploy`, and by how much the artifact deviates from PyTorch on the example and on some of the data's inputs."""
    inputs: Any = pytree.tree_map_only(np.ndarray, _tensor, example)
    graph = capture(model, inputs)
    found: list[Deviation] = []

    def check(artifact: Artifact) -> None:
        found.append(gate.require(artifact, model, graph, reference_inputs(artifact, inputs, data)))

    artifact = build(graph, target, out, force=force, threads=threads, check=check, **options)
    return artifact, found[0]


def _tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    try:
        return torch.tensor(array.copy())  # whatever its strides are
    except (TypeError, ValueError):
        raise InputError(f"the example holds an array of {array.dtype.str}, which torch does not have") from None


def reference_inputs(artifact: Artifact, example: Any, data: Data | None, batches: int = 3) -> list[tuple[Any, ...]]:
    """What the export gate runs: the example, and the first batches of val of the artifact's own batch size."""
    inputs = [positional(artifact.random_inputs() if example is None else example)]
    if data is not None:
        inputs += [positional(batch.x) for batch in islice(data.batches("val", batch_of(artifact)), batches)]
    shapes = [port.shape for port in artifact.signature.inputs]
    return [
        given
        for given in inputs
        if [tuple(leaf.shape) for leaf in given if hasattr(leaf, "shape")] == shapes or given is inputs[0]
    ]
