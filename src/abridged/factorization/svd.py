"""Matrices in two factors: plain, by input channels, and with regard to what the layer really sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from abridged.errors import UnsupportedError
from abridged.factorization.decomposition import METHODS, Decomposition, Kernels, Ranks, Shape, leading, tails

RIDGE = 1e-10  # of the mean eigenvalue: directions that were never seen keep a little weight


def truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(m, r) and (r, n) whose product is the best approximation of rank r (Eckart & Young 1936); √σ goes to each side."""
    a = leading(matrix)[:, :rank]  # orthonormal, so that the best b is exact even where a is not
    b = a.T @ matrix
    root = b.norm(dim=1).sqrt().clamp(min=torch.finfo(b.dtype).tiny)
    return a * root, b / root[:, None]


def in_two(
    matrix: Tensor,
    names: tuple[str, str],
    shapes: Callable[[int], tuple[Shape, Shape]],
    fold: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Decomposition:
    """The truncated SVD (m, r)(r, n) of a matrix, folded into the two kernels of a layer; the error is exact."""
    beyond = cache(lambda: tails(matrix))

    def kernels(ranks: Ranks) -> Kernels:
        pair = zip(fold(*truncated(matrix, *ranks)), shapes(*ranks), strict=True)
        return tuple(kernel.reshape(shape) for kernel, shape in pair)

    return Decomposition(
        names,
        (min(matrix.shape),),
        lambda ranks: shapes(*ranks),
        kernels,
        lambda ranks: float(beyond()[ranks]),
        lambda: (matrix,),
    )


@METHODS.entry("svd")
def svd(weight: Tensor, gram: Tensor | None = None) -> Decomposition:
    """W ≈ A B with W seen as O × (I·k): k×k to R channels, then 1×1; for linear layers, embeddings, any convolution.

    The truncated singular value decomposition is the best in ‖W − AB‖ (Eckart & Young 1936; channel decomposition of
    convolutions: Zhang et al. 2016, https://arxiv.org/abs/1505.06798). R (I·k + O) parameters."""
    return _by_outputs(weight, weight.flatten(1), lambda a, b: (b, a))


@METHODS.entry("whitened")
def whitened(weight: Tensor, gram: Tensor | None = None) -> Decomposition:
    """svd in the norm of the outputs, ‖(W − AB) X‖: what the layer never sees may be wrong (needs calibration data).

    With C = XᵀX = S S, the best A B is the truncated SVD of W S, with S⁻¹ in B (Chen et al. 2021, DRONE; Wang et al. 2024,
    SVD-LLM, https://arxiv.org/abs/2403.07378). Never worse than svd on the outputs of the calibration data."""
    if gram is None:
        raise UnsupportedError("whitened needs the inputs of the layer, which are not known")
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp(min=0) + RIDGE * values.clamp(min=0).mean() + torch.finfo(values.dtype).tiny
    root, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))
    return _by_outputs(weight, weight.flatten(1) @ root, lambda a, b: (b @ inverse, a))


def _by_outputs(
    weight: Tensor, matrix: Tensor, fold: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> Decomposition:
    outputs, *inner = weight.shape

    def shapes(rank: int) -> tuple[Shape, Shape]:
        return (rank, *inner), (outputs, rank, *_ones(weight))

    return in_two(matrix, ("reduce", "expand"), shapes, fold)


@METHODS.entry("channel")
def channel(weight: Tensor, gram: Tensor | None = None) -> Decomposition:
    """W ≈ A B with W seen as I × (O·k): 1×1 to R channels, then k×k; svd of a convolution from the side of its inputs.

    The best in ‖W − AB‖ of all that mix the input channels first (Denton et al. 2014, https://arxiv.org/abs/1404.0736).
    R (I + O·k) parameters."""
    if math.prod(weight.shape[2:]) == 1:
        raise UnsupportedError("channel needs a kernel larger than 1; for a matrix use svd")
    outputs, inputs, *k = weight.shape

    def shapes(rank: int) -> tuple[Shape, Shape]:
        return (rank, inputs, *_ones(weight)), (outputs, rank, *k)

    return in_two(
        weight.transpose(0, 1).flatten(1),  # (I, O·k)
        ("reduce", "expand"),
        shapes,
        lambda a, b: (a.T, b.reshape(len(b), outputs, -1).transpose(0, 1)),
    )


def _ones(weight: Tensor) -> tuple[int, ...]:
    return (1,) * (weight.dim() - 2)
