"""The closed set of ops a Graph may use: one entry each, whose function is the op's meaning.

The signature of a meaning *is* the op's declaration. Its positional parameters are the node's inputs, always all of them and in
this order (`Tensor | None` may be None; `*xs` takes any number); its keyword-only parameters are the node's attributes, all
of them present. Shapes and dtypes have no second set of rules: `infer` runs the meaning on the meta device.

What every meaning may rely on, because capture normalizes it:

- axes are counted from the front, sizes and bounds are resolved numbers (`stop` ≤ size, never -1 or None);
- convolutions, pools and resize see a batch: x is (N, C, *spatial), with 1 to 3 spatial axes, and tuples have one entry per such axis;
- the two sides of a binary op have the same dtype (a `cast` stands where PyTorch promotes) and broadcast as in numpy;
- a Python number is a 0-d Constant, and everything random or in place is gone.

>>> signature("linear")
Signature(inputs=('x', 'weight', 'bias'), optional=('bias',), variadic=None, attrs=())
>>> OPS["clamp"](torch.tensor([-1.0, 9.0]), min=0.0, max=6.0)
tensor([0., 6.])
"""

from __future__ import annotations

import builtins
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from abridged.graph.graph import Attr, Node, Value
from abridged.tables import Table

Meaning = Callable[..., Tensor | tuple[Tensor, ...]]
Ints = tuple[int, ...]

OPS = Table[Meaning]("op")


@dataclass(frozen=True, slots=True)
class Signature:
    """An op's declaration: input names (`optional` ones may be None, `variadic` is the name of any number of further ones) and attributes."""

    inputs: tuple[str, ...]
    optional: tuple[str, ...]
    variadic: str | None
    attrs: tuple[str, ...]


@cache
def signature(op: str) -> Signature:
    """The declaration of an op, read from its meaning. An unknown op raises `InputError`."""
    parameters = inspect.signature(OPS[op]).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return Signature(
        inputs=tuple(p.name for p in positional),
        optional=tuple(p.name for p in parameters if p.kind != p.KEYWORD_ONLY and "None" in str(p.annotation)),
        variadic=next((p.name for p in parameters if p.kind == p.VAR_POSITIONAL), None),
        attrs=tuple(p.name for p in parameters if p.kind == p.KEYWORD_ONLY),
    )


def apply(node: Node, inputs: tuple[Tensor | None, ...], dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Run a node's meaning: a tuple with one tensor per output. `dtype` replaces every floating dtype among its attributes."""
    attrs = node.attrs if dtype is None else {k: dtype if _floating(v) else v for k, v in node.attrs.items()}
    result = OPS[node.op](*inputs, **attrs)
    return result if isinstance(result, tuple) else (result,)


def _floating(attr: Attr) -> bool:
    return isinstance(attr, torch.dtype) and attr.is_floating_point


def infer(node: Node, values: Mapping[str, Value]) -> tuple[Value, ...]:
    """Shape and dtype of a node's outputs: its meaning, run on the meta device. Raises what the meaning raises on a mismatch."""
    given = tuple(None if name is None else (values[name].shape, values[name].dtype) for name in node.inputs)
    attrs = tuple(node.attrs.items())
    results = _results(node.op, given, attrs, repr(attrs))
    if len(results) != len(node.outputs):
        raise ValueError(f"{node.op} has {len(results)} outputs, not {len(node.outputs)}")
    return tuple(Value(name, shape, dtype) for name, (shape, dtype) in zip(node.outputs, results, strict=True))


_Spec = tuple[Ints, torch.dtype]


@lru_cache(maxsize=4096)
def _results(
    op: str, given: tuple[_Spec | None, ...], attrs: tuple[tuple[str, Attr], ...], _exactly: str
) -> tuple[_Spec, ...]:
    """What `infer` says, remembered: networks repeat their layers. `_exactly` tells 1 from 1.0 and True."""
    inputs = tuple(None if spec is None else torch.empty(spec[0], dtype=spec[1], device="meta") for spec in given)
    results = apply(Node(op, (), (), dict(attrs)), inputs)
    return tuple((tuple(t.shape), t.dtype) for t in results)


# ---- linear ----------------------------------------------------------------------------------------------------------

_CONV: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)
_CONV_TRANSPOSE: tuple[Callable[..., Tensor], ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@OPS.entry("conv")
def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    """y[n, o] = bias[o] + Σ weight[o, i, tap] · x[n, i, stride·p + dilation·tap − padding]; weight (O, I / groups, *kernel)."""
    return _CONV[len(stride) - 1](x, weight, bias, stride, padding, dilation, groups)


@OPS.entry("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    """The adjoint of conv, plus bias; weight (I, O / groups, *kernel)."""
    return _CONV_TRANSPOSE[len(stride) - 1](x, weight, bias, stride, padding, output_padding, groups, dilation)


@OPS.entry("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x · weightᵀ + bias; x (..., I), weight (O, I), bias (O)."""
    return F.linear(x, weight, bias)


@OPS.entry("matmul")
def matmul(x: Tensor, y: Tensor) -> Tensor:
    """x · y over the last two axes, the axes before them broadcast; x (..., M, K), y (..., K, N)."""
    return torch.matmul(x, y)


@OPS.entry("einsum")
def einsum(*xs: Tensor, equation: str) -> Tensor:
    """Einstein's summation; torch's notation, where `...` broadcasts."""
    return torch.einsum(equation, *xs)


@OPS.entry("attention")
def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool, scale: float) -> Tensor:
    """softmax(scale · q · kᵀ + mask) · v; q (..., T, E), k (..., S, E), v (..., S, V); mask is added, or True where it may look.

    A row that may look nowhere is 0. `causal` lets query t look at keys 0..t (Vaswani et al. 2017)."""
    logits = q @ k.transpose(-2, -1) * scale  # (..., T, S)
    if causal:
        allowed = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
        logits = logits.masked_fill(~allowed, -math.inf)
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    blind = (logits == -math.inf).all(-1, keepdim=True)
    return torch.softmax(logits, -1).masked_fill(blind, 0) @ v


# ---- normalization ---------------------------------------------------------------------------------------------------


@OPS.entry("batch_norm")
def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, *, eps: float
) -> Tensor:
    """(x − mean) / √(var + eps) · weight + bias, each (C), over x (N, C, ...) (Ioffe & Szegedy 2015)."""
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)


@OPS.entry("layer_norm")
def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, normalized_shape: Ints, eps: float) -> Tensor:
    """(x − E[x]) / √(Var[x] + eps) · weight + bias over the last axes, whose shape is normalized_shape (Ba et al. 2016)."""
    return F.layer_norm(x, normalized_shape, weight, bias, eps)


@OPS.entry("rms_norm")
def rms_norm(x: Tensor, weight: Tensor | None, *, normalized_shape: Ints, eps: float) -> Tensor:
    """x / √(E[x²] + eps) · weight over the last axes, whose shape is normalized_shape (Zhang & Sennrich 2019)."""
    return F.rms_norm(x, normalized_shape, weight, eps)


@OPS.entry("group_norm")
def group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, groups: int, eps: float) -> Tensor:
    """Layer norm within each of `groups` groups of channels, weight and bias (C); groups = C is instance norm (Wu & He 2018)."""
    return torch.group_norm(x, groups, weight, bias, eps)  # F's refuses one number per group of one sample


# ---- pooling and resizing --------------------------------------------------------------------------------------------

_MAX_POOL: tuple[Callable[..., Tensor], ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVG_POOL: tuple[Callable[..., Tensor], ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_ADAPTIVE_AVG: tuple[Callable[..., Tensor], ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
_ADAPTIVE_MAX: tuple[Callable[..., Tensor], ...] = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)


@OPS.entry("max_pool")
def max_pool(x: Tensor, *, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool) -> Tensor:
    """Largest of each window; padding never wins. `ceil_mode` lets the last window hang over the edge."""
    return _MAX_POOL[len(kernel) - 1](x, kernel, stride, padding, dilation, ceil_mode)


@OPS.entry("avg_pool")
def avg_pool(
    x: Tensor, *, kernel: Ints, stride: Ints, padding: Ints, ceil_mode: bool, count_include_pad: bool
) -> Tensor:
    """Mean of each window; zero padding counts as elements if count_include_pad."""
    return _AVG_POOL[len(kernel) - 1](x, kernel, stride, padding, ceil_mode, count_include_pad)


@OPS.entry("adaptive_avg_pool")
def adaptive_avg_pool(x: Tensor, *, output_size: Ints) -> Tensor:
    """Mean over [⌊i·size / output⌋, ⌈(i + 1)·size / output⌉) for each output position i."""
    return _ADAPTIVE_AVG[len(output_size) - 1](x, output_size)


@OPS.entry("adaptive_max_pool")
def adaptive_max_pool(x: Tensor, *, output_size: Ints) -> Tensor:
    """Largest in the windows of adaptive_avg_pool."""
    return _ADAPTIVE_MAX[len(output_size) - 1](x, output_size)


@OPS.entry("resize")
def resize(x: Tensor, *, size: Ints, scales: tuple[float, ...] | None, mode: str, align_corners: bool) -> Tensor:
    """Interpolate to `size`; mode "nearest" | "linear" (bi-, trilinear) | "cubic"; coordinates by `scales` if given, else by the sizes."""
    name = {"linear": ("linear", "bilinear", "trilinear")[len(size) - 1], "cubic": "bicubic"}.get(mode, mode)
    corners = None if mode == "nearest" else align_corners
    if scales is None:
        return F.interpolate(x, size=list(size), mode=name, align_corners=corners)
    return F.interpolate(x, scale_factor=list(scales), mode=name, align_corners=corners)


# ---- one tensor, element by element ----------------------------------------------------------------------------------


def _unary(name: str, formula: str, f: Callable[[Tensor], Tensor]) -> None:
    def meaning(x: Tensor) -> Tensor:
        return f(x)

    meaning.__name__, meaning.__doc__ = name, formula
    OPS.entry(name)(meaning)


_unary("neg", "−x.", torch.neg)
_unary("abs", "|x|.", torch.abs)
_unary("sign", "−1, 0 or 1.", torch.sign)
_unary("floor", "The largest integer ≤ x.", torch.floor)
_unary("ceil", "The smallest integer ≥ x.", torch.ceil)
_unary("round", "The nearest integer, ties to even.", torch.round)
_unary("reciprocal", "1 / x.", torch.reciprocal)
_unary("sqrt", "√x.", torch.sqrt)
_unary("rsqrt", "1 / √x.", torch.rsqrt)
_unary("exp", "eˣ.", torch.exp)
_unary("log", "Natural logarithm.", torch.log)
_unary("sin", "Sine.", torch.sin)
_unary("cos", "Cosine.", torch.cos)
_unary("tanh", "Hyperbolic tangent.", torch.tanh)
_unary("erf", "2 / √π · ∫₀ˣ exp(−t²) dt.", torch.erf)
_unary("relu", "max(x, 0).", torch.relu)
_unary("sigmoid", "1 / (1 + e⁻ˣ).", torch.sigmoid)
_unary("silu", "x · sigmoid(x).", F.silu)
_unary("mish", "x · tanh(log(1 + eˣ)).", F.mish)
_unary("hardsigmoid", "clamp(x + 3, 0, 6) / 6.", F.hardsigmoid)
_unary("hardswish", "x · clamp(x + 3, 0, 6) / 6.", F.hardswish)
_unary("logical_not", "True where x is 0.", torch.logical_not)


@OPS.entry("gelu")
def gelu(x: Tensor, *, approximate: str) -> Tensor:
    """x · Φ(x); approximate "none", or "tanh": x / 2 · (1 + tanh(√(2 / π) · (x + 0.044715 x³)))."""
    return F.gelu(x, approximate=approximate)


@OPS.entry("leaky_relu")
def leaky_relu(x: Tensor, *, negative_slope: float) -> Tensor:
    """x where x > 0, else negative_slope · x."""
    return F.leaky_relu(x, negative_slope)


@OPS.entry("elu")
def elu(x: Tensor, *, alpha: float) -> Tensor:
    """x where x > 0, else alpha · (eˣ − 1)."""
    return F.elu(x, alpha)


@OPS.entry("softplus")
def softplus(x: Tensor, *, beta: float, threshold: float) -> Tensor:
    """log(1 + exp(beta · x)) / beta, and x itself where beta · x > threshold."""
    return F.softplus(x, beta, threshold)


@OPS.entry("clamp")
def clamp(x: Tensor, *, min: float | None, max: float | None) -> Tensor:
    """max(x, min), then min(x, max); None is no bound. Keeps x's dtype."""
    return torch.clamp(x, min, max)


@OPS.entry("cast")
def cast(x: Tensor, *, dtype: torch.dtype) -> Tensor:
    """x in another dtype."""
    return x.to(dtype)


# ---- two tensors, element by element ---------------------------------------------------------------------------------


def _binary(name: str, formula: str, f: Callable[[Tensor, Tensor], Tensor]) -> None:
    def meaning(x: Tensor, y: Tensor) -> Tensor:
        if x.dtype != y.dtype:
            raise TypeError(f"{name} takes one dtype, not {x.dtype} and {y.dtype}")
        return f(x, y)

    meaning.__name__, meaning.__doc__ = name, formula
    OPS.entry(name)(meaning)


_binary("add", "x + y.", torch.add)
_binary("sub", "x − y.", torch.sub)
_binary("mul", "x · y.", torch.mul)
_binary("div", "x / y; floating dtypes alone.", torch.div)
_binary("floor_div", "⌊x / y⌋.", lambda x, y: torch.div(x, y, rounding_mode="floor"))
_binary("remainder", "x − y · ⌊x / y⌋.", torch.remainder)
_binary("pow", "xʸ.", torch.pow)
_binary("maximum", "The larger one.", torch.maximum)
_binary("minimum", "The smaller one.", torch.minimum)
_binary("eq", "x = y, as bool.", torch.eq)
_binary("ne", "x ≠ y, as bool.", torch.ne)
_binary("lt", "x < y, as bool.", torch.lt)
_binary("le", "x ≤ y, as bool.", torch.le)
_binary("gt", "x > y, as bool.", torch.gt)
_binary("ge", "x ≥ y, as bool.", torch.ge)
_binary("logical_and", "Both are not 0, as bool.", torch.logical_and)
_binary("logical_or", "One is not 0, as bool.", torch.logical_or)
_binary("logical_xor", "Exactly one is not 0, as bool.", torch.logical_xor)


@OPS.entry("prelu")
def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """x where x > 0, else weight · x; x (N, C, ...), weight (C) or (1) (He et al. 2015)."""
    return F.prelu(x, weight)


@OPS.entry("where")
def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x where the (bool) condition is True, else y; the three broadcast."""
    if x.dtype != y.dtype:
        raise TypeError(f"where takes one dtype, not {x.dtype} and {y.dtype}")
    return torch.where(condition, x, y)


# ---- along axes ------------------------------------------------------------------------------------------------------


@OPS.entry("softmax")
def softmax(x: Tensor, *, axis: int) -> Tensor:
    """eˣ / Σ eˣ along an axis."""
    return torch.softmax(x, axis)


@OPS.entry("log_softmax")
def log_softmax(x: Tensor, *, axis: int) -> Tensor:
    """x − log Σ eˣ along an axis."""
    return torch.log_softmax(x, axis)


@OPS.entry("cumsum")
def cumsum(x: Tensor, *, axis: int) -> Tensor:
    """Running sum along an axis; keeps x's dtype."""
    return torch.cumsum(x, axis, dtype=x.dtype)


@OPS.entry("sum")
def sum(x: Tensor, *, axes: Ints, keepdim: bool) -> Tensor:
    """Σ x over some axes; keeps x's dtype."""
    return torch.sum(x, axes, keepdim, dtype=x.dtype)


@OPS.entry("mean")
def mean(x: Tensor, *, axes: Ints, keepdim: bool) -> Tensor:
    """Mean over some axes."""
    return torch.mean(x, axes, keepdim)


@OPS.entry("prod")
def prod(x: Tensor, *, axes: Ints, keepdim: bool) -> Tensor:
    """Π x over some axes; keeps x's dtype."""
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim, dtype=x.dtype)
    return x


@OPS.entry("amax")
def amax(x: Tensor, *, axes: Ints, keepdim: bool) -> Tensor:
    """Largest over some axes."""
    return torch.amax(x, axes, keepdim)


@OPS.entry("amin")
def amin(x: Tensor, *, axes: Ints, keepdim: bool) -> Tensor:
    """Smallest over some axes."""
    return torch.amin(x, axes, keepdim)


@OPS.entry("var")
def var(x: Tensor, *, axes: Ints, correction: float, keepdim: bool) -> Tensor:
    """Σ (x − E[x])² / (n − correction) over some axes."""
    return torch.var(x, axes, correction=correction, keepdim=keepdim)


@OPS.entry("vector_norm")
def vector_norm(x: Tensor, *, ord: float, axes: Ints, keepdim: bool) -> Tensor:
    """(Σ |x|^ord)^(1 / ord) over some axes; ord ∞ is max |x|."""
    y: Tensor = torch.linalg.vector_norm(x, ord, axes, keepdim)
    return y


@OPS.entry("argmax")
def argmax(x: Tensor, *, axis: int, keepdim: bool) -> Tensor:
    """Where the largest is along an axis, as int64; the first one of equals."""
    return torch.argmax(x, axis, keepdim)


@OPS.entry("argmin")
def argmin(x: Tensor, *, axis: int, keepdim: bool) -> Tensor:
    """Where the smallest is along an axis, as int64; the first one of equals."""
    return torch.argmin(x, axis, keepdim)


# ---- shape and place -------------------------------------------------------------------------------------------------

_ALL = builtins.slice(None)

# Which element stands at a padded position, given the last index of the axis.
_SOURCE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "reflect": lambda position, last: last - (last - position.abs()).abs(),
    "replicate": lambda position, last: position.clamp(0, last),
    "circular": lambda position, last: position % (last + 1),
}


@OPS.entry("reshape")
def reshape(x: Tensor, *, shape: Ints) -> Tensor:
    """The same elements in row-major order, in another shape."""
    return torch.reshape(x, shape)


@OPS.entry("permute")
def permute(x: Tensor, *, axes: Ints) -> Tensor:
    """Output axis i is x's axis axes[i]."""
    return torch.permute(x, axes)


@OPS.entry("expand")
def expand(x: Tensor, *, shape: Ints) -> Tensor:
    """Broadcast to a shape, as numpy does."""
    return torch.broadcast_to(x, shape)


@OPS.entry("repeat")
def repeat(x: Tensor, *, repeats: Ints) -> Tensor:
    """x laid side by side repeats[i] times along axis i (numpy.tile)."""
    return x.repeat(repeats)


@OPS.entry("repeat_interleave")
def repeat_interleave(x: Tensor, *, repeats: int, axis: int) -> Tensor:
    """Every slice along an axis, `repeats` times in a row (numpy.repeat)."""
    return torch.repeat_interleave(x, repeats, axis)


@OPS.entry("cat")
def cat(*xs: Tensor, axis: int) -> Tensor:
    """One after another along an axis."""
    if len({x.dtype for x in xs}) != 1:
        raise TypeError(f"cat takes one dtype, not {', '.join(str(x.dtype) for x in xs)}")
    return torch.cat(xs, axis)


@OPS.entry("split")
def split(x: Tensor, *, sizes: Ints, axis: int) -> tuple[Tensor, ...]:
    """Parts of these sizes along an axis: as many outputs as sizes, which sum to the axis."""
    return tuple(torch.split(x, list(sizes), axis))


@OPS.entry("slice")
def slice(x: Tensor, *, axis: int, start: int, stop: int, step: int) -> Tensor:
    """x[start:stop:step] along an axis; 0 ≤ start ≤ stop ≤ size, step ≥ 1."""
    return x[(*[_ALL] * axis, builtins.slice(start, stop, step))]


@OPS.entry("pad")
def pad(x: Tensor, *, padding: tuple[tuple[int, int], ...], mode: str, value: float) -> Tensor:
    """Put padding[i] = (before, after) around axis i; mode "constant" (of `value`) | "reflect" | "replicate" | "circular"."""
    if mode == "constant":
        around: Tensor = F.pad(x, [n for pair in reversed(padding) for n in pair], mode, value)
        return around
    for axis, (before, after) in enumerate(padding):
        size = x.shape[axis]
        position = torch.arange(-before, size + after, device=x.device)
        x = torch.index_select(x, axis, _SOURCE[mode](position, size - 1))
    return x


@OPS.entry("roll")
def roll(x: Tensor, *, shifts: Ints, axes: Ints) -> Tensor:
    """Move elements by shifts[i] along axes[i], round the end."""
    return torch.roll(x, shifts, axes)


@OPS.entry("flip")
def flip(x: Tensor, *, axes: Ints) -> Tensor:
    """Reverse the order along some axes."""
    return torch.flip(x, axes)


@OPS.entry("take")
def take(x: Tensor, index: Tensor, *, axis: int) -> Tensor:
    """Slices of x along an axis by an int64 index ≥ 0 of any shape, which replaces that axis (numpy.take; an embedding has axis 0)."""
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return torch.index_select(x, axis, index.reshape(-1)).reshape(shape)


@OPS.entry("gather")
def gather(x: Tensor, index: Tensor, *, axis: int) -> Tensor:
    """y[i, j, k] = x[i, index[i, j, k], k] for axis 1, and so on (torch.gather)."""
    return torch.gather(x, axis, index)


@OPS.entry("scatter")
def scatter(x: Tensor, index: Tensor, source: Tensor, *, axis: int) -> Tensor:
    """x with x[i, index[i, j, k], k] = source[i, j, k] for axis 1, and so on (torch.scatter)."""
    return torch.scatter(x, axis, index, source)


@OPS.entry("index")
def index(x: Tensor, *indices: Tensor | None) -> Tensor:
    """x[indices]: several int64 indices that broadcast together, None for a whole axis (numpy's advanced indexing)."""
    return x[tuple(_ALL if i is None else i for i in indices)]
