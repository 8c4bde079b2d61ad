"""Pass Graph → Graph: a transposed convolution as a convolution whose outputs are the phases of the result."""

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

    They are outputs of one convolution, whose maps are then interleaved (Shi et al. 2016), and cropped to the padding."""
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
    w, b, y = edit.tensor(weight), edit.tensor(bias), node.outputs[0]
    assert w is not None
    assert x is not None
    stride, padding, extra, dilation = (node.integers(a) for a in ("stride", "padding", "output_padding", "dilation"))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, w.shape[2:], strict=True)]
    skipped = [min(p // s, -(-e // s) - 1) for p, s, e in zip(padding, stride, reach, strict=True)]
    starts = [p - f * s for p, f, s in zip(padding, skipped, stride, strict=True)]
    kernel = [max(-(-e // s), -(-(e + o - r) // s)) for e, o, r, s in zip(reach, extra, starts, stride, strict=True)]
    groups = node.integer("groups")
    names = [edit.constant(f"{y}_phases", _phases(w, groups, stride, dilation, kernel))]
    if b is not None:
        names.append(edit.constant(f"{y}_biases", b.repeat_interleave(prod(stride))))
    attrs: dict[str, Attr] = {
        "stride": (1,) * len(stride),
        "padding": tuple(k - 1 - f for k, f in zip(kernel, skipped, strict=True)),
        "dilation": (1,) * len(stride),
        "groups": groups,
    }
    _interleave(
        edit, replace(node, op="conv", inputs=(x, *names, *[None] * (2 - len(names))), attrs=attrs), stride, starts
    )


def _phases(weight: Tensor, groups: int, stride: Ints, dilation: Ints, kernel: list[int]) -> Tensor:
    """(I, O / G, *k) as (O · stride, I / G, *kernel), flipped: output o · stride + r has the taps r, r + stride, … of o."""
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
    phases = split.permute(0, 2, *rs, 1, *js).flip(tuple(range(3 + rank, 3 + 2 * rank)))
    return phases.reshape(groups * outputs * prod(stride), inputs // groups, *kernel).contiguous()


def _interleave(edit: Editor, conv: Node, stride: Ints, starts: list[int]) -> None:
    y, wanted = conv.outputs[0], edit.values[conv.outputs[0]].shape

    def add(op: str, x: str, **attrs: Attr) -> str:
        return edit.add(replace(conv, op=op, inputs=(x,), outputs=(f"{y}_{op}{len(edit.nodes)}",), attrs=attrs))

    name = edit.add(replace(conv, outputs=(f"{y}_conv",)))
    batch, channels, *sizes = edit.values[name].shape
    if prod(stride) > 1:
        rank = len(stride)
        name = add("reshape", name, shape=(batch, channels // prod(stride), *stride, *sizes))
        axes = (n for i in range(rank) for n in (2 + rank + i, 2 + i))
        name = add("permute", name, axes=(0, 1, *axes))
        sizes = [n * s for n, s in zip(sizes, stride, strict=True)]
        name = add("reshape", name, shape=(batch, channels // prod(stride), *sizes))
    for i, (start, size) in enumerate(zip(starts, wanted[2:], strict=True)):
        if sizes[i] != size:
            name = add("slice", name, axis=i + 2, start=start, stop=start + size, step=1)
    edit.rename(name, y)
