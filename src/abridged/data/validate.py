"""One look at the data before work begins: every mistake that would show later as a stack trace or a silent nonsense."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from abridged.data.batches import Batch, each
from abridged.data.data import Data, forward, logits
from abridged.data.evaluate import judging
from abridged.errors import AbridgedError, InputError, expect, first_line

IGNORED = -100  # the label that torch's cross entropy leaves out


def check(data: Data, model: nn.Module | None = None, *, labels: bool = True) -> None:
    """Raise `InputError`, one line, for data that cannot be used: an empty split, a batch that is no pair, NaN in inputs,
    targets of the wrong kind or shape; with a model also inputs that it refuses, labels out of its range, NaN weights.

    (X, y) tensors are looked at whole, other splits at their first batch. `labels=False` allows splits without targets."""
    expect(data, Data, "data must be an ab.Data(train=(x, y), val=(x, y), …)")
    if model is not None:
        valued(model, "model")
    width = None if model is None else _width(data, model)
    for name in ("train", "val", "test"):
        if getattr(data, name) is None:
            continue
        batch = _look(data, name)
        _inputs(batch, name)
        if batch.y is not None:
            _targets(batch, name, data, width)
        elif labels:
            raise InputError(f"{name}: there are no targets (y is None), and the loss needs them")


def valued(model: nn.Module, whose: str) -> None:
    """Raise `InputError` for a module on the meta device, which has shapes and no values."""
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise InputError(f"the {whose} has no values (meta device): load its weights first")


def _look(data: Data, name: str) -> Batch:
    """All samples of a pair as they are stored, or the first batch of what can only be iterated."""
    split = data.split(name)
    first = split if isinstance(split, Batch) else next(iter(islice(data.batches(name), 1)), None)
    if first is None or not first.size:
        raise InputError(f"{name}: the split is empty")
    return first


def _inputs(batch: Batch, name: str) -> None:
    for x in batch.x if isinstance(batch.x, tuple) else (batch.x,):
        if x.is_floating_point() and not finite(x):
            bad = (
                int((~x.isfinite()).flatten(1).any(1).nonzero()[0]) if x.ndim > 1 else int((~x.isfinite()).nonzero()[0])
            )
            raise InputError(f"{name}: sample {bad} holds NaN or infinity: clean or drop such samples")


def finite(x: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity: its smallest and largest value tell, without a copy of it."""
    return not x.numel() or all(bool(bound.isfinite()) for bound in x.aminmax())


def _targets(batch: Batch, name: str, data: Data, width: int | None) -> None:
    y = batch.y
    if data.loss != "cross-entropy" or not isinstance(y, Tensor):
        return
    if y.is_floating_point():
        if y.ndim < 2:
            raise InputError(f"{name}: targets are {_dtype(y)}: cross-entropy wants class numbers, integers: y.long()")
        return
    if y.ndim == 2 and y.shape[1] == 1:
        raise InputError(f"{name}: targets have shape {tuple(y.shape)}: class numbers are of shape (N,): y.squeeze(1)")
    used = y[y != IGNORED]
    low, high = (int(used.min()), int(used.max())) if used.numel() else (0, 0)
    if low < 0:
        raise InputError(f"{name}: label {low} is negative: classes are numbered from 0")
    if width is not None and high >= width:
        raise InputError(
            f"{name}: label {high} is out of range: the model has {width} outputs, classes 0 to {width - 1}"
        )


def _width(data: Data, model: nn.Module) -> int | None:
    """Try the model on two samples of val; the number of its outputs where it gives class scores."""
    for key, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not finite(tensor):
            raise InputError(f"the model's '{key}' holds NaN or infinity: load other weights")
    batch = next(iter(data.batches("val", 2)), None)
    if batch is None or not batch.size:
        raise InputError("val: the split is empty")
    batch = batch.rows(slice(0, 2))
    outputs = _try(model, batch.x)
    if not isinstance(data.loss, str):
        return None
    scores = logits(outputs)
    if not scores.ndim or len(scores) != batch.size:
        raise InputError(
            f"the model gives shape {tuple(scores.shape)} for a batch of {batch.size}: the batch comes first"
        )
    if data.loss == "mse" and isinstance(batch.y, Tensor) and batch.y.shape != scores.shape:
        shapes = f"{tuple(batch.y.shape)} and the model's outputs {tuple(scores.shape)}"
        raise InputError(f"val: two targets have shape {shapes}: they must be equal")
    return scores.shape[1] if data.loss == "cross-entropy" and scores.ndim > 1 else None


def _try(model: nn.Module, x: Any) -> Any:
    with judging(model) as device:
        _same_dtype(model, x)
        try:
            return forward(model, each(x, lambda tensor: tensor.to(device)))
        except AbridgedError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{_dtype(part)} {tuple(part.shape)}" for part in (x if isinstance(x, tuple) else (x,)))
            line = first_line(error)
            raise InputError(f"the model refuses a batch of val, {shapes}: {line}") from error


def _same_dtype(model: nn.Module, x: Any) -> None:
    """The commonest mistake, in clearer words than torch's: float64 from numpy for a float32 model, or raw integers."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    embeds = any(isinstance(module, (nn.Embedding, nn.EmbeddingBag)) for module in model.modules())
    if len(dtypes) != 1 or embeds or not isinstance(x, Tensor) or x.dtype in dtypes:
        return
    dtype = _dtype(torch.empty(0, dtype=dtypes.pop()))
    if x.is_floating_point():
        raise InputError(f"val: inputs are {_dtype(x)} and the model's weights {dtype}: x.to(torch.{dtype}) or astype")
    raise InputError(
        f"val: inputs are {_dtype(x)} and the model's weights {dtype}: scale them, such as x / 255, "
        "or give Data(transform=…)"
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
