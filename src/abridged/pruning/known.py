"""Which channels are known whatever the input: NaN stands for what is not, and a zero weight forgets it.

Every node is run on what is known of its inputs. Most ops carry NaN along by themselves; the entries of `KNOWN` say what
more can be known: 0 · NaN is 0, a layer whose weights are zero answers with its bias.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from math import nan

import torch
from torch import Tensor

from abridged.graph.graph import Graph, Node
from abridged.graph.ops import apply
from abridged.tables import Table

Maybe = Tensor | None  # None: an integer or boolean tensor of which nothing is known
Knowing = Callable[..., Tensor]

# (node, shape of the output, what is known of each input) → what is known of the output.
KNOWN: Table[Knowing] = Table("rule of what is known")

Shape = tuple[int, ...]

_PROBE = 16

# Ops whose rule bears inputs that are missing.
_CHOOSING = frozenset({"take", "where"})

# Ops whose rule takes weights in any dtype.
_MATRICES = frozenset({"linear", "conv", "conv_transpose"})

# Ops that answer NaN with a number, or could: element by element, and in windows.
_FORGETFUL = frozenset({"sign", "relu", "clamp", "hardsigmoid", "hardswish", "maximum", "minimum", "pow"})
_WINDOWS = frozenset({"max_pool", "adaptive_max_pool"})


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
    shapes = [(graph.values[name].shape, graph.values[name].dtype.is_floating_point) for name in node.outputs]
    if node.op in KNOWN and (node.op in _CHOOSING or not missing):
        return (KNOWN[node.op](node, shapes[0][0], *inputs),)
    if missing or not all(floating for _, floating in shapes):
        return [torch.full(shape, nan, dtype=torch.float64) if floating else None for shape, floating in shapes]
    results = apply(node, tuple(inputs), torch.float64)
    if node.op in _FORGETFUL:
        doubts = [value.isnan() for value in inputs if value is not None]
        return (results[0].masked_fill(functools.reduce(torch.logical_or, doubts), nan),)
    if node.op in _WINDOWS and inputs[0] is not None:  # by channel, to be safe
        return (results[0].masked_fill(_vague(inputs[0], 1).reshape(1, -1, *[1] * (results[0].ndim - 2)), nan),)
    return results


def _vague(x: Tensor, axis: int) -> Tensor:
    """(n,): where anything along the axis is not known."""
    return x.isnan().movedim(axis, 0)[..., None].flatten(1).any(1)


def _without(weight: Tensor, vague: Tensor) -> Tensor:
    """(O,): the rows of a matrix (O, I) that are zero in these columns. Most are not, and show it in the first few."""
    columns = vague.nonzero()[:, 0]
    rows = ~weight[:, columns[:_PROBE]].any(1)
    rows[rows.clone()] = ~weight[rows][:, columns].any(1)
    return rows


@KNOWN.entry("mul")
def mul(node: Node, shape: Shape, x: Tensor, y: Tensor) -> Tensor:
    """0 · anything is 0."""
    return (x * y).masked_fill((x == 0) | (y == 0), 0)


@KNOWN.entry("where")
def where(node: Node, shape: Shape, condition: Maybe, x: Maybe, y: Maybe) -> Maybe:
    """Known where the side that is taken is, or where both sides agree."""
    if x is None or y is None:
        return None
    if condition is not None:
        return torch.where(condition, x, y)
    return torch.where(x == y, x, nan).broadcast_to(shape) if x.is_floating_point() else None


@KNOWN.entry("take")
def take(node: Node, shape: Shape, x: Maybe, index: Maybe) -> Maybe:
    """By an unknown index: known where all entries agree."""
    axis = int(node.attrs["axis"])  # type: ignore[arg-type]
    if x is None or not x.is_floating_point():
        return None
    if index is not None:
        return apply(node, (x, index))[0]
    first = x.narrow(axis, 0, 1)
    alike = torch.where((x == first).all(axis, keepdim=True), first, nan)
    rank = len(shape) - x.ndim + 1  # of the index
    return alike.reshape(*x.shape[:axis], *[1] * rank, *x.shape[axis + 1 :]).broadcast_to(shape)


@KNOWN.entry("amax", "amin")
def extreme(node: Node, shape: Shape, x: Tensor) -> Tensor:
    """Known where all that it runs over is."""
    return apply(node, (x,))[0].masked_fill(torch.amax(x.isnan(), node.attrs["axes"], node.attrs["keepdim"]), nan)  # type: ignore[arg-type]


@KNOWN.entry("batch_norm", "layer_norm", "group_norm", "rms_norm")
def norm(node: Node, shape: Shape, x: Tensor, weight: Maybe = None, bias: Maybe = None, *statistics: Maybe) -> Tensor:
    """Where the scale is zero, the shift."""
    inputs = (x, weight) if node.op == "rms_norm" else (x, weight, bias, *statistics)
    result = apply(node, inputs, torch.float64)[0]
    if weight is None:
        return result
    along = [1, -1, *[1] * (x.ndim - 2)] if node.op in ("batch_norm", "group_norm") else list(weight.shape)
    shift = torch.zeros_like(weight) if bias is None else bias
    return torch.where(weight.reshape(along) == 0, shift.reshape(along), result)


@KNOWN.entry("linear")
def linear(node: Node, shape: Shape, x: Tensor, weight: Tensor, bias: Maybe) -> Tensor:
    """A row is known when all its weights that are not zero meet what is."""
    vague = _vague(x, x.ndim - 1)
    out = torch.full(shape, nan, dtype=x.dtype)
    rows = _without(weight, vague)
    clean = torch.where(vague, torch.zeros((), dtype=x.dtype), x)
    parameters = weight[rows].double(), None if bias is None else bias[rows].double()
    out[..., rows] = apply(node, (clean, *parameters))[0]
    return out


@KNOWN.entry("conv")
def conv(node: Node, shape: Shape, x: Tensor, weight: Tensor, bias: Maybe) -> Tensor:
    """A filter is known when all its channels that are not zero are."""
    used = weight.flatten(2).any(2).reshape(_groups(node), -1, weight.shape[1])
    return _filtered(node, shape, used, x, weight, bias)


@KNOWN.entry("conv_transpose")
def conv_transpose(node: Node, shape: Shape, x: Tensor, weight: Tensor, bias: Maybe) -> Tensor:
    """The same; its weight is (I, O, ...), and O those of one group."""
    used = weight.flatten(2).any(2).reshape(_groups(node), -1, weight.shape[1]).transpose(1, 2)
    return _filtered(node, shape, used, x, weight, bias)


def _groups(node: Node) -> int:
    return int(node.attrs["groups"])  # type: ignore[arg-type]


def _filtered(node: Node, shape: Shape, used: Tensor, x: Tensor, weight: Tensor, bias: Maybe) -> Tensor:
    """What filters answer of which `used` (G, O, I) says where their weights are not zero."""
    vague = _vague(x, 1).reshape(len(used), 1, -1)  # (G, 1, I)
    rows, silent = (~(used & vague).any(2)).flatten(), (~used.any(2)).flatten()
    out = torch.full(shape, nan, dtype=x.dtype)
    shift = torch.zeros(len(rows), dtype=x.dtype) if bias is None else bias.double()
    if bool((rows & ~silent).any()):
        clean = x.masked_fill(vague.reshape(1, -1, *[1] * (x.ndim - 2)), 0)
        full = apply(node, (clean, weight.double(), None if bias is None else bias.double()))[0]
        out[:, rows] = full[:, rows]
    out[:, silent] = shift[silent].reshape(1, -1, *[1] * (x.ndim - 2))
    return out


@KNOWN.entry("matmul")
def matmul(node: Node, shape: Shape, x: Tensor, y: Tensor) -> Tensor:
    """An element is known when each of its products is."""
    tx, ty = x.isnan().double(), y.isnan().double()
    vague = tx @ (y != 0).double() + (x != 0).double() @ ty
    return (x.nan_to_num(0) @ y.nan_to_num(0)).masked_fill(vague > 0, nan)


@KNOWN.entry("attention")
def attention(node: Node, shape: Shape, q: Tensor, k: Tensor, v: Tensor, mask: Maybe) -> Tensor:
    """Values that are zero stay zero, whatever the weights."""
    zero = (v == 0).all(-2, keepdim=True)
    return torch.where(zero, 0.0, nan).to(q.dtype).broadcast_to(shape)
