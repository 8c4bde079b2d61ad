"""The arguments of a training: optimizers and schedulers as callables, masks as a protocol, numbers validated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from abridged.data import Batch
from abridged.errors import InputError
from abridged.training.history import EarlyStop

Objective = Callable[[Any, Batch], Tensor]  # (outputs, batch) → scalar, the mean over the batch
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer, int], LRScheduler]
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip is the largest gradient norm and must be positive, not {self.clip}")
        if self.precision not in AUTOCAST:
            raise InputError(f"unknown precision '{self.precision}'; known: {', '.join(AUTOCAST)}")
