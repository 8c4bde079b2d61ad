"""Tucker-2: fewer channels in, a small core, and out again."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from abridged.errors import UnsupportedError
from abridged.factorization.decomposition import METHODS, Decomposition, Kernels, Ranks, Shape, leading

SWEEPS, SETTLED = 10, 1e-6  # of HOOI: at most, and the share of ‖W‖² below which a gain no longer counts


@METHODS.entry("tucker")
def tucker(weight: Tensor, gram: Tensor | None = None) -> Decomposition:
    """Tucker-2: 1×1 to R_i channels, k×k to R_o, 1×1 to O: W ≈ core ×_o U ×_i V; two ranks (R_o, R_i).

    Started by HOSVD (the leading singular vectors of both channel unfoldings; De Lathauwer et al. 2000), refined by
    alternating HOOI sweeps, each of which is the best U for its V and so never worse (Kim et al. 2016,
    https://arxiv.org/abs/1511.06530). `error` is that of HOSVD, exactly. I·R_i + R_i·R_o·k + R_o·O parameters."""
    if math.prod(weight.shape[2:]) == 1:
        raise UnsupportedError("tucker needs a kernel larger than 1; for a matrix use svd")
    outputs, inputs, *k = weight.shape
    tensor = weight.flatten(2)  # (O, I, K)
    bases = cache(lambda: hosvd(tensor))

    @cache
    def lost() -> Tensor:
        """Energy outside of the leading r_o × r_i block of HOSVD's whole core, (O' + 1, I' + 1)."""
        u, v = bases()
        kept = torch.einsum("oik,or,is->rsk", tensor, u, v).square().sum(2).cumsum(0).cumsum(1)
        return (tensor.square().sum() - torch.nn.functional.pad(kept, (1, 0, 1, 0))).clamp(min=0)

    def kernels(ranks: Ranks) -> Kernels:
        u, v = hooi(tensor, *(basis[:, :rank] for basis, rank in zip(bases(), ranks, strict=True)))
        core = torch.einsum("oik,or,is->rsk", tensor, u, v).reshape(*ranks, *k)
        ones = (1,) * len(k)
        return v.T.reshape(ranks[1], inputs, *ones), core, u.reshape(outputs, ranks[0], *ones)

    def shapes(ranks: Ranks) -> tuple[Shape, ...]:
        ones = (1,) * len(k)
        return (ranks[1], inputs, *ones), (*ranks, *k), (outputs, ranks[0], *ones)

    limits = (min(outputs, inputs * math.prod(k)), min(inputs, outputs * math.prod(k)))
    return Decomposition(
        ("reduce", "core", "expand"), limits, shapes, kernels, lambda ranks: float(lost()[ranks]),
        lambda: (tensor.flatten(1), tensor.transpose(0, 1).flatten(1)),
    )  # fmt: skip


def hosvd(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal bases (O, ·) and (I, ·): the left singular vectors of both channel unfoldings of (O, I, K)."""
    return leading(tensor.flatten(1)), leading(tensor.transpose(0, 1).flatten(1))


def hooi(tensor: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Better bases of the same ranks: in turn the best U for V and the best V for U, until the kept energy settles."""
    kept, total = -1.0, float(tensor.square().sum())
    for _ in range(SWEEPS):
        u = leading(torch.einsum("oik,is->osk", tensor, v).flatten(1))[:, : u.shape[1]]
        v = leading(torch.einsum("oik,or->irk", tensor, u).flatten(1))[:, : v.shape[1]]
        now = float(torch.einsum("oik,or,is->rsk", tensor, u, v).square().sum())
        if now - kept <= SETTLED * total:
            break
        kept = now
    return u, v
