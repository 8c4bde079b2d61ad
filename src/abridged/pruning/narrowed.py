"""The oracle of inexact shrinking: the whole Graph, where norms and means look only at the channels that stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from abridged.graph.graph import Node
from abridged.graph.ops import apply
from abridged.pruning.coupling.groups import Coupling
from abridged.pruning.coupling.labels import covered
from abridged.pruning.surgery import Gone, staying

NARROWED = frozenset({"layer_norm", "rms_norm", "group_norm", "mean", "var"})


@torch.no_grad()
def narrowed(coupling: Coupling, inputs: Sequence[Tensor], gone: Gone) -> list[Tensor]:
    """The flat outputs in float64 from the flat inputs, when the units that go are no part of any norm or mean."""
    graph = coupling.graph
    values = {name: _double(c.tensor.detach().cpu()) for name, c in graph.constants.items()}
    values |= {name: _double(x) for name, x in zip(graph.inputs, inputs, strict=True)}
    last = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    for position, node in enumerate(graph.nodes):
        given = [values[name] if name else None for name in node.inputs]
        axis, stays = _narrow(coupling, node, gone)
        results = apply(node, tuple(given), torch.float64) if stays is None else _among(node, given, axis, stays)
        values.update(zip(node.outputs, results, strict=True))
        for name in {*node.inputs} - {None, *graph.outputs}:
            if last[name] == position:
                del values[str(name)]
    return [values[name] for name in graph.outputs]


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _narrow(coupling: Coupling, node: Node, gone: Gone) -> tuple[int, Tensor | None]:
    """The axis along which a norm or a mean reads channels that go, and where the others are."""
    for units in coupling.fields.get(str(node.inputs[0]), []) if node.op in NARROWED else []:
        stays = staying(units, gone)
        axes = covered(units)
        if len(axes) == 1 and not stays.all() and _reads(node, axes[0], units.ndim):
            return axes[0], torch.from_numpy(np.flatnonzero(stays))
    return 0, None


def _reads(node: Node, axis: int, rank: int) -> bool:
    if node.op in ("mean", "var"):
        return axis in node.attrs["axes"]  # type: ignore[operator]
    return axis == (1 if node.op == "group_norm" else rank - 1)


def _among(node: Node, given: Sequence[Tensor | None], axis: int, stays: Tensor) -> tuple[Tensor, ...]:
    """Run a node on the channels that stay; the others come out as zeros."""
    x, *parameters = given
    if x is None:
        raise AssertionError("a norm has an input")
    attrs = dict(node.attrs)
    if "normalized_shape" in attrs:
        attrs["normalized_shape"] = (len(stays),)
    if node.op == "group_norm":
        size = x.shape[axis] // int(attrs["groups"])  # type: ignore[arg-type]
        attrs["groups"] = len(np.unique(stays.numpy() // size))
    parts = (x.index_select(axis, stays), *(None if p is None else p.index_select(0, stays) for p in parameters))
    (result,) = apply(Node(node.op, node.inputs, node.outputs, attrs), parts, torch.float64)
    if node.op in ("mean", "var"):
        return (result,)
    return (torch.zeros_like(x).index_copy(axis, stays, result),)
