"""Every rule that turns an ATen op into ours: captured, interpreted, equal to PyTorch. No rule is without a case."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from abridged.errors import UnsupportedError
from abridged.graph.aten import ATEN, table
from abridged.graph.capture import capture
from abridged.graph.interpret import interpret

A = torch.ops.aten


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = _randn(2, 4, 6, 6)  # (N, C, H, W)
Y = _randn(2, 4, 6, 6, seed=1)
ROW = _randn(2, 4, 6, seed=2)  # (N, C, L)
BOX = _randn(1, 2, 4, 4, 4, seed=3)  # (N, C, D, H, W)
MAT = _randn(3, 5, seed=4)
TAM = _randn(5, 3, seed=5)
VEC = _randn(5, seed=6)
INT = torch.tensor([[3, -7, 2], [5, 4, -1]])
BOOL = torch.tensor([[True, False, True], [False, False, True]])
INDEX = torch.tensor([2, 0, 1, 1])

Case = tuple[Callable[..., Any], tuple[Tensor, ...]]


def _case(f: Callable[..., Any], *inputs: Tensor) -> Case:
    return f, inputs


def _weights(*shape: int) -> Tensor:
    return _randn(*shape, seed=7)


NORM = (
    _randn(4, seed=8),
    _randn(4, seed=9),
    _randn(4, seed=10),
    _randn(4, seed=11).abs() + 0.5,
)  # weight bias mean var

# What stands for itself: `torch.ops.aten.NAME(x)`.
UNARY = """reciprocal sqrt rsqrt exp log sin cos tanh erf sigmoid silu mish hardsigmoid hardswish neg abs sign relu logical_not floor
    ceil round trunc log2 log10 square gelu leaky_relu softplus log_sigmoid elu selu celu relu6 hardtanh isnan alias clone contiguous
    detach lift lift_fresh_copy positive resolve_conj resolve_neg ravel sum mean prod amax amin max min argmax argmin
    var std any all""".split()  # noqa: SIM905
BINARY = """mul remainder maximum minimum eq ne lt le gt ge multiply greater less logical_and logical_or logical_xor add sub subtract
    rsub div divide true_divide floor_divide pow expand_as view_as reshape_as type_as""".split()  # noqa: SIM905

CASES: dict[str, Case] = {
    **{name: _case(lambda x, name=name: getattr(A, name)(x), X.abs() + 0.1) for name in UNARY},
    **{name: _case(lambda x, y, name=name: getattr(A, name)(x, y), X.abs(), Y.abs() + 0.1) for name in BINARY},
    "to": _case(lambda x: x.to(torch.int64), X * 5),
    "_to_copy": _case(lambda x: A._to_copy(x, dtype=torch.float64), X),
    "dropout": _case(lambda x: torch.dropout(x, 0.5, False), X),
    "feature_dropout": _case(lambda x: torch.feature_dropout(x, 0.5, False), X),
    "alpha_dropout": _case(lambda x: torch.alpha_dropout(x, 0.5, False), X),
    "feature_alpha_dropout": _case(lambda x: torch.feature_alpha_dropout(x, 0.5, False), X),
    "copy": _case(lambda x, y: A.copy(x, y), X, Y[0]),
    "fill": _case(lambda x: A.fill(x, 2.5), X),
    "zero": _case(lambda x: x + A.zero(x * 2), X),
    "rrelu": _case(lambda x: torch.rrelu(x, 0.1, 0.3, False), X),
    "prelu": _case(lambda x, w: torch.prelu(x, w), X, NORM[0]),
    "_prelu_kernel": _case(lambda x, w: A._prelu_kernel(x, w), X, NORM[0].reshape(1, 4, 1, 1)),
    "clamp": _case(lambda x, y: x.clamp(-0.5, 0.5) + x.clamp(min=y) + x.clamp(max=y), X, Y),
    "clamp_min": _case(lambda x: A.clamp_min(x, 0.2), X),
    "clamp_max": _case(lambda x: A.clamp_max(x, 0.2), X),
    "bitwise_not": _case(lambda x: ~x, BOOL),
    "max.other": _case(lambda x, y: torch.max(x, y), X, Y),
    "min.other": _case(lambda x, y: torch.min(x, y), X, Y),
    "max.dim": _case(lambda x: tuple(torch.max(x, 1, keepdim=True)), X),
    "min.dim": _case(lambda x: tuple(torch.min(x, -1)), X),
    **{f"bitwise_{op}": _case(lambda x, y, op=op: getattr(A, f"bitwise_{op}")(x, y), BOOL, ~BOOL) for op in ("and", "or", "xor")},
    **{f"__{op}__": _case(lambda x, y, op=op: getattr(A, f"__{op}__")(x, y), BOOL, BOOL.roll(1)) for op in ("and", "or", "xor")},
    "addcmul": _case(lambda x, y: torch.addcmul(x, x, y, value=0.3), X, Y),
    "addcdiv": _case(lambda x, y: torch.addcdiv(x, x, y, value=0.3), X, Y.abs() + 1),
    "lerp": _case(lambda x, y: torch.lerp(x, y, 0.3) + torch.lerp(x, y, y), X, Y),
    "where": _case(lambda x, y: torch.where(x > 0, y, 0.5), X, Y),
    "masked_fill": _case(lambda x, y: x.masked_fill(y > 0, -math.inf), X, Y),
    "softmax": _case(lambda x: x.softmax(1), X),
    "_softmax": _case(lambda x: A._softmax(x, -1, False), X),
    "log_softmax": _case(lambda x: x.log_softmax(-2), X),
    "_log_softmax": _case(lambda x: A._log_softmax(x, 1, False), X),
    "cumsum": _case(lambda x, i: (x.cumsum(-1), i.cumsum(0)), X, INT),
    "var_mean": _case(lambda x: torch.var_mean(x, (2, 3), correction=0), X),
    "linalg_vector_norm": _case(lambda x: torch.linalg.vector_norm(x, 3, (1, 2)), X),
    "norm": _case(lambda x: (A.norm(x), A.norm(x, 1, [1], True)), X),
    "logsumexp": _case(lambda x, i: (x.logsumexp(1), x.logsumexp((2, 3), keepdim=True), i.logsumexp(1)), X, INT),
    # layers
    "conv1d": _case(lambda x, w: torch.conv1d(x, w, padding="same"), ROW, _weights(3, 4, 4)),
    "conv2d": _case(lambda x, w, b: torch.conv2d(x, w, b, 2, 1, groups=2), X, _weights(6, 2, 3, 3), _weights(6)),
    "conv3d": _case(lambda x, w: torch.conv3d(x, w, dilation=2), BOX, _weights(3, 2, 2, 2, 2)),
    "conv_transpose1d": _case(lambda x, w: torch.conv_transpose1d(x, w), ROW[0], _weights(4, 3, 2)),
    "conv_transpose2d": _case(
        lambda x, w: torch.conv_transpose2d(x, w, None, 2, 1, 1, 2, 2), X, _weights(4, 3, 3, 3)
    ),
    "conv_transpose3d": _case(lambda x, w: torch.conv_transpose3d(x, w), BOX, _weights(2, 3, 2, 2, 2)),
    "convolution": _case(
        lambda x, w: A.convolution(x, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        + A.convolution(x, w.transpose(0, 1), None, [1, 1], [1, 1], [1, 1], True, [0, 0], 1)[:, :, :4, :4],
        X,
        _weights(4, 4, 3, 3),
    ),
    "linear": _case(lambda x, w, b: nn.functional.linear(x, w, b), ROW, _weights(3, 6), _weights(3)),
    "matmul": _case(lambda x, y, v: (x @ y, v @ y, x @ v, v @ v), MAT, TAM, VEC),
    "mm": _case(lambda x, y: torch.mm(x, y), MAT, TAM),
    "bmm": _case(lambda x: torch.bmm(x, x.transpose(1, 2)), ROW),
    "mv": _case(lambda x, v: torch.mv(x, v), MAT, VEC),
    "dot": _case(lambda v: torch.dot(v, v), VEC),
    "outer": _case(lambda v: A.outer(v, v), VEC),
    "ger": _case(lambda v: A.ger(v, v), VEC),
    "einsum": _case(lambda x, y: torch.einsum("nchw,nkhw->nck", x, y), X, Y),
    "addmm": _case(lambda x, y, b: torch.addmm(b, x, y, beta=0.5, alpha=2), MAT, TAM, _weights(3)),
    "addmv": _case(lambda x, v, b: torch.addmv(b, x, v), MAT, VEC, _weights(3)),
    "addbmm": _case(lambda x, b: torch.addbmm(b, x, x.transpose(1, 2), beta=2, alpha=0.5), ROW, _weights(4, 4)),
    "baddbmm": _case(lambda x, y: torch.baddbmm(y, x, x.transpose(1, 2), beta=2, alpha=0.5), ROW, _weights(2, 4, 4)),
    "scaled_dot_product_attention": _case(
        lambda q: (
            nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
            + nn.functional.scaled_dot_product_attention(q, q[:, :2], q[:, 2:], scale=0.3, enable_gqa=True)
            + nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=q[..., 0, :, None] > 0)
            + nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=q[0])
        ),
        X,
    ),
    "batch_norm": _case(
        lambda x, w, b, m, v: torch.batch_norm(x, w, b, m, v, False, 0.1, 1e-5, False)
        + torch.batch_norm(x, w, b, None, None, True, 0.1, 1e-5, False)
        + torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False),
        X,
        *NORM,
    ),
    "_native_batch_norm_legit_no_training": _case(
        lambda x, w, b, m, v: A._native_batch_norm_legit_no_training(x, w, b, m, v, 0.1, 1e-5)[0], X, *NORM
    ),
    "instance_norm": _case(
        lambda x, w, b, m, v: torch.instance_norm(x, w, b, None, None, True, 0.1, 1e-5, False)
        + torch.instance_norm(x, w, b, m, v, False, 0.1, 1e-5, False),
        X,
        *NORM,
    ),
    "layer_norm": _case(lambda x: torch.layer_norm(x, (6, 6)), X),
    "native_layer_norm": _case(lambda x, w: A.native_layer_norm(x, [6], w, None, 1e-5)[0], X, _weights(6)),
    "group_norm": _case(lambda x, w, b: torch.group_norm(x, 2, w, b), X, *NORM[:2]),
    "native_group_norm": _case(lambda x, w, b: A.native_group_norm(x, w, b, 2, 4, 36, 2, 1e-5)[0], X, *NORM[:2]),
    "rms_norm": _case(lambda x, w: torch.rms_norm(x, (6,), w), X, _weights(6)),
    "max_pool1d": _case(lambda x: torch.max_pool1d(x, 3, 2, 1), ROW),
    "max_pool2d": _case(lambda x: torch.max_pool2d(x, (3, 2), (), (1, 0), 1, True), X[0]),
    "max_pool3d": _case(lambda x: torch.max_pool3d(x, 2), BOX),
    "max_pool2d_with_indices": _case(lambda x: A.max_pool2d_with_indices(x, [2, 2])[0], X),
    "max_pool3d_with_indices": _case(lambda x: A.max_pool3d_with_indices(x, [2])[0], BOX),
    "avg_pool1d": _case(lambda x: A.avg_pool1d(x, [3], [2], [1], True, False), ROW),
    "avg_pool2d": _case(lambda x: A.avg_pool2d(x, [3], [], [1]), X),
    "avg_pool3d": _case(lambda x: A.avg_pool3d(x, [2]), BOX),
    **{
        f"{prefix}adaptive_avg_pool{n}d": _case(
            lambda x, n=n, p=prefix: getattr(A, f"{p}adaptive_avg_pool{n}d")(x, [3] * n), x
        )
        for prefix in ("", "_")
        for n, x in ((1, ROW), (2, X), (3, BOX))
        if prefix == "" or n > 1
    },
    **{
        f"adaptive_max_pool{n}d": _case(lambda x, n=n: getattr(A, f"adaptive_max_pool{n}d")(x, [3] * n)[0], x)
        for n, x in ((1, ROW), (2, X), (3, BOX))
    },
    **{
        f"{name}{n}d": _case(lambda x, name=f"{name}{n}d", n=n: getattr(A, name).vec(x, [7] * n, None), x)
        for name in ("upsample_nearest", "_upsample_nearest_exact")
        for n, x in ((1, ROW), (2, X), (3, BOX))
    },
    "upsample_linear1d": _case(lambda x: A.upsample_linear1d.vec(x, None, False, [1.7]), ROW),
    "upsample_bilinear2d": _case(lambda x: A.upsample_bilinear2d.default(x, [9, 10], False, 1.5, 1.7), X),
    "upsample_trilinear3d": _case(lambda x: A.upsample_trilinear3d.vec(x, [5, 6, 7], True, None), BOX),
    "upsample_bicubic2d": _case(lambda x: A.upsample_bicubic2d.vec(x, [9, 5], False, None), X),
    # places
    "view": _case(lambda x: x.view(2, -1), X),
    "_unsafe_view": _case(lambda x: A._unsafe_view(x, [8, 36]), X),
    "reshape": _case(lambda x: x.mT.reshape(4, -1), X),
    "_reshape_copy": _case(lambda x: A._reshape_copy(x, [8, 36]), X),
    "view_copy": _case(lambda x: A.view_copy(x, [8, 36]), X),
    "flatten": _case(lambda x: x.flatten(1), X),
    "unflatten": _case(lambda x: x.unflatten(1, (2, 2)), X),
    "squeeze": _case(lambda x: (x.squeeze(), x[:, :1].squeeze(1)), BOX),
    "unsqueeze": _case(lambda x: x.unsqueeze(-1), X),
    "expand": _case(lambda x: x.expand(3, -1, -1), MAT[:, None]),
    "broadcast_to": _case(lambda x: A.broadcast_to(x, [2, 3, 5]), MAT),
    "permute": _case(lambda x: x.permute(0, -1, 1, 2), X),
    "transpose": _case(lambda x: x.transpose(1, -1), X),
    "swapdims": _case(lambda x: A.swapdims(x, 1, -1), X),
    "swapaxes": _case(lambda x: x.swapaxes(1, -1), X),
    "t": _case(lambda x: x.t(), MAT),
    "numpy_T": _case(lambda x: A.numpy_T(x), MAT),
    "mT": _case(lambda x: A.mT(x), X),
    "adjoint": _case(lambda x: A.adjoint(x), X),
    "matrix_H": _case(lambda x: A.matrix_H(x), MAT),
    "movedim": _case(lambda x: (x.movedim(1, -1), x.movedim((0, 1), (2, 0))), X),
    "moveaxis": _case(lambda x: A.moveaxis(x, 1, -1), X),
    "pixel_shuffle": _case(lambda x: torch.pixel_shuffle(x, 2), X),
    "pixel_unshuffle": _case(lambda x: torch.pixel_unshuffle(x, 3), X),
    "channel_shuffle": _case(lambda x: torch.channel_shuffle(x, 2), X),
    "native_channel_shuffle": _case(lambda x: A.native_channel_shuffle(x, 2), X),
    "repeat": _case(lambda x: x.repeat(2, 1, 3), MAT),
    "tile": _case(lambda x: (A.tile(x, [2]), A.tile(x, [2, 1, 1, 1, 1])), X),
    "repeat_interleave": _case(lambda x: (x.repeat_interleave(2, 1), x.repeat_interleave(3)), MAT),
    "roll": _case(lambda x: (x.roll((1, -2), (2, 3)), x.roll(3)), X),
    "flip": _case(lambda x: x.flip((1, -1)), X),
    "pad": _case(
        lambda x: (
            nn.functional.pad(x, (1, -2, 0, 3), value=0.5),
            nn.functional.pad(x, (2, 1), "circular") if x.ndim == 3 else nn.functional.pad(x, (2, 1, 0, 0), "circular"),
        ),
        X,
    ),
    "constant_pad_nd": _case(lambda x: A.constant_pad_nd(x, [1, 0, 0, 1], 2.0), X),
    "reflection_pad1d": _case(lambda x: A.reflection_pad1d(x, [2, 1]), ROW),
    "reflection_pad2d": _case(lambda x: A.reflection_pad2d(x, [2, 1, 0, 3]), X),
    "reflection_pad3d": _case(lambda x: A.reflection_pad3d(x, [2, 1, 0, 3, 1, 1]), BOX),
    "replication_pad1d": _case(lambda x: A.replication_pad1d(x, [2, 1]), ROW),
    "replication_pad2d": _case(lambda x: A.replication_pad2d(x, [2, 1, 0, 3]), X),
    "replication_pad3d": _case(lambda x: A.replication_pad3d(x, [2, 1, 0, 3, 1, 1]), BOX),
    "cat": _case(lambda x, y: torch.cat([x, y, torch.zeros(0)], 1), X, Y),
    "concat": _case(lambda x, y: A.concat([x, y], 1), X, Y),
    "concatenate": _case(lambda x, y: A.concatenate([x, y], -1), X, Y),
    "stack": _case(lambda x, y: torch.stack([x, y], -1), X, Y),
    "split": _case(lambda x: x.split(4, -1), X),
    "split_with_sizes": _case(lambda x: A.split_with_sizes(x, [1, 2, 3], 2), X),
    "unsafe_split": _case(lambda x: A.unsafe_split(x, 4, -1), X),
    "unsafe_split_with_sizes": _case(lambda x: A.unsafe_split_with_sizes(x, [1, 5], 2), X),
    "chunk": _case(lambda x: x.chunk(4, -1), X),
    "unsafe_chunk": _case(lambda x: A.unsafe_chunk(x, 2, 1), X),
    "tensor_split": _case(lambda x: (*A.tensor_split(x, 4, 3), *A.tensor_split(x, [1, 2], 1)), X),
    "unbind": _case(lambda x: x.unbind(1), X),
    "slice": _case(lambda x: x[:, -3:, 1:5:2, 4:1], X),
    "narrow": _case(lambda x: x.narrow(-1, -3, 2), X),
    "select": _case(lambda x: x[-1, :, 2], X),
    "slice_scatter": _case(lambda x, y: A.slice_scatter(x, y[:, :, ::2], 2, 0, None, 2), X, Y),
    "select_scatter": _case(lambda x, y: A.select_scatter(x, y[0], 0, -1), X, Y),
    "index": _case(lambda x, i: (x[:, :, i], x[0, i, i - 1]), X, INDEX),
    "_unsafe_index": _case(lambda x, i: A._unsafe_index(x, [None, i]), X, INDEX),
    "index_select": _case(lambda x, i: x.index_select(-1, i), X, INDEX),
    "embedding": _case(lambda w, i: nn.functional.embedding(i, w), MAT, INDEX),
    "gather": _case(lambda x: x.gather(-1, (x > 0).long()), X),
    "take_along_dim": _case(lambda x, i: torch.take_along_dim(x, i[:, None], 0), MAT, INDEX),
    "scatter": _case(
        lambda x, y: (x.scatter(1, (y > 0).long(), y), x.scatter(-1, (y > 0).long(), 3.0)), X, Y
    ),
    "index_put": _case(lambda x, y: A.index_put(x, [y > 0], torch.tensor(2.0)), X, Y),
    "_unsafe_index_put": _case(lambda x, y: A._unsafe_index_put(x, [y[:, 0] > 0], torch.tensor(2.0)), X.permute(0, 2, 3, 1), Y),
    "unfold": _case(lambda x: x.unfold(2, 3, 2), X),
    "tril": _case(lambda x: x.tril(1), X),
    "triu": _case(lambda x: x.triu(-1), X),
    "one_hot": _case(lambda i: nn.functional.one_hot(i, 5), INDEX),
}  # fmt: skip

MORE: dict[str, Case] = {
    "integers become floats": _case(lambda i: (i.exp(), i / 2, i.abs().sqrt(), i.float().mean()), INT),
    "integers stay integers": _case(
        lambda i: (i // 2, i % 3, i * 2, i + i, i.sum(), i.prod(1), i.clamp(-1, 3), i.floor(), i.trunc(), -i, i**2), INT
    ),
    "integer and float": _case(lambda i, x: (i + x, i * 0.5, x > i, i == 3, i.clamp(0.5, 2.5)), INT, MAT[:2, :3]),
    "division rounded": _case(
        lambda i, x: (
            i.div(3, rounding_mode="trunc"),
            i.div(-3, rounding_mode="floor"),
            x.div(0.3, rounding_mode="trunc"),
            x.trunc(),
        ),
        INT,
        MAT,
    ),
    "bools": _case(lambda m: (m.any(), m.all(1), m.sum(0), m.any(0, keepdim=True), m & True, m.float().mean()), BOOL),
    "number first": _case(lambda x: (1 - x, 2 / (x.abs() + 1), 2**x, 3 * x), X),
    "0-d tensors": _case(lambda x, i: (x * torch.tensor(2), i * torch.tensor(0.5), x + torch.tensor(1.0, dtype=torch.float64)), X, INT),
    "half": _case(lambda x: (x.half() + 1).float() * x.bfloat16().sum(), MAT),
    "sum in another dtype": _case(lambda x: (x.sum(dtype=torch.float64), x.softmax(-1, dtype=torch.float64), x.mean((0, -1))), X),
    "argmax of all": _case(lambda x: (x.argmax(), x.argmin(keepdim=True), x.argmax(1), x.argmin(-1, True)), X),
    "var": _case(lambda x: (x.var(1), x.var((1, 2), correction=0), x.std(unbiased=False), x.std(0, keepdim=True)), X),
    "elu of other scales": _case(lambda x: A.elu(x, 0.5, 2.0, 3.0), X),
    "negative indices": _case(lambda x: x[:, torch.tensor([-1, 0, -2])] + x[:, [1, -1, 0]], X),
    "negative indices at run time": _case(lambda x, i: (x[i], x[:, i - 2]), X[:, :3].transpose(0, 1), INDEX),
    "nothing to do": _case(
        lambda x: (x.reshape(2, 4, 6, 6), x[:], x.repeat(1, 1, 1, 1), x.permute(0, 1, 2, 3), x.split(6, -1)), X
    ),
    "unbatched": _case(
        lambda x, w: (torch.conv2d(x, w), nn.functional.adaptive_avg_pool2d(x, (1, None)), nn.functional.avg_pool2d(x, 2)),
        X[0],
        _weights(3, 4, 2, 2),
    ),
    "odd same padding": _case(lambda x, w: torch.conv2d(x, w, padding="same"), X, _weights(3, 4, 2, 4)),
    "valid padding": _case(lambda x, w: torch.conv2d(x, w, padding="valid"), X, _weights(3, 4, 2, 4)),
    "interpolate by factor": _case(lambda x: nn.functional.interpolate(x, scale_factor=1.3, mode="bilinear"), X),
    "attention without a view": _case(
        lambda q: nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=torch.zeros(6, 6, dtype=torch.bool)), X
    ),
    "ranges and masks are known": _case(
        lambda x: x + torch.arange(6) * torch.ones(6, 6).tril() + torch.linspace(0, 1, 6) + torch.eye(6), X
    ),
    "made like the input": _case(lambda x: x + x.new_full((6,), 3) + torch.zeros_like(x) + torch.empty_like(x).fill_(1), X),
    "decomposed by PyTorch": _case(
        lambda x: (nn.functional.cosine_similarity(x, x + 1), nn.functional.softsign(x), nn.functional.normalize(x), torch.inner(x, x)), X
    ),
}  # fmt: skip


class _Wrapped(nn.Module):
    def __init__(self, f: Callable[..., Any]) -> None:
        super().__init__()
        self.f = f

    def forward(self, *inputs: Tensor) -> Any:
        return self.f(*inputs)


def _leaves(tree: Any) -> list[Tensor]:
    return [leaf for item in tree for leaf in _leaves(item)] if isinstance(tree, tuple | list) else [tree]


def _agrees(case: Case) -> None:
    f, inputs = case
    graph = capture(_Wrapped(f), inputs)
    for got, expected in zip(_leaves(interpret(graph, *inputs)), _leaves(f(*inputs)), strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5, equal_nan=True)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The rules that were looked up."""
    names: set[str] = set()

    class Recording(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            names.add(name)
            return super().__getitem__(name)

    monkeypatch.setattr(table, "ATEN", Recording(ATEN))
    return names


@pytest.mark.parametrize("name", sorted(ATEN))
def test_every_rule_agrees_with_pytorch(name: str, used: set[str]) -> None:
    _agrees(CASES[name])
    assert name in used


@pytest.mark.parametrize("name", MORE)
def test_corners_agree_with_pytorch(name: str) -> None:
    _agrees(MORE[name])


def test_every_case_is_of_a_rule() -> None:
    assert set(CASES) == set(ATEN)


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda x: torch.dropout(x, 0.5, True), "dropout is on"),
        (lambda x: nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1), "dropout_p=0"),
        (lambda x: x + torch.randn(6), "random numbers"),
        (lambda x: torch.fft.rfft(x).real, "test_aten.py:.*is not in the op set"),
        (lambda x: x.long() & 3, "bool alone"),
        (lambda x: torch.nn.functional.avg_pool2d(x, 2, divisor_override=3), "divisor_override=3"),
        (lambda x: A.max_pool2d_with_indices(x, [2, 2])[1], "result 1"),
        (lambda x: A.index_put(x, [torch.tensor([0])], torch.tensor(1.0)), "assignment by index"),
        (lambda x: x.repeat_interleave(torch.tensor([1, 2]), 0, output_size=3), "output_size=3"),
        (lambda x: torch.batch_norm(x, None, None, torch.zeros(4), torch.ones(4), True, 0.1, 1e-5, False), "eval mode"),
    ],
)  # fmt: skip
def test_what_we_cannot_do_is_refused_in_one_line(f: Callable[..., Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words) as error:
        capture(_Wrapped(f), X)
    assert "\n" not in str(error.value)
    assert "test_aten.py:" in str(error.value)
