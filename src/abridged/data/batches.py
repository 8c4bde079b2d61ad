"""The three forms a split may have, (X, y) tensors, a Dataset, or batches, and one way to iterate over each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Subset, TensorDataset

from abridged.errors import InputError

# (X, y): tensors or numpy arrays of equal length, y None without labels, X a tuple of them for several inputs;
# a Dataset of (x, y) samples; or an iterable of (x, y) batches that can be iterated again, such as a DataLoader.
Split = Any
Augment = Callable[[Tensor, torch.Generator], Tensor]


class Batch(NamedTuple):
    """The model's input (a tensor, or a tuple of its positional inputs) and the target, None without labels."""

    x: Any
    y: Any

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.x[0] if isinstance(self.x, tuple) else self.x)

    def to(self, device: torch.device) -> Batch:
        return Batch(*(each(part, lambda tensor: tensor.to(device)) for part in self))

    def rows(self, index: Any) -> Batch:
        """The samples that a slice or an index tensor selects."""
        if isinstance(index, Tensor):  # whole rows are copied, several times faster than by tensor[index]
            return Batch(*(each(part, lambda tensor: tensor.index_select(0, index.to(tensor.device))) for part in self))
        return Batch(*(each(part, lambda tensor: tensor[index]) for part in self))


def each(value: Any, apply: Callable[[Tensor], Any]) -> Any:
    """`apply` to every tensor of nested tuples, lists and dicts; what is no tensor stays."""
    if isinstance(value, Tensor):
        return apply(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(each(item, apply) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(each(item, apply) for item in value)
    if isinstance(value, dict):
        return {key: each(item, apply) for key, item in value.items()}
    return value


def mix(seed: int, *more: int) -> int:
    """One seed from several numbers, so that (seed 0, epoch 1) and (seed 1, epoch 0) have nothing in common."""
    return int(np.random.SeedSequence([abs(seed), *more]).generate_state(1, np.uint64)[0] >> 1)


def normal(split: Split, name: str) -> Split:
    """The split in its plainest form: tensors for arrays, a pair for a TensorDataset. Raises `InputError`."""
    if isinstance(split, TensorDataset) and len(split.tensors) == 2:
        split = split.tensors
    if is_pair(split):
        return _pair(split, name)
    if isinstance(split, IterableDataset):
        raise InputError(f"{name}: an IterableDataset has no batches of its own: wrap it in a DataLoader")
    if isinstance(split, Dataset):
        if not hasattr(split, "__len__"):
            raise InputError(f"{name}: a Dataset needs __len__ and __getitem__")
        return split
    if isinstance(split, (str, bytes, dict, Tensor, np.ndarray)) or not hasattr(split, "__iter__"):
        raise InputError(
            f"{name}: {type(split).__name__} is no split: give (X, y) tensors, a Dataset, or a DataLoader of (x, y) batches"
        )
    if (
        not isinstance(split, DataLoader) and iter(split) is split
    ):  # a DataLoader's iter starts workers and draws a seed
        raise InputError(f"{name}: an iterator can be used only once: give a list, a DataLoader or (X, y) tensors")
    return split


def is_pair(split: Split) -> bool:
    """Whether a split is (X, y) tensors, and not a sequence of two batches."""

    def array(value: Any) -> bool:
        return isinstance(value, (Tensor, np.ndarray))

    if not isinstance(split, (tuple, list)) or len(split) != 2:
        return False
    x, y = split
    several = isinstance(x, tuple) and len(x) > 0 and all(map(array, x))
    return (array(x) or several) and (y is None or array(y))


def _pair(split: Any, name: str) -> Batch:
    x, y = split
    tensors = tuple(map(_tensor, x)) if isinstance(x, tuple) else (_tensor(x),)
    target = None if y is None else _tensor(y)
    lengths = [len(tensor) if tensor.ndim else 0 for tensor in (*tensors, *([] if target is None else [target]))]
    if len(set(lengths)) > 1:
        raise InputError(f"{name}: X and y differ in length: {' and '.join(map(str, lengths))}")
    return Batch(tensors if isinstance(x, tuple) else tensors[0], target)


def _tensor(array: Any) -> Tensor:
    if isinstance(array, Tensor):
        return array
    try:
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    except TypeError as error:
        raise InputError(f"an array of dtype {array.dtype} holds no numbers: {str(error).splitlines()[0]}") from None


def samples(split: Split) -> int | None:
    """How many samples a split has; None where only iterating would tell."""
    if isinstance(split, Batch):
        return split.size
    if isinstance(split, DataLoader):
        split = split.dataset
    return len(split) if isinstance(split, Dataset) and hasattr(split, "__len__") else None


def halves(split: Split, seed: int) -> tuple[Split, Split] | None:
    """Two random halves without a sample in common, the same for the same seed; None where that cannot be promised."""
    count = len(split) if isinstance(split, Sequence) and not isinstance(split, Batch) else samples(split)
    if count is None or count < 2:
        return None
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    parts = [sorted(part.tolist()) for part in (order[: (count + 1) // 2], order[(count + 1) // 2 :])]
    choose = _chooser(split)
    return None if choose is None else (choose(parts[0]), choose(parts[1]))


def _chooser(split: Split) -> Callable[[list[int]], Split] | None:
    if isinstance(split, Batch):
        return lambda index: split.rows(torch.tensor(index))
    if isinstance(split, DataLoader):
        if split.batch_size is None or isinstance(split.dataset, IterableDataset):
            return None
        return lambda index: DataLoader(
            Subset(split.dataset, index),
            batch_size=split.batch_size,
            num_workers=split.num_workers,
            collate_fn=split.collate_fn,
            pin_memory=split.pin_memory,
        )
    if isinstance(split, Dataset):
        return lambda index: Subset(split, index)
    return lambda index: [split[i] for i in index] if isinstance(split, Sequence) else None


@dataclass(frozen=True)
class Batches:
    """One pass over a split in batches, as often as it is iterated; `len` is their number.

    A pair or Dataset is shuffled by (seed, epoch) alone; then no batch has a single sample (batch norm could not train
    on it): it joins the one before. Batches of the user's own come as they are. `shard` = (rank, processes) gives each
    process its samples of every batch."""

    split: Split
    batch_size: int
    name: str = "train"
    shuffle: bool = False
    seed: int = 0
    epoch: int = 0
    shard: tuple[int, int] = (0, 1)
    augment: Augment | None = None
    transform: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        count = self._count
        if count is not None:
            return len(self._chunks(count))
        try:
            return len(self.split)
        except TypeError:
            return sum(1 for _ in self.split)

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch, 1, self.shard[0]))
        for batch in self._raw():
            yield Batch(self._input(batch.x, generator), batch.y)

    def _input(self, x: Any, generator: torch.Generator) -> Any:
        if self.augment is not None:
            x = self.augment(x, generator)
        return x if self.transform is None else self.transform(x)

    @property
    def _count(self) -> int | None:
        """Samples of a pair or Dataset; None for batches of the user's own."""
        return samples(self.split) if isinstance(self.split, (Batch, Dataset)) else None

    def _chunks(self, count: int) -> list[tuple[int, int]]:
        """Bounds of the batches. A last one that is too small for training joins the one before."""
        least = 2 * self.shard[1] if self.shuffle else 1
        starts = list(range(0, count, self.batch_size))
        if len(starts) > 1 and count - starts[-1] < min(least, self.batch_size):
            starts.pop()
        chunks = list(pairwise([*starts, count]))
        smallest = min((stop - start for start, stop in chunks), default=0)
        if self.shuffle and smallest < self.shard[1]:
            raise _too_small(self.name, smallest, self.shard[1])
        return chunks

    def _raw(self) -> Iterator[Batch]:
        count = self._count
        if count is None:
            yield from self._users_own()
            return
        order = torch.arange(count)
        if self.shuffle:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(mix(self.seed, self.epoch)))
        rank, processes = self.shard
        indices = [order[start:stop][rank::processes] for start, stop in self._chunks(count)]
        indices = [index for index in indices if len(index)]
        if isinstance(self.split, Batch):
            for index in indices:
                contiguous = not self.shuffle and processes == 1
                yield self.split.rows(slice(int(index[0]), int(index[-1]) + 1) if contiguous else index)
        else:
            lists = [index.tolist() for index in indices]
            own = torch.Generator().manual_seed(mix(self.seed, self.epoch, 2))  # keeps the global generator as it is
            yield from (
                as_batch(item, self.name) for item in DataLoader(self.split, batch_sampler=lists, generator=own)
            )

    def _users_own(self) -> Iterator[Batch]:
        rank, processes = self.shard
        whole = processes == 1 or isinstance(getattr(self.split, "sampler", None), DistributedSampler)
        for item in self.split:
            batch = as_batch(item, self.name)
            if whole:
                yield batch
            elif batch.size >= processes or (not self.shuffle and rank < batch.size):
                yield batch.rows(slice(rank, None, processes))
            elif self.shuffle:
                raise _too_small(self.name, batch.size, processes)


def _too_small(name: str, size: int, processes: int) -> InputError:
    if not size:
        return InputError(f"{name}: the split is empty")
    return InputError(f"{name}: a batch of {size} cannot be divided among {processes} processes")


def as_batch(item: Any, name: str) -> Batch:
    """What a Dataset or loader gave, as a Batch. Raises `InputError` for what is no pair of inputs and targets."""
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        what = f"{len(item)} values" if isinstance(item, (tuple, list)) else type(item).__name__
        raise InputError(f"{name}: a batch must be a pair (inputs, targets), not {what}")
    x, y = (_tensors(part) for part in item)
    x = tuple(x) if isinstance(x, list) else x
    inputs: Iterable[Any] = x if isinstance(x, tuple) else (x,)
    if not all(isinstance(part, Tensor) and part.ndim for part in inputs) or x == ():
        raise InputError(f"{name}: a batch's inputs must be a tensor or a tuple of tensors, not {type(x).__name__}")
    batch = Batch(x, y)
    if isinstance(y, Tensor) and (not y.ndim or len(y) != batch.size):
        raise InputError(f"{name}: a batch of {batch.size} inputs has a target of shape {tuple(y.shape)}")
    return batch


def _tensors(part: Any) -> Any:
    return _tensor(part) if isinstance(part, np.ndarray) else part
