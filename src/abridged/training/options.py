"""The arguments of a training: optimizers and schedulers as callables, masks as a protocol, numbers validated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from abridged.data import Batch
from abridged.errors import InputError, expect
from abridged.training.history import Callback, EarlyStop

Objective = Callable[[Any, Batch], Tensor]  # (outputs, batch) → scalar, the mean over the batch
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer, int], LRScheduler]
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@runtime_checkable
class HeldMasks(Protocol):
    """What the loop asks of masks: hold the zeros of an optimizer's parameters, and a state to resume from."""

    @property
    def density(self) -> float: ...
    def hold(self, optimizer: Optimizer) -> Any: ...
    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state: Any) -> None: ...


def adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """AdamW with learning rate 0.001 (Loshchilov & Hutter, 2019)."""
    return torch.optim.AdamW(parameters, lr=1e-3)


def cosine(optimizer: Optimizer, total_steps: int, warmup: float = 0.05) -> LRScheduler:
    """Linear warm-up over a share of the steps, then half a cosine down to zero (Loshchilov & Hutter, 2017)."""
    rising = max(1, round(warmup * total_steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total_steps - rising))))

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The optimizer's learning rate throughout."""
    return LambdaLR(optimizer, lambda step: 1.0)


@dataclass(frozen=True)
class Options:
    """The arguments of a training that are plain numbers and words; validated."""

    epochs: int
    batch_size: int
    accumulate: int
    clip: float | None
    precision: str
    seed: int
    keep_best: bool
    early_stop: EarlyStop | None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            value = getattr(self, name)
            if not whole(value) or value < 1:
                raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not whole(self.seed):
            raise InputError(f"seed must be a whole number, not {self.seed!r}")
        if self.clip is not None and not (isinstance(self.clip, (int, float)) and self.clip > 0):
            raise InputError(f"clip is the largest gradient norm and must be positive, not {self.clip!r}")
        if self.precision not in AUTOCAST:
            raise InputError(f"unknown precision '{self.precision}'; known: {', '.join(AUTOCAST)}")
        expect(self.early_stop, (EarlyStop, type(None)), "early_stop must be an EarlyStop(patience=…)")


def whole(value: object) -> bool:
    """Whether it is a whole number, numpy's too; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def look(scheduler: Any, masks: Any, callbacks: Any, checkpoint: Any) -> None:
    """Raise `InputError` for arguments of a training that are no such thing."""
    if not callable(scheduler):
        raise InputError(f"scheduler must be a callable (optimizer, total steps) → LRScheduler, not {scheduler!r}")
    expect(masks, (HeldMasks, type(None)), "masks must be what ab.prune returned")
    expect(callbacks, Sequence, "callbacks must be a list of Callback")
    for callback in callbacks:
        expect(callback, Callback, "callbacks must be a list of Callback")
    expect(checkpoint, (str, Path, type(None)), "checkpoint must be a directory")
