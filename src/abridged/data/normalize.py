"""Normalization of images, and divisions of a set that keep the shares of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Normalize:
    """uint8 images (N, C, H, W) → float32 (x / 255 − mean) / std, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (self.mean, self.std))  # (C, 1, 1)
        return x.float().sub_(255 * mean).div_(255 * std)


def stratified(labels: Sequence[int], sizes: Sequence[int], seed: int) -> list[list[int]]:
    """Indices in parts of the given sizes and a last one with the rest, each with nearly the classes' shares of the whole.

    Samples in a seeded random order are sorted by class, and every n/k-th goes to the part of size k.

    >>> stratified([0, 1] * 5, (2, 4), seed=0)[0] != stratified([0, 1] * 5, (2, 4), seed=1)[0]
    True
    >>> [len(part) for part in stratified([0, 1] * 5, (2, 4), seed=0)]
    [2, 4, 4]
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    rest = sorted(shuffled, key=lambda i: labels[i])
    parts = []
    for size in sizes:
        chosen = {(2 * j + 1) * len(rest) // (2 * size) for j in range(size)}
        parts.append(sorted(rest[i] for i in chosen))
        rest = [sample for i, sample in enumerate(rest) if i not in chosen]
    return [*parts, sorted(rest)]
