"""Which channels are known whatever the input: NaN stands for what is not, and a zero weight forgets it.

Every node is run on what is known of its inputs. Most ops carry NaN along by themselves; the entries of `KNOWN` say what
more can be known: 0 · NaN is 0, a layer whose weights are zero answers with its bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import nan

import torch
from torch import Tensor

from abridged.graph.graph import Graph, Node
from abridged.graph.ops import apply
from abridged.tables import Table

Maybe = Tensor | None  # None: an integer or boolean tensor of which nothing is known
Knowing = Callable[..., Tensor]

# (node, what is known of each input) → what is known of the output.
KNOWN: Table[Knowing] = Table("rule of what is known")

_PROBE = 16

# Ops whose rule takes weights in any dtype.
_MATRICES = frozenset({"linear", "conv", "conv_transpose"})

# Ops that answer NaN with a number, or could.
_FORGETFUL = frozenset(
    {
        *("sign", "relu", "clamp", "hardsigmoid", "hardswish", "maximum", "minimum", "pow"),
        *("max_pool", "adaptive_max_pool", "amax", "amin"),
    }
)


@torch.no_grad()
def known(graph: Graph, watch: Mapping[str, object]) -> dict[str, Tensor]:
    """What is known of the values named: numbers, NaN where the input decides. Constants as they are, the rest in float64."""
    values: dict[str, Maybe] = {}
    for name in graph.inputs:
        value = graph.values[name]
        values[name] = torch.full(value.shape, nan, dtype=torch.float64) if value.dtype.is_floating_point else None
    for name, constant in graph.constants.items():
        values[name] = constant.tensor.detach().cpu()
    last = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    found = {name: value for name, value in values.items() if name in watch and value is not None}
    for position, node in enumerate(graph.nodes):
        results = _node(graph, node, [values[name] if name else None for name in node.inputs])
        values.update(zip(node.outputs, results, strict=True))
        found |= {n: value for n, value in zip(node.outputs, results, strict=True) if n in watch and value is not None}
        for done in {*node.inputs, *node.outputs}:
            if last.get(done, position) == position:
                values.pop(str(done), None)
    return found


def _node(graph: Graph, node: Node, inputs: Sequence[Maybe]) -> Sequence[Maybe]:
    missing = any(name is not None and value is None for name, value in zip(node.inputs, inputs, strict=True))
    vague = any(value is not None and value.is_floating_point() and bool(value.sum().isnan()) for value in inputs)
    if node.op not in _MATRICES or not (missing or vague):  # a copy of a large weight is saved where it is read in part
        inputs = [value.double() if value is not None and value.is_floating_point() else value for value in inputs]
    if not missing and not vague:
        return apply(node, tuple(inputs), torch.float64)
    if node.op in KNOWN and (node.op in ("take", "where") or not missing):
        return (KNOWN[node.op](node, *inputs),)
    shapes = [(graph.values[name].shape, graph.values[name].dtype.is_floating_point) for name in node.outputs]
    if missing or (node.op in _FORGETFUL and len(inputs) > 1) or not all(floating for _, floating in shapes):
        return [torch.full(shape, nan, dtype=torch.float64) if floating else None for shape, floating in shapes]
    results = apply(node, tuple(inputs), torch.float64)
    if node.op in _FORGETFUL and inputs[0] is not None and results[0].shape == inputs[0].shape:
        return (results[0].masked_fill(inputs[0].isnan(), nan),)
    if node.op in _FORGETFUL:
        return (_channels(node, inputs[0], results[0]),)
    return results


def _channels(node: Node, x: Maybe, result: Tensor) -> Tensor:
    """A window over partly known positions is not known: by channel, to be safe."""
    if x is None or node.op in ("amax", "amin"):
        return torch.full_like(result, nan)
    return result.masked_fill(_vague(x, 1).reshape(1, -1, *[1] * (result.ndim - 2)), nan)


def _vague(x: Tensor, axis: int) -> Tensor:
    """(n,): where anything along the axis is not known."""
    return x.isnan().any(0) if x.ndim == 1 else x.isnan().movedim(axis, 0).flatten(1).any(1)


def _without(weight: Tensor, vague: Tensor) -> Tensor:
    """(O,): the rows of a matrix (O, I) that are zero in these columns. Most are not, and show it in the first few."""
    columns = vague.nonzero()[:, 0]
    rows = ~weight[:, columns[:_PROBE]].any(1)
    rows[rows.clone()] = ~weight[rows][:, columns].any(1)
    return rows


@KNOWN.entry("mul")
def mul(node: Node, x: Tensor, y: Tensor) -> Tensor:
    """0 · anything is 0."""
    return (x * y).masked_fill((x == 0) | (y == 0), 0)


@KNOWN.entry("where")
def where(node: Node, condition: Maybe, x: Maybe, y: Maybe) -> Tensor:
    """Known where the side that is taken is, or where both sides agree."""
    if x is None or y is None:
        return torch.full((), nan, dtype=torch.float64)
    if condition is not None:
        return torch.where(condition, x, y)
    return torch.where(x == y, x, nan)


@KNOWN.entry("take")
def take(node: Node, x: Maybe, index: Maybe) -> Maybe:
    """By an unknown index: known where all entries agree."""
    axis = int(node.attrs["axis"])  # type: ignore[arg-type]
    if x is None or not x.is_floating_point():
        return None
    if index is not None:
        return apply(node, (x, index))[0]
    first = x.narrow(axis, 0, 1)
    return torch.where((x == first).all(axis, keepdim=True), first, nan).squeeze(axis)


@KNOWN.entry("batch_norm", "layer_norm", "group_norm", "rms_norm")
def norm(node: Node, x: Tensor, weight: Maybe = None, bias: Maybe = None, *statistics: Maybe) -> Tensor:
    """Where the scale is zero, the shift."""
    inputs = (x, weight) if node.op == "rms_norm" else (x, weight, bias, *statistics)
    result = apply(node, inputs, torch.float64)[0]
    if weight is None:
        return result
    shape = [1, -1, *[1] * (x.ndim - 2)] if node.op in ("batch_norm", "group_norm") else list(weight.shape)
    shift = torch.zeros_like(weight) if bias is None else bias
    return torch.where(weight.reshape(shape) == 0, shift.reshape(shape), result)


@KNOWN.entry("linear")
def linear(node: Node, x: Tensor, weight: Tensor, bias: Maybe) -> Tensor:
    """A row is known when all its weights that are not zero meet what is."""
    vague = _vague(x, x.ndim - 1)
    out = torch.full((*x.shape[:-1], len(weight)), nan, dtype=x.dtype)
    rows = _without(weight, vague)
    clean = torch.where(vague, torch.zeros((), dtype=x.dtype), x)
    parameters = weight[rows].double(), None if bias is None else bias[rows].double()
    out[..., rows] = apply(node, (clean, *parameters))[0]
    return out


@KNOWN.entry("conv")
def conv(node: Node, x: Tensor, weight: Tensor, bias: Maybe) -> Tensor:
    """A filter is known when all its channels that are not zero are."""
    groups = int(node.attrs["groups"])  # type: ignore[arg-type]
    vague = _vague(x, 1).reshape(groups, 1, -1)  # (G, 1, I)
    used = weight.flatten(2).any(2).reshape(groups, -1, weight.shape[1])  # (G, O, I)
    rows = (~(used & vague).any(2)).flatten()
    shape = apply(node, (x.to("meta"), weight.to("meta"), None))[0].shape
    out = torch.full(shape, nan, dtype=x.dtype)
    clean = x.masked_fill(vague.reshape(1, -1, *[1] * (x.ndim - 2)), 0)
    silent = rows & ~used.any(2).flatten()
    shift = torch.zeros(len(weight), dtype=x.dtype) if bias is None else bias.double()
    if bool((rows & ~silent).any()):
        full = apply(node, (clean, weight.double(), None if bias is None else bias.double()))[0]
        out[:, rows] = full[:, rows]
    out[:, silent] = shift[silent].reshape(1, -1, *[1] * (x.ndim - 2))
    return out


@KNOWN.entry("conv_transpose")
def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Maybe) -> Tensor:
    """A filter whose weights are zero answers with its bias."""
    shape = apply(node, (x.to("meta"), weight.to("meta"), None))[0].shape
    out = torch.full(shape, nan, dtype=x.dtype)
    if node.attrs["groups"] == 1:
        silent = ~weight.movedim(1, 0).flatten(1).any(1)
        shift = torch.zeros(weight.shape[1], dtype=x.dtype) if bias is None else bias.double()
        out[:, silent] = shift[silent].reshape(1, -1, *[1] * (x.ndim - 2))
    return out


@KNOWN.entry("matmul")
def matmul(node: Node, x: Tensor, y: Tensor) -> Tensor:
    """An element is known when each of its products is."""
    tx, ty = x.isnan().double(), y.isnan().double()
    vague = tx @ (y != 0).double() + (x != 0).double() @ ty
    return (x.nan_to_num(0) @ y.nan_to_num(0)).masked_fill(vague > 0, nan)


@KNOWN.entry("attention")
def attention(node: Node, q: Tensor, k: Tensor, v: Tensor, mask: Maybe) -> Tensor:
    """Values that are zero stay zero, whatever the weights."""
    zero = (v == 0).all(-2, keepdim=True)
    shape = apply(node, tuple(None if t is None else t.to("meta") for t in (q, k, v, mask)))[0].shape
    return torch.where(zero, 0.0, nan).to(q.dtype).broadcast_to(shape)
