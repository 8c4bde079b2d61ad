"""From a module to an artifact that was run: capture, build for a target, and pass the export gate."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abridged.files import directory_atomic
from abridged.graph.capture import capture
from abridged.measurement import gate
from abridged.measurement.records import Deviation
from abridged.targets import build, load
from abridged.targets.artifact import Artifact

if TYPE_CHECKING:
    import torch

    from abridged.data import Data

__all__ = ["deliver", "deploy", "load"]


def deploy(
    model: Any,
    example: torch.Tensor | tuple[Any, ...] | None = None,
    target: str = "onnxruntime",
    out: str | Path | None = None,
    *,
    threads: int | None = None,
    force: bool = False,
    **options: Any,
) -> Artifact:
    """Build the artifact of a model for one target, run it there, and compare it with PyTorch.

    `model`: an `nn.Module`, or an exported program (then `example` is its own). `example`: a tensor or a tuple of the
    model's positional inputs; its shapes, batch included, become the artifact's. `out`: a new or empty directory; without
    it, a temporary one that goes with the artifact. `threads`: of the runtime, all cores by default; other options are the
    target's own.

    Raises `InputError` for input that cannot be used, `UnsupportedError` for an op that the target lacks, and
    `GateError` naming the layer where a deviation above the bound begins; then `out` is as it was.

    >>> import torch, abridged as ab
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    >>> with ab.deploy(net, torch.zeros(1, 4)) as artifact:
    ...     artifact(torch.ones(1, 4)).shape
    torch.Size([1, 3])
    """
    return deliver(model, example, target, out, threads=threads, force=force, **options)[0]
