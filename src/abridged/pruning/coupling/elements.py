"""Coupling rules of ops that go element by element, of norms, and of what reduces an axis."""

from __future__ import annotations

from abridged.graph.graph import Node
from abridged.pruning.coupling.labels import COUPLING, Field, Flow, along, attrs, covered

_ONE = """neg abs sign floor ceil round reciprocal sqrt rsqrt exp log sin cos tanh erf relu sigmoid silu mish hardsigmoid
    hardswish logical_not gelu leaky_relu elu softplus clamp cast"""
_SEVERAL = """add sub mul div floor_div remainder pow maximum minimum eq ne lt le gt ge logical_and logical_or logical_xor
    where"""

_OTHER = "read together with a tensor of fixed size"


@COUPLING.entry(*_ONE.split())
def unary(flow: Flow, node: Node) -> list[list[Field]]:
    """Each element for itself: labels stay."""
    return [flow.of(node.inputs[0])]


@COUPLING.entry(*_SEVERAL.split())
def broadcast(flow: Flow, node: Node) -> list[list[Field]]:
    """Position by position: labels of the operands are tied."""
    return [flow.merge([flow.operand(name) for name in node.inputs if name], _OTHER)]


@COUPLING.entry("prelu")
def prelu(flow: Flow, node: Node) -> list[list[Field]]:
    """One slope per channel goes with its channel; a single slope is for all."""
    return [_with_channels(flow, node, flow.of(node.inputs[0]), node.inputs[1:])]


def _with_channels(flow: Flow, node: Node, fields: list[Field], parameters: tuple[str | None, ...]) -> list[Field]:
    """x (N, C, ...) read together with parameters (C)."""
    shape = flow.shape(str(node.inputs[0]))
    operands = [(fields, shape)]
    for name in parameters:
        if name is not None and (size := max(flow.shape(name), default=1)) > 1:
            lines = [along(field.ravel(), 1, len(shape)) for field in flow.of(name)]
            operands.append((lines, tuple(size if axis == 1 else 1 for axis in range(len(shape)))))
    return flow.merge(operands, _OTHER)


@COUPLING.entry("batch_norm")
def batch_norm(flow: Flow, node: Node) -> list[list[Field]]:
    """Each channel for itself, with its scale, shift and statistics."""
    return [_with_channels(flow, node, flow.of(node.inputs[0]), node.inputs[1:])]


@COUPLING.entry("group_norm")
def group_norm(flow: Flow, node: Node) -> list[list[Field]]:
    """Whole groups may go. Otherwise (not exact) as many channels of each group, the same ones."""
    why = "group norm takes mean and variance over it; exact=False narrows it"
    shape, groups = flow.shape(str(node.inputs[0])), attrs(node)["groups"]
    (line,) = flow.lines(str(node.inputs[0]), [1], why)
    if line is None:
        return [_with_channels(flow, node, [], node.inputs[1:])]
    rows = line.reshape(groups, -1)
    if flow.exact and groups == 1:
        flow.freeze(line, why)
    elif rows.shape[1] > 1:
        flow.tie(rows, rows[:, :1] if flow.exact else rows[:1])
    return [_with_channels(flow, node, [along(line, 1, len(shape))], node.inputs[1:])]


@COUPLING.entry("layer_norm", "rms_norm")
def layer_norm(flow: Flow, node: Node) -> list[list[Field]]:
    """Mean and variance are over the channels: exact pruning holds them. Scale and shift go with their channel."""
    x, *parameters = node.inputs
    normalized = attrs(node)["normalized_shape"]
    rank = len(flow.shape(str(x)))
    axes = range(rank - len(normalized), rank)
    fields = _normalized(flow, flow.of(x), list(axes), node.op.replace("_", " "))
    return [flow.merge([(fields, flow.shape(str(x))), *(flow.operand(name) for name in parameters if name)], _OTHER)]


def _normalized(flow: Flow, fields: list[Field], axes: list[int], what: str) -> list[Field]:
    """Hold what a norm or a mean reads, or (not exact) let it be taken over fewer."""
    why = f"a {what} reads it as a whole; exact=False narrows it"
    whole = [field for field in fields if not flow.exact and len(axes) == 1 and covered(field) == tuple(axes)]
    rest = [field for field in fields if not any(field is w for w in whole)]
    return [*whole, *flow.hold_all(rest, axes, why)]


@COUPLING.entry("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "resize")
def spatial(flow: Flow, node: Node) -> list[list[Field]]:
    """Samples and channels each for itself, positions mixed."""
    rank = len(flow.shape(str(node.inputs[0])))
    return [flow.hold_all(flow.of(node.inputs[0]), range(2, rank), "its positions are mixed")]


@COUPLING.entry("softmax", "log_softmax", "cumsum")
def along_axis(flow: Flow, node: Node) -> list[list[Field]]:
    """Everything along the axis is mixed."""
    return [flow.hold_all(flow.of(node.inputs[0]), [attrs(node)["axis"]], f"a {node.op} runs along it")]


@COUPLING.entry("sum", "vector_norm")
def total(flow: Flow, node: Node) -> list[list[Field]]:
    """A channel that is zero adds nothing: channels may end here."""
    x, axes = str(node.inputs[0]), attrs(node)["axes"]
    left = []
    for field in flow.of(x):
        if len(covered(field)) == 1 and covered(field)[0] in axes:
            flow.use(node, field.ravel(), [(x, covered(field)[0])])
        else:
            left += flow.hold_all([field], axes, f"a {node.op.replace('_', ' ')} runs over it")
    return [_without(left, node)]


@COUPLING.entry("mean", "var")
def mean(flow: Flow, node: Node) -> list[list[Field]]:
    """Taken over fewer channels it is another number: exact pruning holds them."""
    axes = list(attrs(node)["axes"])
    fields = _normalized(flow, flow.of(node.inputs[0]), axes, node.op)
    return [_without([field for field in fields if not set(covered(field)) & set(axes)], node)]


@COUPLING.entry("prod", "amax", "amin", "argmax", "argmin")
def extreme(flow: Flow, node: Node) -> list[list[Field]]:
    """Every element counts: what is reduced is held."""
    return [_without(flow.hold_all(flow.of(node.inputs[0]), _axes(node), f"{node.op} runs over it"), node)]


def _axes(node: Node) -> tuple[int, ...]:
    return tuple(attrs(node)["axes"]) if "axes" in node.attrs else (attrs(node)["axis"],)


def _without(fields: list[Field], node: Node) -> list[Field]:
    """Fields after a reduction that keeps its axes as 1, or drops them."""
    axes = () if attrs(node)["keepdim"] else _axes(node)
    return [field.reshape([n for axis, n in enumerate(field.shape) if axis not in axes]) for field in fields]
