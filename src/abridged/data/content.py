"""What data hold, in a few characters: a run or a training goes on only with the data with which it began."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from abridged.data.batches import Batch, as_batch, each
from abridged.data.data import Data

VALUES = 65_536  # of a tensor that are looked at, at equal distances


def digest(tensors: Iterable[Tensor]) -> str:
    """A short SHA-256 over dtypes, shapes and bits."""
    total = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        total.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        total.update(plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else b"")
    return total.hexdigest()[:16]


def fingerprint(data: Data, splits: Sequence[str] = ("train", "val")) -> str:
    """Name, sizes of the splits, and a digest of some of their values and of what `transform` makes of the first samples.

    Of (X, y) tensors values at equal distances, of a Dataset its first, middle and last sample, where it gives the same
    twice (random augmentation does not); of other batches nothing, since only iterating would tell. A Dataset draws from
    the global random generators if it will: the caller keeps them."""
    parts = [f"{data.samples(name)} {_of(data, name)}" for name in splits if getattr(data, name) is not None]
    return f"{data.name} {', '.join(parts)}"


def _of(data: Data, name: str) -> str:
    split = data.split(name)
    if isinstance(split, Batch):
        first = next(iter(data.batches(name, 2))).rows(slice(0, 2))
        return digest([*map(_thinned, _tensors(split)), *_tensors(first)])
    if not isinstance(split, Dataset):
        return ""
    once, again = (digest(_some(split, name)) for _ in range(2))
    return once if once == again else ""


def _some(split: Any, name: str) -> list[Tensor]:
    places = sorted({0, len(split) // 2, len(split) - 1}) if len(split) else []
    collate = torch.utils.data.default_collate
    return [tensor for i in places for tensor in _tensors(as_batch(collate([split[i]]), name))]


def _tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    for part in batch:
        each(part, found.append)
    return found


def _thinned(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1)[:: max(1, tensor.numel() // VALUES)]
