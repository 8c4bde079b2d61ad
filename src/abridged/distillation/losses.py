"""Distillation losses: (student, teacher, batch, **hyper) → scalar, the mean over the batch. One function each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from abridged.data import LOSSES as LABEL_LOSSES
from abridged.data import Batch
from abridged.errors import InputError
from abridged.tables import Table


@dataclass(frozen=True)
class Outputs:
    """What one network gave for a batch: class scores (N, C) or (N, C, …), and features by module path."""

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)


LOSSES = Table[Callable[..., Tensor]]("distillation loss")


@LOSSES.entry("kd")
def kd(student: Outputs, teacher: Outputs, batch: Batch, *, temperature: float = 4.0, alpha: float = 0.7) -> Tensor:
    """Hard labels and the teacher's softened ones: (1 − α)·CE(y, s) + α·T²·KL(softmax(t / T) ‖ softmax(s / T)).

    s, t: logits (N, C), or (N, C, …) with KL summed over the further axes; KL is the mean over the batch. T² keeps the
    size of the soft gradients when T changes. At α = 1 no labels are needed. (Hinton, Vinyals & Dean, 2015.)

    Raises `InputError` for temperature ≤ 0, α outside [0, 1], and logits of different shapes.

    >>> same = Outputs(torch.tensor([[2.0, 0.0, -1.0]]))
    >>> kd(same, same, Batch(None, None), alpha=1.0).item()
    0.0
    """
    _valid(temperature, alpha)
    if student.logits.shape != teacher.logits.shape:
        shapes = f"{tuple(student.logits.shape)} and the teacher {tuple(teacher.logits.shape)}"
        raise InputError(f"the student gives logits of shape {shapes}: they must be of the same classes")
    total = torch.zeros((), device=student.logits.device)
    if alpha < 1:
        total = total + (1 - alpha) * LABEL_LOSSES["cross-entropy"](student.logits, batch.y)
    if alpha > 0:
        soft = F.log_softmax(teacher.logits / temperature, dim=1)
        mine = F.log_softmax(student.logits / temperature, dim=1)
        total = total + alpha * temperature**2 * F.kl_div(mine, soft, reduction="batchmean", log_target=True)
    return total


def _valid(temperature: float, alpha: float) -> None:
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature must be positive, not {temperature}")
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha, the weight of the teacher's soft labels, must be between 0 and 1, not {alpha}")
