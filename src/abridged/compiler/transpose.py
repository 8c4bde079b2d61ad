"""Pass Graph → Graph: a transposed convolution as one convolution for each phase of the result."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from torch import Tensor

from abridged.compiler.fold import Editor
from abridged.errors import UnsupportedError
from abridged.graph.graph import Attr, Graph, Node

Ints = tuple[int, ...]


def lower_transposed(graph: Graph) -> Graph:
    """y[s·q + r] = Σ w[j·s + r] · x[q − j]: stride s gives s convolutions of stride 1, one for each r, and each has every s-th weight.

    Their maps are then interleaved (Shi et al. 2016), and cropped to the padding. All have a kernel of one size: a phase with
    fewer taps has zeros for the others, which the lowering leaves out."""
    edit = Editor(graph)
    for node in graph:
        if node.op == "conv_transpose":
            _lower(edit, node)
        else:
            edit.nodes.append(node)
    return edit.done()


def _lower(edit: Editor, node: Node) -> None:
    x, weight, bias = node.inputs
    for name in (weight, bias):
        if name is not None and name not in edit.constants:
            raise UnsupportedError(
                f"module '{node.path}': target 'native' has no {node.op} whose weights are computed yet"
            )
    w, y = edit.tensor(weight), node.outputs[0]
    assert w is not None
    assert x is not None
    stride, padding, extra, dilation = (node.integers(a) for a in ("stride", "padding", "output_padding", "dilation"))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, w.shape[2:], strict=True)]
    skipped = [min(p // s, -(-e // s) - 1) for p, s, e in zip(padding, stride, reach, strict=True)]
    starts = [p - f * s for p, f, s in zip(padding, skipped, stride, strict=True)]
    kernel = [max(-(-e // s), -(-(e + o - r) // s)) for e, o, r, s in zip(reach, extra, starts, stride, strict=True)]
    groups = node.integer("groups")
    attrs: dict[str, Attr] = {
        "stride": (1,) * len(stride),
        "padding": tuple(k - 1 - f for k, f in zip(kernel, skipped, strict=True)),
        "dilation": (1,) * len(stride),
        "groups": groups,
    }
    parts = []
    for r, phase in enumerate(_phases(w, groups, stride, dilation, kernel)):
        inputs = (x, edit.constant(f"{y}_phase{r}", phase), bias)
        parts.append(edit.add(replace(node, op="conv", inputs=inputs, outputs=(f"{y}_part{r}",), attrs=attrs)))
    _interleave(edit, node, parts, stride, starts)


def _phases(weight: Tensor, groups: int, stride: Ints, dilation: Ints, kernel: list[int]) -> Tensor:
    """(I, O / G, *k) as (strides, O, I / G, *kernel), flipped: phase r has the taps r, r + stride, …"""
    inputs, outputs, *taps = weight.shape
    rank = len(taps)
    full = weight.new_zeros(inputs, outputs, *(k * s for k, s in zip(kernel, stride, strict=True)))
    full[(slice(None), slice(None), *(slice(0, d * (k - 1) + 1, d) for d, k in zip(dilation, taps, strict=True)))] = (
        weight
    )
    split = full.reshape(
        groups, inputs // groups, outputs, *(n for pair in zip(kernel, stride, strict=True) for n in pair)
    )
    js, rs = range(3, 3 + 2 * rank, 2), range(4, 4 + 2 * rank, 2)
    phases = split.permute(*rs, 0, 2, 1, *js).flip(tuple(range(3 + rank, 3 + 2 * rank)))
    return phases.reshape(prod(stride), groups * outputs, inputs // groups, *kernel).contiguous()


def _interleave(edit: Editor, node: Node, parts: list[str], stride: Ints, starts: list[int]) -> None:
    y, wanted = node.outputs[0], edit.values[node.outputs[0]].shape

    def add(op: str, *inputs: str, **attrs: Attr) -> str:
        return edit.add(replace(node, op=op, inputs=inputs, outputs=(f"{y}_{op}{len(edit.nodes)}",), attrs=attrs))

    name = parts[0]
    batch, channels, *sizes = edit.values[name].shape
    if len(parts) > 1:
        rank = len(stride)
        name = add("cat", *parts, axis=1)
        name = add("reshape", name, shape=(batch, *stride, channels, *sizes))
        axes = (n for i in range(rank) for n in (2 + rank + i, 1 + i))
        name = add("permute", name, axes=(0, 1 + rank, *axes))
        sizes = [n * s for n, s in zip(sizes, stride, strict=True)]
        name = add("reshape", name, shape=(batch, channels, *sizes))
    for i, (start, size) in enumerate(zip(starts, wanted[2:], strict=True)):
        if sizes[i] != size:
            name = add("slice", name, axis=i + 2, start=start, stop=start + size, step=1)
    edit.rename(name, y)
