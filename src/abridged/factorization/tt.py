"""Tensor train: one axis after the other."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from abridged.errors import UnsupportedError
from abridged.factorization.decomposition import AXES, METHODS, Decomposition, Kernels, Ranks, Shape, leading, tails


@METHODS.entry("tt")
def tt(weight: Tensor, gram: Tensor | None = None) -> Decomposition:
    """Tensor train over (I, *k, O): 1×1, one kernel per spatial axis, 1×1; a rank between each two.

    W[o,i,a,b] ≈ Σ G₁[i,p] G₂[p,a,q] G₃[q,b,s] G₄[s,o] by TT-SVD (Oseledets 2011; for networks Novikov et al. 2015,
    https://arxiv.org/abs/1509.06569). `error` bounds the squared error by the sum over all unfoldings of the energy beyond
    the rank (Oseledets 2011, theorem 2.2)."""
    if math.prod(weight.shape[2:]) == 1:
        raise UnsupportedError("tt needs a kernel larger than 1; for a matrix use svd")
    tensor = weight.movedim(0, -1)  # (I, *k, O)
    sizes = tuple(tensor.shape)
    limits = tuple(min(math.prod(sizes[:cut]), math.prod(sizes[cut:])) for cut in range(1, len(sizes)))

    def unfoldings() -> tuple[Tensor, ...]:
        return tuple(tensor.reshape(math.prod(sizes[:cut]), -1) for cut in range(1, len(sizes)))

    @cache
    def beyond() -> tuple[Tensor, ...]:
        return tuple(tails(matrix) for matrix in unfoldings())

    def error(ranks: Ranks) -> float:
        return sum(float(tail[rank]) for tail, rank in zip(beyond(), ranks, strict=True))

    def shapes(ranks: Ranks) -> tuple[Shape, ...]:
        return tuple(_kernel_shape(sizes, (1, *ranks, 1), at) for at in range(len(sizes)))

    def kernels(ranks: Ranks) -> Kernels:
        # A core (p, n, q) is read as the kernel (q, p, n along its own axis); the ends have p or q = 1.
        cores, shaped = tt_svd(tensor, ranks), shapes(ranks)
        first, *middle, last = (core.movedim(-1, 0) for core in cores)
        return tuple(
            part.reshape(shape) for part, shape in zip((first, *middle, last.movedim(-1, 0)), shaped, strict=True)
        )

    return Decomposition(("reduce", *AXES[len(sizes) - 2], "expand"), limits, shapes, kernels, error, unfoldings)


def tt_svd(tensor: Tensor, ranks: Ranks) -> list[Tensor]:
    """Cores (r, n, r') of a tensor train, cut off one axis at a time by truncated SVD (Oseledets 2011, algorithm 1).

    A rank above what the cut before it has left is filled up with zeros, so that shapes are as asked."""
    cores, rest, before = [], tensor.reshape(1, -1), 1
    for axis, rank in zip(tensor.shape[:-1], ranks, strict=False):
        matrix = rest.reshape(before * axis, -1)
        core = leading(matrix)[:, :rank]
        core = torch.nn.functional.pad(core, (0, rank - core.shape[1]))
        rest = core.T @ matrix
        cores.append(core.reshape(before, axis, rank))
        before = rank
    return [*cores, rest.reshape(before, -1, 1)]


def _kernel_shape(sizes: tuple[int, ...], ranks: Ranks, at: int) -> Shape:
    """The kernel of one core: pointwise at both ends, along one axis between.

    >>> [_kernel_shape((8, 3, 3, 16), (1, 2, 4, 5, 1), at) for at in range(4)]
    [(2, 8, 1, 1), (4, 2, 3, 1), (5, 4, 1, 3), (16, 5, 1, 1)]
    """
    axes = len(sizes) - 2
    if at == 0:
        return (ranks[1], sizes[0], *(1,) * axes)
    if at == len(sizes) - 1:
        return (sizes[-1], ranks[at], *(1,) * axes)
    return (ranks[at + 1], ranks[at], *(sizes[at] if axis == at - 1 else 1 for axis in range(axes)))
