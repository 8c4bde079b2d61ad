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
STARTS = 3
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
    once = cache(lambda rank: als(weight, rank, starts=1))

    def error(ranks: Ranks) -> float:  # of one start: a bound
        return float((weight - from_factors(once(*ranks))).square().sum())

    def kernels(ranks: Ranks) -> Kernels:
        out, into, *axes = als(weight, *ranks)
        shaped = shapes(ranks)
        middle = [factor.T.reshape(shape) for factor, shape in zip(axes, shaped[1:-1], strict=True)]
        return into.T.reshape(shaped[0]), *middle, out.reshape(shaped[-1])

    def shapes(ranks: Ranks) -> tuple[Shape, ...]:
        ones, n = (1,) * len(k), len(k)
        middle = [(ranks[0], 1, *(k[axis] if axis == at else 1 for axis in range(n))) for at in range(n)]
        return (ranks[0], inputs, *ones), *middle, (outputs, ranks[0], *ones)

    return Decomposition(("reduce", *AXES[len(k)], "expand"), (limit,), shapes, kernels, error, tries=8)


def als(tensor: Tensor, rank: int, starts: int = STARTS) -> list[Tensor]:
    """Factors (n, R), one per axis, of the best of several starts; exact at the rank that always suffices."""
    if rank * max(tensor.shape) >= tensor.numel():
        return _exact(tensor, rank)
    if not tensor.any():
        return [tensor.new_zeros(n, rank) for n in tensor.shape]
    runs = [_sweeps(tensor, _start(tensor, rank, seed)) for seed in range(starts)]
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
        error = total - _sweep(tensor, factors)
        _balance(factors)
        if before - error <= SETTLED * error or error <= EXACT * total:
            break
        before = error
    return factors, float((tensor - from_factors(factors)).square().sum())


def _sweep(tensor: Tensor, factors: list[Tensor]) -> float:
    """Every factor in turn is made the best for the others: by how much the error is less than ‖W‖².

    The Khatri–Rao product K of the others is as large as the tensor, R times over, so W₍axis₎ K is contracted axis by axis:
    one of the two long axes first, and what both of them leave serves all axes of the kernel."""
    kernel = range(2, tensor.dim())
    for axis in (0, 1):
        rest: Tensor = torch.tensordot(factors[1 - axis], tensor, ([0], [1 - axis]))  # (R, n, *k)
        factors[axis] = _best(_contracted(rest.movedim(1, -1), [factors[at] for at in kernel]), factors, axis)
    rest = torch.einsum("rn...,nr->r...", rest, factors[1])  # (R, *k)
    for axis in kernel:
        projected = _contracted(rest.movedim(axis - 1, -1), [factors[at] for at in kernel if at != axis])
        factors[axis] = _best(projected, factors, axis)
    last = factors[-1]
    return 2 * float((projected * last.T).sum()) - float((_square(factors, tensor.dim() - 1) * (last.T @ last)).sum())


def _best(projected: Tensor, factors: list[Tensor], axis: int) -> Tensor:
    """The least-squares factor of one axis, the others fixed: W₍axis₎ K (KᵀK)⁻¹, of the first two transposed, (R, n)."""
    square = _square(factors, axis)
    square = square + RIDGE * (square.diagonal().mean() + torch.finfo(square.dtype).tiny) * torch.eye(
        len(square), dtype=square.dtype
    )
    solved: Tensor = torch.cholesky_solve(projected, torch.linalg.cholesky(square)).T
    return solved


def _square(factors: list[Tensor], axis: int) -> Tensor:
    """KᵀK, (R, R): of the Khatri–Rao product of all factors but that of `axis`."""
    return torch.stack([factor.T @ factor for at, factor in enumerate(factors) if at != axis]).prod(0)


def _contracted(rest: Tensor, factors: list[Tensor]) -> Tensor:
    """(R, *k, n) with one factor for each axis of k: (R, n)."""
    for factor in factors:
        rest = torch.einsum("rk...,kr->r...", rest, factor)
    return rest


def _balance(factors: list[Tensor]) -> None:
    """Every component gets the same norm on every axis; its outer product stays."""
    tiny = torch.finfo(factors[0].dtype).tiny
    norms = torch.stack([factor.norm(dim=0).clamp(min=tiny) for factor in factors])
    mean = norms.log().mean(0).exp()
    for factor, norm in zip(factors, norms, strict=True):
        factor *= mean / norm
