"""One layer taken apart by one method: sizes, MACs and errors of all its ranks, and the module that they make."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import torch
from torch import Tensor, nn

from abridged.errors import UnsupportedError
from abridged.factorization.allocate import Option, worthwhile
from abridged.factorization.chain import KINDS, stored
from abridged.factorization.decomposition import AWARE, METHODS, Decomposition, Kernels, Ranks, compose, size
from abridged.factorization.evbmf import evbmf
from abridged.factorization.layers import Layer
from abridged.factorization.refine import refined

FITTED = 32  # ranks per layer and method whose errors of the outputs are computed, chosen by their errors of the weight


@dataclass(frozen=True, eq=False)
class Factoring:
    """A layer, a method, and the decomposition of each group of channels. `gram`: (groups, I·k, I·k) where known.

    Where it is, errors are relative to the outputs, ‖(W − W̃) X‖² / ‖W X‖²; else to the weight, ‖W − W̃‖² / ‖W‖²."""

    layer: Layer
    method: str
    weight: Tensor  # (groups, O, I, *k), float64
    parts: tuple[Decomposition, ...]
    gram: Tensor | None = None
    _fitted: dict[Ranks, float] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return self.parts[0].names

    @property
    def limits(self) -> Ranks:
        return self.parts[0].limits

    @cached_property
    def total(self) -> float:
        """What errors are relative to: the squared norm of the outputs, or of the weight."""
        return float(squared(self.weight, self.gram)) or 1.0

    def error(self, ranks: Ranks) -> float:
        """The relative squared error, or its bound; of the fitted factors where the inputs are known."""
        if self.gram is None or self.method in AWARE:
            return sum(part.error(ranks) for part in self.parts) / self.total
        if ranks not in self._fitted:
            self._fitted[ranks] = self.achieved(self.kernels(ranks))
        return self._fitted[ranks]

    def parameters(self, ranks: Ranks) -> int:
        return len(self.parts) * size(self.parts[0].shapes(ranks))

    def macs(self, ranks: Ranks) -> int:
        """Of all calls that the example made."""
        shapes = self.parts[0].shapes(ranks)
        uses = [
            KINDS[type(self.layer.module).__name__].uses(self.layer.module, shapes, *call) for call in self.layer.calls
        ]
        return len(self.parts) * sum(
            n * math.prod(shape) for call in uses for n, shape in zip(call, shapes, strict=True)
        )

    def candidates(self) -> list[Ranks]:
        """Ranks that make the layer smaller: all, or as many as the method allows, closer together where they are small."""
        points = max(2, int(self.parts[0].tries ** (1 / len(self.limits)) + 1e-9))
        most = self._largest_smaller()
        grid = product(*(_spread(limit, points) for limit in most))
        smaller = [ranks for ranks in grid if self.parameters(ranks) < self.layer.parameters]
        if self.gram is None or self.method in AWARE:
            return smaller
        by_weight = [Option(self.parameters(r), sum(part.error(r) for part in self.parts), r) for r in smaller]
        return worthwhile(by_weight, FITTED)

    def _largest_smaller(self) -> Ranks:
        """For each rank the largest, all others 1, with which the layer is smaller; at least 1."""
        found = []
        for at, limit in enumerate(self.limits):
            low, high = 1, limit
            while low < high:
                middle = (low + high + 1) // 2
                ranks = tuple(middle if axis == at else 1 for axis in range(len(self.limits)))
                low, high = (middle, high) if self.parameters(ranks) < self.layer.parameters else (low, middle - 1)
            found.append(low)
        return tuple(found)

    def evbmf(self) -> Ranks:
        """The rank of each unfolding above its noise, the largest of all groups; 0 where all is noise."""
        found = [[evbmf(matrix) for matrix in part.unfoldings()] for part in self.parts]
        if not found[0]:
            raise UnsupportedError(f"{self.method} has no matrices whose rank evbmf could tell")
        return tuple(max(ranks) for ranks in zip(*found, strict=True))

    def kernels(self, ranks: Ranks) -> Kernels:
        """The chain, each kernel (groups, O, I, *k); the last is fitted to the layer's inputs where these are known."""
        chains = [part.kernels(ranks) for part in self.parts]
        if self.gram is not None:
            known = zip(chains, self.weight, self.gram, strict=True)
            chains = [refined(chain, weight, gram) for chain, weight, gram in known]
        return tuple(torch.stack(group) for group in zip(*chains, strict=True))

    def module(self, kernels: Kernels) -> nn.Sequential:
        return KINDS[type(self.layer.module).__name__].build(self.layer.module, self.names, kernels)

    def achieved(self, kernels: Kernels) -> float:
        """The relative squared error of finished kernels."""
        whole = torch.stack([compose(group) for group in zip(*kernels, strict=True)])
        return float(squared(self.weight - whole, self.gram)) / self.total


def factoring(layer: Layer, method: str, gram: Tensor | None = None) -> Factoring:
    """Take a layer apart. Raises `UnsupportedError`, with the reason, if the method does not apply to it."""
    weight = stored(layer.module)
    grams = [None] * len(weight) if gram is None else list(gram)
    parts = tuple(METHODS[method](part, known) for part, known in zip(weight, grams, strict=True))
    return Factoring(layer, method, weight, parts, gram)


def squared(weight: Tensor, gram: Tensor | None) -> Tensor:
    """‖W‖², or ‖W X‖² = tr(W C Wᵀ) summed over groups, of W (groups, O, I, *k)."""
    flat = weight.flatten(2)
    return flat.square().sum() if gram is None else ((flat @ gram) * flat).sum().clamp(min=0)


def _spread(limit: int, points: int) -> list[int]:
    """
    >>> _spread(5, 8), _spread(100, 5)
    ([1, 2, 3, 4, 5], [1, 3, 10, 32, 100])
    """
    if limit <= points:
        return list(range(1, limit + 1))
    return sorted({round(limit ** (at / (points - 1))) for at in range(points)})
