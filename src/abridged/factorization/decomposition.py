"""What a method gives: a weight as a chain of smaller convolution kernels, for any ranks, and what these ranks cost in error.

A kernel is the weight of a convolution, (O, I, *k), in float64; a linear layer has no k. Applied one after the other, the
kernels of a chain act like the one they came from. A kernel whose I is smaller than the O of the kernel before it is grouped
(CP's are depthwise). Every axis of k is larger than 1 in at most one kernel of a chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from abridged.tables import Table

Ranks = tuple[int, ...]
Shape = tuple[int, ...]
Kernels = tuple[Tensor, ...]

AXES = {1: ("along",), 2: ("vertical", "horizontal"), 3: ("deep", "vertical", "horizontal")}


@dataclass(frozen=True)
class Decomposition:
    """One weight taken apart by one method; nothing is computed before it is asked for.

    `names`: of the kernels. `limits`: the largest of each rank, where the chain is exact. `shapes(ranks)`: of the kernels.
    `kernels(ranks)`: the chain. `error(ranks)`: its squared error ‖W − W̃‖², or a bound that is cheaper to know; under an
    activation-aware method ‖(W − W̃)C^½‖². `unfoldings()`: one matrix per rank, whose rank it is; none where a method
    has no such matrices. `tries`: how many ranks a search over all of them may look at, since some errors take long."""

    names: tuple[str, ...]
    limits: Ranks
    shapes: Callable[[Ranks], tuple[Shape, ...]]
    kernels: Callable[[Ranks], Kernels]
    error: Callable[[Ranks], float]
    unfoldings: Callable[[], tuple[Tensor, ...]] = tuple
    tries: int = 4096


# (weight (O, I, *k) in float64, Gram matrix XᵀX of its inputs (I·k, I·k) where known) → Decomposition.
# Raises `UnsupportedError`, with the reason, for a weight that the method has nothing to say about.
Method = Callable[[Tensor, Tensor | None], Decomposition]
METHODS: Table[Method] = Table("factorization method")

AWARE = ("whitened",)  # the methods that cannot do without the Gram matrix


def size(shapes: tuple[Shape, ...]) -> int:
    """Elements of all kernels together.

    >>> size(((4, 8), (16, 4)))
    96
    """
    return sum(math.prod(shape) for shape in shapes)


def compose(kernels: Kernels) -> Tensor:
    """The one kernel (O, I, *k) that does what a chain does.

    >>> compose((torch.ones(2, 3), torch.ones(4, 2))).tolist()[0]
    [2.0, 2.0, 2.0]
    """
    whole, *rest = kernels
    for kernel in rest:
        groups = whole.shape[0] // kernel.shape[1]
        # Per group and position in the kernel a matrix product; on every axis one of both kernels has one position.
        first, second = (grouped(each, groups) for each in (whole, kernel))  # (g, O, I, *k)
        product = second.movedim((1, 2), (-2, -1)) @ first.movedim((1, 2), (-2, -1))
        whole = product.movedim((-2, -1), (1, 2)).flatten(0, 1)
    return whole


def grouped(weight: Tensor, groups: int) -> Tensor:
    """(groups · O, …) → (groups, O, …)."""
    return weight.reshape(groups, -1, *weight.shape[1:])


def spectrum(matrix: Tensor) -> Tensor:
    """σ², the largest first: the eigenvalues of the smaller of M Mᵀ and MᵀM, many times faster than an SVD.

    Each is exact to rounding of the largest, which is what the energies that we add up need."""
    values: Tensor = torch.linalg.eigvalsh(_small(matrix))
    return values.flip(0).clamp(min=0)


def leading(matrix: Tensor) -> Tensor:
    """The left singular vectors (m, min(m, n)), those of the largest singular values first."""
    vectors: Tensor = torch.linalg.eigh(_small(matrix)).eigenvectors.flip(1)
    left: Tensor = vectors if len(matrix) <= matrix.shape[1] else torch.linalg.qr(matrix @ vectors).Q
    return left


def tails(matrix: Tensor) -> Tensor:
    """The energy beyond each rank 0 … min(m, n): Σ_{i ≥ r} σ_i².

    >>> tails(torch.diag(torch.tensor([2.0, 1.0]))).tolist()
    [5.0, 1.0, 0.0]
    """
    values = spectrum(matrix)
    return torch.cat([values.flip(0).cumsum(0).flip(0), values.new_zeros(1)])


def _small(matrix: Tensor) -> Tensor:
    return matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
