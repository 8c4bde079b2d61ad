"""Calibration samples: a bounded number of a network's inputs, from whatever data there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from abridged.data import Batch, Batches, Data
from abridged.data.batches import as_batch, each, normal
from abridged.data.data import forward
from abridged.errors import AbridgedError, InputError, first_line

WHERE = "calibration data"


@dataclass(frozen=True)
class Samples:
    """The first `limit` inputs of some data, in batches, the same at each iteration.

    The data is `Data` (its train split), a split as `Data` takes it ((X, y), a Dataset, a loader of (x, y)), a loader
    of inputs alone, or a tensor of inputs. What has no batches of its own is shuffled by the seed. Raises `InputError`
    for anything else and, while iterating, for no samples at all and for NaN or infinity in them.

    >>> [len(x) for x in Samples(torch.zeros(10, 3), limit=7, batch_size=4)]
    [4, 3]
    """

    data: Any
    limit: int = 1024
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("samples", self.limit), ("batch_size", self.batch_size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number from 1, not {value!r}")
        if self.data is None:
            raise InputError(f"no {WHERE}: give data=, an abridged Data, a loader, or a tensor of inputs")
        if not isinstance(self.data, Data):
            pair = (self.data, None) if isinstance(self.data, (Tensor, np.ndarray)) else self.data
            object.__setattr__(self, "data", normal(pair, WHERE))

    def __iter__(self) -> Iterator[Any]:
        done = 0
        for batch in self._batches():
            for start in range(0, min(batch.size, self.limit - done), self.batch_size):
                part = batch.rows(slice(start, min(start + self.batch_size, self.limit - done)))
                _check(part)
                yield part.x
            done += batch.size
            if done >= self.limit:
                return
        if not done:
            raise InputError(f"{WHERE} is empty: give at least one sample")

    def on(self, model: nn.Module) -> Iterator[Any]:
        """The inputs as a model takes them: on its device, and in its floating-point type."""
        tensors = (*model.parameters(), *model.buffers())
        like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(()))
        for x in self:
            yield each(x, lambda part: part.to(like.device, like.dtype if part.is_floating_point() else part.dtype))

    def _batches(self) -> Iterator[Batch]:
        if isinstance(self.data, Data):
            yield from self.data.batches("train", self.batch_size, shuffle=True, seed=self.seed)
        elif isinstance(self.data, (Batch, Dataset)):
            yield from Batches(self.data, self.batch_size, WHERE, shuffle=True, seed=self.seed)
        else:
            for item in self.data:
                yield as_batch((item, None) if isinstance(item, Tensor) else item, WHERE)


def run(model: Callable[..., Any], x: Any, where: str = WHERE) -> Any:
    """The outputs for calibration samples. Raises `InputError` where the model does not run on them."""
    try:
        return forward(model, x)
    except AbridgedError:
        raise
    except Exception as error:  # whatever the user's forward raises
        text = first_line(error)
        raise InputError(f"the model does not run on the {where}: {text}") from error


def _check(batch: Batch) -> None:
    for x in batch.x if isinstance(batch.x, tuple) else (batch.x,):
        if x.is_floating_point() and not x.isfinite().all():
            raise InputError(f"{WHERE} holds NaN or infinity: clean or drop such samples")
