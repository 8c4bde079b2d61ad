"""CP: a sum of R outer products, so that the kernels in the middle are depthwise."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from abridged.errors import UnsupportedError
from abridged.factorization.decomposition import AXES, METHODS, Decomposition, Kernels, Ranks, Shape, leading

SWEEPS, SETTLED = 100, 1e-4  # of ALS: at most, and the relative gain per sweep below which it has settled
EXACT = 1e-12  # the share of ‖W‖² below which an error is none
RESTARTS = 3
RIDGE = 1e-10  # of the mean diagonal: keeps the normal equations solvable when two components become parallel


@METHODS.entry("cp")
def cp(weight: Tensor, gram: Tensor | None = None) -> Decomposition:
    """CP: W[o,i,a,b] ≈ Σ_r U[o,r] V[i,r] A[a,r] B[b,r]: 1×1 to R, depthwise kh×1, depthwise 1×kw, 1×1 to O.

    Alternating least squares (Carroll & Chang 1970; for convolutions Lebedev et al. 2015, https://arxiv.org/abs/1412.6553),
    kept stable by a small ridge and by components of equal norms on all axes, since those of CP may otherwise grow and
    cancel (Phan et al. 2020, https://arxiv.org/abs/2008.05441); the best of 3 starts, one from singular vectors and two
    random, seeded. R (O + I + Σk) parameters: fewest of all, least exact. Every rank is fitted anew."""
    if math.prod(weight.shape[2:]) == 1:
        raise UnsupportedError("cp needs a kernel larger than 1; for a matrix use svd")
    outputs, inputs, *k = weight.shape
    limit = math.prod(weight.shape) // max(weight.shape)  # a rank that always suffices
    fitted = cache(lambda rank: als(weight, rank))

    def error(ranks: Ranks) -> float:
        return float((weight - from_factors(fitted(*ranks))).square().sum())

    def kernels(ranks: Ranks) -> Kernels:
        out, into, *axes = fitted(*ranks)
        shaped = shapes(ranks)
        middle = [factor.T.reshape(shape) for factor, shape in zip(axes, shaped[1:-1], strict=True)]
        return into.T.reshape(shaped[0]), *middle, out.reshape(shaped[-1])

    def shapes(ranks: Ranks) -> tuple[Shape, ...]:
        ones, n = (1,) * len(k), len(k)
        middle = [(ranks[0], 1, *(k[axis] if axis == at else 1 for axis in range(n))) for at in range(n)]
        return (ranks[0], inputs, *ones), *middle, (outputs, ranks[0], *ones)

    return Decomposition(("reduce", *AXES[len(k)], "expand"), (limit,), shapes, kernels, error, tries=8)


def als(tensor: Tensor, rank: int) -> list[Tensor]:
    """Factors (n, R), one per axis, of the best of several starts; exact at the rank that always suffices."""
    if rank * max(tensor.shape) >= tensor.numel():
        return _exact(tensor, rank)
    if not tensor.any():
        return [tensor.new_zeros(n, rank) for n in tensor.shape]
    runs = [_sweeps(tensor, _start(tensor, rank, seed)) for seed in range(RESTARTS)]
    return min(runs, key=lambda run: run[1])[0]


def from_factors(factors: list[Tensor]) -> Tensor:
    """Σ_r of the outer products of the columns r."""
    product = factors[1]  # Khatri–Rao: column r is the Kronecker product of the columns r
    for factor in factors[2:]:
        product = (product[:, None] * factor).flatten(0, 1)
    return (factors[0] @ product.T).reshape([len(factor) for factor in factors])


def _exact(tensor: Tensor, rank: int) -> list[Tensor]:
    """One component for each position on all axes but the longest: unit vectors there, the values on the longest."""
    longest = tensor.shape.index(max(tensor.shape))
    fibres = tensor.movedim(longest, -1).flatten(0, -2)  # (components, n)
    sizes = [n for at, n in enumerate(tensor.shape) if at != longest]
    others = torch.unravel_index(torch.arange(len(fibres)), sizes)
    factors = [torch.nn.functional.one_hot(at, n).to(tensor) for at, n in zip(others, sizes, strict=True)]
    factors.insert(longest, fibres)
    return [torch.nn.functional.pad(factor.T, (0, rank - len(fibres))) for factor in factors]


def _start(tensor: Tensor, rank: int, seed: int) -> list[Tensor]:
    """Seed 0: leading singular vectors of each unfolding, filled up with noise; others: noise alone."""
    generator = torch.Generator().manual_seed(seed)
    factors = []
    for axis, n in enumerate(tensor.shape):
        factor = torch.randn(n, rank, generator=generator, dtype=tensor.dtype)
        if seed == 0:
            u = leading(tensor.movedim(axis, 0).flatten(1))[:, :rank]
            factor[:, : u.shape[1]] = u
        factors.append(factor)
    return factors


def _sweeps(tensor: Tensor, factors: list[Tensor]) -> tuple[list[Tensor], float]:
    """ALS until it settles: the factors and their squared error."""
    total = float(tensor.square().sum())
    before = math.inf
    for _ in range(SWEEPS):
        for axis in range(tensor.dim()):
            factors[axis] = _best(tensor, factors, axis)
        _balance(factors)
        error = float((tensor - from_factors(factors)).square().sum())
        if before - error <= SETTLED * error or error <= EXACT * total:
            break
        before = error
    return factors, error


def _best(tensor: Tensor, factors: list[Tensor], axis: int) -> Tensor:
    """The least-squares factor of one axis, the others fixed: W₍axis₎ K (KᵀK)⁻¹ with K their Khatri–Rao product."""
    square = torch.stack([factor.T @ factor for at, factor in enumerate(factors) if at != axis]).prod(0)
    square = square + RIDGE * (square.diagonal().mean() + torch.finfo(square.dtype).tiny) * torch.eye(
        len(square), dtype=square.dtype
    )
    solved: Tensor = torch.linalg.solve(square, _projected(tensor, factors, axis)).T
    return solved


def _projected(tensor: Tensor, factors: list[Tensor], axis: int) -> Tensor:
    """(W₍axis₎ K)ᵀ, (R, n), one axis after the other, a long one first: K itself is as large as the tensor, R times over."""
    first = 1 if axis == 0 else 0
    whole: Tensor = torch.tensordot(factors[first], tensor, ([0], [first]))  # (R, the other axes)
    others = [at for at in range(tensor.dim()) if at != first]
    whole = whole.movedim(1 + others.index(axis), -1)
    for factor in (factors[at] for at in others if at != axis):
        whole = torch.einsum("rn...,nr->r...", whole, factor)
    return whole


def _balance(factors: list[Tensor]) -> None:
    """Every component gets the same norm on every axis; its outer product stays."""
    tiny = torch.finfo(factors[0].dtype).tiny
    norms = torch.stack([factor.norm(dim=0).clamp(min=tiny) for factor in factors])
    mean = norms.log().mean(0).exp()
    for factor, norm in zip(factors, norms, strict=True):
        factor *= mean / norm
