"""How good outputs are: the arithmetic of a metric over a split. Confidence intervals are measurement's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from abridged.data.batches import Batch, each
from abridged.data.data import Data, Metric, forward
from abridged.errors import InputError, expect
from abridged.progress import bar


@dataclass(frozen=True)
class Score:
    """A metric over a split: the mean and standard deviation of its per-sample values. `correct` counts the ones when
    every value is 0 or 1 (a fraction such as accuracy), and is None otherwise."""

    metric: str
    value: float
    n: int
    std: float
    correct: int | None
    split: str
    higher_is_better: bool = True


def evaluate(
    predict: nn.Module | Callable[..., Any],
    data: Data,
    split: str = "val",
    batch_size: int = 256,
    *,
    exact: bool = False,
    label: str | None = None,
    shard: tuple[int, int] = (0, 1),
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Score:
    """The metric of `data` for a module (in eval mode, without gradients, where its parameters are; its modes are
    restored) or for any callable of the same inputs, such as an artifact.

    `exact` calls with exactly `batch_size` samples each time, for runtimes of one shape: the last batch is filled up
    with copies, whose outputs are not counted. `label` shows a bar. `shard` and `reduce` (sum over processes) divide
    the work. Raises `InputError` for an empty split, one without labels, and a metric that gives no value per sample.

    >>> data = Data((torch.eye(4), torch.arange(4)), (torch.eye(4), torch.tensor([0, 1, 2, 0])), (torch.eye(4), torch.arange(4)))
    >>> score = evaluate(lambda x: x, data)
    >>> score.correct, score.n, score.value
    (3, 4, 0.75)
    """
    if not callable(predict):
        raise InputError(f"evaluate takes a module, an artifact or a callable, not {type(predict).__name__}")
    expect(getattr(data, "judge", None), Metric, "data must be an ab.Data")
    metric = data.judge
    batches: Iterable[Batch] = data.batches(split, batch_size, shard=shard)
    batches = rebatch(batches, batch_size) if exact else batches
    sums = torch.zeros(4, dtype=torch.float64)  # samples, sum, sum of squares, values that are neither 0 nor 1
    with judging(predict) as device, bar(label or "", data.samples(split), shown=label is not None) as task:
        for batch in batches:
            values = _values(predict, metric, batch, split, device, batch_size if exact else 0)
            whole = (values == 0) | (values == 1)
            sums += torch.stack([values.new_tensor(len(values)), values.sum(), values.square().sum(), (~whole).sum()])
            task.advance(len(values))
    n, total, squares, fractional = reduce(sums).tolist()
    if not n:
        raise InputError(f"{split}: the split is empty")
    mean = total / n
    variance = max(0.0, squares / n - mean**2) * n / max(1.0, n - 1) if math.isfinite(mean) else math.nan
    correct = round(total) if not fractional else None
    return Score(metric.name, mean, int(n), math.sqrt(variance), correct, split, metric.higher_is_better)


def rebatch(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same samples in batches of exactly `size`, the last one shorter."""
    kept: Batch | None = None
    for batch in batches:
        kept = batch if kept is None else _joined(kept, batch)
        while kept.size >= size:
            yield kept.rows(slice(0, size))
            kept = kept.rows(slice(size, None))
    if kept is not None and kept.size:
        yield kept


def _joined(first: Batch, second: Batch) -> Batch:
    def join(a: Any, b: Any) -> Any:
        return tuple(map(join, a, b)) if isinstance(a, tuple) else torch.cat([a, b])

    return Batch(join(first.x, second.x), join(first.y, second.y))


@contextmanager
def judging(predict: nn.Module | Callable[..., Any]) -> Iterator[torch.device]:
    """Eval mode without gradients for the block; gives the module's device, and restores the mode of every submodule."""
    if not isinstance(predict, nn.Module):
        yield torch.device("cpu")
        return
    modes = {module: module.training for module in predict.modules()}
    predict.eval()
    try:
        with torch.no_grad():
            yield device_of(predict)
    finally:
        for module, mode in modes.items():
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Where a module's first parameter or buffer is."""
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def _values(predict: Any, metric: Metric, batch: Batch, split: str, device: torch.device, fill: int) -> Tensor:
    """The metric's value per sample (N,), float64 on the CPU. `fill`: samples per call, 0 for as many as there are."""
    if batch.y is None:
        raise InputError(f"{split}: there are no labels to judge by")
    inputs = each(batch.x, lambda x: x.to(device))
    if fill > batch.size:
        index = torch.arange(fill).clamp(max=batch.size - 1)
        outputs = forward(predict, each(inputs, lambda x: x[index]))
        outputs = each(outputs, lambda tensor: tensor[: batch.size])
    else:
        outputs = forward(predict, inputs)
    values = metric.compute(outputs, each(batch.y, lambda y: y.to(device)))
    if not isinstance(values, Tensor) or values.shape != (batch.size,):
        shape = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"metric '{metric.name}' must give one value per sample, ({batch.size},), not {shape}")
    return values.detach().cpu().double()
