"""`Data`: what a network is trained on (train), selected on (val) and reported on (test), and how it is judged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from abridged.data.batches import Augment, Batches, Split, each, halves, normal, samples
from abridged.errors import InputError, first_line
from abridged.tables import Table

SPLIT_SEED = 0  # of the one division of val into val and test

Loss = Callable[[Any, Any], Tensor]  # (outputs, target) → scalar, the mean over the batch
LOSSES = Table[Loss]("loss")


@dataclass(frozen=True)
class Metric:
    """`compute(outputs, target)` gives one value per sample (N,); their mean over a split is the metric."""

    name: str
    compute: Callable[[Any, Any], Tensor]
    higher_is_better: bool = True


METRICS = Table[Metric]("metric")


@dataclass(frozen=True)
class Data:
    """Three splits, and how outputs are judged.

    A split is (X, y) of tensors or numpy arrays (y None: no labels), a torch Dataset of (x, y), or an iterable of (x, y)
    batches that can be iterated again, such as a DataLoader. `val` selects and `test` reports; without a test set, val
    is divided once into two halves, seeded, and `notes` says so. `loss` and `metric` are names of `LOSSES` and
    `METRICS`, or callables (outputs, target) → scalar loss, → one value per sample. `augment(x, generator)` changes
    training batches only; then `transform(x)`, such as a normalization, changes every batch.

    Raises `InputError` for a split that cannot be one, and for unknown names.

    >>> import torch
    >>> x, y = torch.zeros(10, 1, 8, 8), torch.arange(10)
    >>> data = Data((x, y), (x, y))
    >>> [data.samples(split) for split in ("train", "val", "test")], data.notes
    ([10, 5, 5], ('no test set was given: val was divided once, 5 samples to select on and 5 to report on',))
    """

    train: Split
    val: Split
    test: Split = None
    example: Any = None
    loss: str | Loss = "cross-entropy"
    metric: str | Callable[[Any, Any], Tensor] | Metric = "accuracy"
    name: str = "data"
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    augment: Augment | None = None
    transform: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        _ = self.loss_function, self.judge  # unknown names raise here
        for name in ("train", "val", *(["test"] if self.test is not None else [])):
            object.__setattr__(self, name, normal(getattr(self, name), name))
        if self.test is None:
            self._divide_val()

    def _divide_val(self) -> None:
        parts = halves(self.val, SPLIT_SEED)
        if parts is None:
            note = "no test set was given, and val cannot be divided: nothing is left to report on"
        else:
            unit = "batches" if isinstance(parts[0], list) else "samples"
            select, report = (len(part) if isinstance(part, list) else samples(part) for part in parts)
            note = (
                f"no test set was given: val was divided once, {select} {unit} to select on and {report} to report on"
            )
            object.__setattr__(self, "val", parts[0])
            object.__setattr__(self, "test", parts[1])
        object.__setattr__(self, "notes", (*self.notes, note))

    @property
    def loss_function(self) -> Loss:
        return LOSSES[self.loss] if isinstance(self.loss, str) else self.loss

    @property
    def judge(self) -> Metric:
        """The metric, whatever form it was given in."""
        if isinstance(self.metric, str):
            return METRICS[self.metric]
        if isinstance(self.metric, Metric):
            return self.metric
        better = bool(getattr(self.metric, "higher_is_better", True))
        return Metric(getattr(self.metric, "__name__", type(self.metric).__name__), self.metric, better)

    def split(self, name: str) -> Split:
        """The split "train", "val" or "test". Raises `InputError` for any other, and for a test set that is not there."""
        if name not in ("train", "val", "test"):
            raise InputError(f"unknown split '{name}'; known: train, val, test")
        split = getattr(self, name)
        if split is None:
            raise InputError(f"data '{self.name}' has no test split, and its val cannot be divided: give Data(test=…)")
        return split

    def samples(self, split: str) -> int | None:
        """How many samples a split has; None where only iterating would tell."""
        return samples(self.split(split))

    def batches(
        self,
        split: str,
        batch_size: int = 64,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        augment: bool = False,
        shard: tuple[int, int] = (0, 1),
    ) -> Batches:
        """Batches (x, y) of a split, to iterate as often as wanted; `len` is their number.

        Shuffled by (seed, epoch) alone. Batches of the user's own (a DataLoader) keep their size and order. `shard` =
        (rank, processes) gives each process its samples of every batch."""
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        change = self.augment if augment else None
        return Batches(self.split(split), batch_size, split, shuffle, seed, epoch, shard, change, self.transform)

    def example_input(self, batch: int = 1) -> Any:
        """`example` where it was given, else the first `batch` inputs of val."""
        if self.example is not None:
            return self.example
        first = next(iter(self.batches("val", batch)), None)
        if first is None:
            raise InputError("val: the split is empty")
        return each(first.x, lambda x: x[:batch])


def forward(model: Callable[..., Any], x: Any) -> Any:
    """The model's outputs; a tuple is its positional inputs."""
    return model(*x) if isinstance(x, tuple) else model(x)


def copied(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with the model. Raises `InputError` for one that cannot be copied, such as under the
    old torch.nn.utils.weight_norm."""
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a module keeps
        text = first_line(error)
        if "deepcopy protocol" in text:
            text = "a weight is computed; weight_norm and spectral_norm can be copied if of torch.nn.utils.parametrizations"
        raise InputError(f"the model cannot be copied: {text}") from error


def logits(
    outputs: Any,
    whose: str = "the model",
    mend: str = "give Data a loss and a metric as callables (outputs, target)",
) -> Tensor:
    """The tensor of class scores in a model's outputs: the tensor itself, `.logits`, or the entry "logits".

    Raises `InputError` for outputs without one, which says whose they are and what to do."""
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    if not isinstance(found, Tensor):
        raise InputError(f"{whose} gives {type(outputs).__name__}, no tensor and nothing named logits: {mend}")
    return found


@LOSSES.entry("cross-entropy")
def cross_entropy(outputs: Any, target: Tensor) -> Tensor:
    """−log softmax(outputs)[target], the mean over the batch. Targets are class numbers (N,) or (N, …), or
    probabilities of the shape of the outputs (N, C, …); −100 is left out."""
    scores = logits(outputs)
    target = target if target.is_floating_point() else target.long()
    try:
        return F.cross_entropy(scores, target)
    except IndexError:  # "Target 12 is out of bounds."
        low, high = int(target.min()), int(target.max())
        raise InputError(f"labels from {low} to {high}, but the model has {scores.shape[1]} outputs") from None


@LOSSES.entry("mse")
def mse(outputs: Any, target: Tensor) -> Tensor:
    """Mean squared error of outputs and targets of one shape."""
    return F.mse_loss(logits(outputs), target)


def _accuracy(outputs: Any, target: Tensor) -> Tensor:
    chosen = logits(outputs).argmax(1)
    if chosen.shape != target.shape:
        raise InputError(
            f"labels of shape {tuple(target.shape)}, but the model chooses {tuple(chosen.shape)}: give one class each"
        )
    hits = (chosen == target).double()
    return hits.flatten(1).mean(1) if hits.ndim > 1 else hits


def _top5(outputs: Any, target: Tensor) -> Tensor:
    scores = logits(outputs)
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices
    return (best == target[:, None]).any(1).float()


def _squared_error(outputs: Any, target: Tensor) -> Tensor:
    return (logits(outputs) - target).square().flatten(1).mean(1)


METRICS.entry("accuracy")(Metric("accuracy", _accuracy))
METRICS.entry("top-5 accuracy")(Metric("top-5 accuracy", _top5))
METRICS.entry("mse")(Metric("mse", _squared_error, higher_is_better=False))
