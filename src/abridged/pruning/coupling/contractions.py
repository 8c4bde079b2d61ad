"""Coupling rules of what multiplies and sums: channels end in the axis that is summed and begin in the weight's other one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abridged.graph.cost import terms
from abridged.graph.graph import Node
from abridged.pruning.coupling.labels import COUPLING, KERNEL, Field, Flow, along, attrs, covered

_FIXED = "multiplied with a tensor of fixed size"


@dataclass(frozen=True, eq=False)
class Factor:
    """One operand of a product of sums: a letter per axis."""

    name: str
    letters: tuple[str, ...]
    fields: Sequence[Field]
    shape: tuple[int, ...]


def contract(flow: Flow, node: Node, factors: Sequence[Factor], out: tuple[str, ...]) -> list[Field]:
    """Fields of Σ over the letters that `out` lacks of the product of the factors."""
    summed = tuple(dict.fromkeys(letter for f in factors for letter in f.letters if letter not in out))
    space = (*out, *summed)
    for factor in factors:
        if factor.name in flow.derived:
            ends = [factor.letters.index(letter) for letter in summed if letter in factor.letters]
            flow.consumed += [field.ravel() for field in factor.fields if set(covered(field)) <= set(ends)]
    merged = flow.merge([_in_space(factor, space) for factor in factors], _FIXED)
    left = []
    for field in merged:
        if len(covered(field)) == 1 and covered(field)[0] >= len(out):
            letter = space[covered(field)[0]]
            flow.use(node, field.ravel(), [(f.name, f.letters.index(letter)) for f in factors if letter in f.letters])
        else:
            rest = flow.hold_all([field], range(len(out), len(space)), "summed over within a head or group")
            if rest and rest[0] is not field:
                flow.heads.append(rest[0].ravel())
            left += rest
    return [field.reshape(field.shape[: len(out)]) for field in left]


def _in_space(factor: Factor, space: tuple[str, ...]) -> tuple[list[Field], tuple[int, ...]]:
    order = sorted(range(len(factor.letters)), key=lambda axis: space.index(factor.letters[axis]))
    sizes = dict(zip(factor.letters, factor.shape, strict=True))

    def placed(field: Field) -> Field:
        lengths = dict(zip(factor.letters, field.shape, strict=True))
        return field.transpose(order).reshape([lengths.get(letter, 1) for letter in space])

    return [placed(field) for field in factor.fields], tuple(sizes.get(letter, 1) for letter in space)


def _factor(flow: Flow, name: str | None, letters: Sequence[str]) -> Factor:
    return Factor(str(name), tuple(letters), flow.of(name), flow.shape(str(name)))


@COUPLING.entry("linear")
def linear(flow: Flow, node: Node) -> list[list[Field]]:
    """Input channels end; one output channel per row of the weight, with its bias."""
    x, weight, bias = node.inputs
    rows = [f"row{i}" for i in range(len(flow.shape(str(x))) - 1)]
    factors = [_factor(flow, x, [*rows, "in"]), _factor(flow, weight, ["out", "in"])]
    fields = contract(flow, node, factors, (*rows, "out"))
    shape = flow.shape(node.outputs[0])
    return [flow.merge([(fields, shape), *([flow.operand(bias)] if bias else [])], _FIXED)]


@COUPLING.entry("matmul")
def matmul(flow: Flow, node: Node) -> list[list[Field]]:
    """What is summed ends, and within heads the whole head goes."""
    x, y = (str(name) for name in node.inputs)
    return [_product(flow, node, _plain(flow, x), _plain(flow, y))]


def _plain(flow: Flow, name: str) -> tuple[str, list[Field], tuple[int, ...]]:
    return name, flow.of(name), flow.shape(name)


def _product(
    flow: Flow, node: Node, x: tuple[str, list[Field], tuple[int, ...]], y: tuple[str, list[Field], tuple[int, ...]]
) -> list[Field]:
    """x (..., M, K) · y (..., K, N)."""
    batch = max(len(x[2]), len(y[2])) - 2
    outer = tuple(f"batch{i}" for i in range(batch))
    left = Factor(x[0], (*outer[batch - len(x[2]) + 2 :], "m", "k"), x[1], x[2])
    right = Factor(y[0], (*outer[batch - len(y[2]) + 2 :], "k", "n"), y[1], y[2])
    return contract(flow, node, [left, right], (*outer, "m", "n"))


@COUPLING.entry("attention")
def attention(flow: Flow, node: Node) -> list[list[Field]]:
    """Whole heads go, with their queries, keys and values; without a head axis nothing does but the values' channels."""
    q, k, v, mask = node.inputs
    name, fields, shape = _plain(flow, str(k))
    keys = (name, [field.swapaxes(-1, -2) for field in fields], (*shape[:-2], shape[-1], shape[-2]))
    inside = []  # the scale was made for this width: only whole heads go
    for line in (_plain(flow, str(q)), keys):
        axis = len(line[2]) - (1 if line is not keys else 2)
        inside.append((line[0], flow.hold_all(line[1], [axis], "its width sets the scale of attention"), line[2]))
    logits = _product(flow, node, inside[0], inside[1])
    size = (*flow.shape(str(q))[:-1], flow.shape(str(k))[-2])
    logits = flow.merge([(logits, size), *([flow.operand(mask)] if mask else [])], _FIXED)
    weights = flow.hold_all(logits, [len(size) - 1], "a softmax runs along it")
    flow.heads += [field.ravel() for field in weights]
    return [_product(flow, node, (node.outputs[0], weights, size), _plain(flow, str(v)))]


@COUPLING.entry("einsum")
def einsum(flow: Flow, node: Node) -> list[list[Field]]:
    """Every letter for itself: kept ones tie the operands, summed ones end; a diagonal freezes."""
    names = [str(name) for name in node.inputs]
    letters, out = terms(str(attrs(node)["equation"]), [len(flow.shape(name)) for name in names])
    if any(len(set(term)) < len(term) for term in letters):
        for name in names:
            for field in flow.of(name):
                flow.freeze(field, "an einsum reads its diagonal")
        return [[]]
    factors = [_factor(flow, name, list(term)) for name, term in zip(names, letters, strict=True)]
    return [contract(flow, node, factors, tuple(out))]


@COUPLING.entry("conv")
def conv(flow: Flow, node: Node) -> list[list[Field]]:
    """Input channels end, output channels begin. Depthwise: the same channels. Grouped: the same ones of each group."""
    x, weight, bias = (str(name) if name else None for name in node.inputs)
    groups = attrs(node)["groups"]
    (inside,) = flow.lines(str(x), [1], "its positions are mixed")
    outputs, inputs = flow.lines(str(weight), [0, 1], KERNEL)
    if groups > 1 and flow.shape(str(weight))[1] == 1:
        _depthwise(flow, inside, outputs, groups)
    else:
        _grouped(flow, node, inside, inputs, groups)
        if outputs is not None and groups > 1 and len(outputs) > groups:
            flow.tie(outputs.reshape(groups, -1), outputs[: len(outputs) // groups])
        elif outputs is not None and groups > 1:
            flow.freeze(outputs, "one channel of each group")
    return [_begin(flow, node, outputs, bias)]


def _depthwise(flow: Flow, inside: Field | None, outputs: Field | None, groups: int) -> None:
    if outputs is not None and inside is not None:
        flow.tie(outputs.reshape(groups, -1), inside[:, None])
    else:
        flow.tie_lines(inside, outputs, _FIXED)


def _grouped(flow: Flow, node: Node, inside: Field | None, inputs: Field | None, groups: int) -> None:
    """Channels of x (C) that end in a weight's input axis (C / groups)."""
    if inputs is not None and str(node.inputs[1]) in flow.derived:
        flow.consumed.append(inputs)
    if inside is not None and inputs is not None:
        flow.tie(inside.reshape(groups, -1), inputs)
        x, weight = (str(name) for name in node.inputs[:2])
        flow.use(node, inside, [(x, 1), *([(weight, 1 if node.op == "conv" else 0)] if groups == 1 else [])])
    else:
        flow.tie_lines(inside, inputs, _FIXED if inside is not None else "an input of the network")


def _begin(flow: Flow, node: Node, outputs: Field | None, bias: str | None) -> list[Field]:
    """The output (N, O, ...) of a layer whose weight has these labels."""
    if bias is not None:
        flow.tie_lines(outputs, flow.lines(bias, [0], _FIXED)[0], _FIXED)
    return [] if outputs is None else [along(outputs, 1, len(flow.shape(node.outputs[0])))]


@COUPLING.entry("conv_transpose")
def conv_transpose(flow: Flow, node: Node) -> list[list[Field]]:
    """As conv, with the weight's axes exchanged; of grouped ones only the depthwise kind moves."""
    x, weight, bias = (str(name) if name else None for name in node.inputs)
    groups = attrs(node)["groups"]
    (inside,) = flow.lines(str(x), [1], "its positions are mixed")
    inputs, outputs = flow.lines(str(weight), [0, 1], KERNEL)
    if groups == 1:
        _grouped(flow, node, inside, inputs, 1)
        return [_begin(flow, node, outputs, bias)]
    if flow.shape(str(weight))[:2] == (groups, 1):
        flow.tie_lines(inside, inputs, _FIXED)
        return [_begin(flow, node, inputs, bias)]
    for line in (inside, inputs, outputs):
        if line is not None:
            flow.freeze(line, "a grouped transposed convolution")
    return [_begin(flow, node, None, bias)]
