"""`distill`: train a student on a teacher's outputs. The teacher is only looked at: not a bit of it changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from abridged.data import Batch, Data, check, forward, logits
from abridged.data.batches import each
from abridged.data.evaluate import judging
from abridged.distillation.losses import LOSSES, Outputs
from abridged.errors import InputError
from abridged.training import History, fit, train_device
from abridged.training.checkpoint import digest
from abridged.training.surroundings import borrowed


def distill(student: nn.Module, teacher: nn.Module, data: Data, *, epochs: int = 20, **options: Any) -> nn.Module:
    """Train `student` in place on the outputs of `teacher`, and return it. Options are those of `distill_fit`.

    >>> from abridged.data.sets import get
    >>> teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))
    >>> distill(student, teacher, get("digits"), temperature=4.0, alpha=0.7, epochs=1) is student
    True
    """
    distill_fit(student, teacher, data, epochs=epochs, **options)
    return student


def distill_fit(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    *,
    temperature: float = 4.0,
    alpha: float = 0.7,
    loss: str = "kd",
    epochs: int = 20,
    device: str | torch.device | None = None,
    **options: Any,
) -> History:
    """Train `student` in place with a loss of `LOSSES`; further options are those of `training.fit`. Returns its History.

    The teacher runs in eval mode, without gradients; its weights, statistics, modes and `requires_grad` stay as they
    are. With alpha = 1 the labels are not used and may be absent.

    Raises `InputError` for a teacher that is the student or shares parameters with it, that has other classes or gives
    NaN, for temperature ≤ 0 and alpha outside [0, 1]; then nothing was trained."""
    function = partial(LOSSES[loss], temperature=temperature, alpha=alpha)
    check(data, student, labels=alpha < 1)
    _compatible(student, teacher, data, function)

    def objective(outputs: Any, batch: Batch) -> Tensor:
        with torch.no_grad():
            taught = Outputs(logits(forward(teacher, batch.x)))
        return function(Outputs(logits(outputs)), taught, batch)

    hyper = {"distillation": [loss, temperature, alpha], "teacher": digest(teacher.state_dict().values())}
    options = {"label": "distil", **options, "identity": {**hyper, **(options.get("identity") or {})}}
    with borrowed(teacher, train_device(student, device)):
        teacher.eval()
        return fit(student, data, objective=objective, epochs=epochs, device=device, **options)


def _compatible(student: nn.Module, teacher: nn.Module, data: Data, function: Callable[..., Tensor]) -> None:
    """Refuse, before any training, a pair that cannot learn from each other, by the loss of two samples."""
    if {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}:
        what = "is the student" if teacher is student else "shares parameters with the student"
        raise InputError(f"the teacher {what}: give a copy, copy.deepcopy(model), made before the student is changed")
    if data.loss == "mse":
        raise InputError("distillation is for classification: the data's loss is mse, not cross-entropy")
    batch = next(iter(data.batches("train", 2))).rows(slice(0, 2))
    mine, taught = (_outputs(model, batch) for model in (student, teacher))
    if mine.logits.shape[1:] != taught.logits.shape[1:]:
        counts = f"{taught.logits.shape[1]} classes and the student {mine.logits.shape[1]}"
        raise InputError(f"the teacher has {counts}: both must give the same ones")
    if not taught.logits.isfinite().all():
        raise InputError("the teacher gives NaN or infinity: load other weights")
    function(mine, taught, batch)


def _outputs(model: nn.Module, batch: Batch) -> Outputs:
    with judging(model) as device:
        return Outputs(logits(forward(model, each(batch.x, lambda x: x.to(device)))).cpu())
