"""Features of different shapes made comparable without anything learned."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

_POOL = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}


def same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (N, C, …) averaged to the smaller of their sizes along each spatial axis; sequences (N, T, D) along T."""
    if a.ndim != b.ndim or a.ndim < 3:
        return a, b
    if a.ndim == 3:
        length = min(a.shape[1], b.shape[1])
        return pooled(a.transpose(1, 2), (length,)).transpose(1, 2), pooled(b.transpose(1, 2), (length,)).transpose(
            1, 2
        )
    size = tuple(map(min, a.shape[2:], b.shape[2:]))
    return pooled(a, size), pooled(b, size)


def pooled(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """(N, C, …) averaged down to `size`; as it is where it has that size."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return _POOL[x.ndim](x, size if len(size) > 1 else size[0])  # type: ignore[arg-type]


def vectors(x: Tensor) -> Tensor:
    """One vector per sample (N, D): maps (N, C, …) and sequences (N, T, D) averaged over their positions."""
    if x.ndim <= 2:
        return x.reshape(len(x), -1)
    return x.mean(1) if x.ndim == 3 else x.flatten(2).mean(2)
