"""One training's worth of distillation: terms bound to layers, adapters, courses, and where in the course we are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from abridged.data import Batch
from abridged.distillation.losses import LOSSES
from abridged.distillation.table import Adapted, Outputs
from abridged.distillation.terms import Term
from abridged.training import Callback, Moment


@dataclass(frozen=True)
class Part:
    """One term with one teacher (None: the student alone): which layers pair, and what adapts them."""

    term: Term
    weight: float
    teacher: int | None
    pairs: Sequence[tuple[str, str]]  # (student's, teacher's)
    adapters: nn.ModuleList  # one per pair, or none

    def loss(self, student: Outputs, teacher: Outputs, batch: Batch, temperature: float) -> Tensor:
        """Weight times the loss, of outputs whose features are still under each network's own paths."""
        if self.term.needs.layers:
            student, teacher = self._adapted(student, teacher)
        value = LOSSES[self.term.name](student, teacher, batch, **self.term.hyper(temperature))
        return self.weight * value

    def _adapted(self, student: Outputs, teacher: Outputs) -> tuple[Outputs, Outputs]:
        found: dict[str, Adapted] = {}
        for index, (mine, taught) in enumerate(self.pairs):
            s, t = student.features[mine], teacher.features.get(taught, student.features[mine].detach())
            found[mine] = self.adapters[index](s, t) if self.adapters else Adapted(s, t.to(s.dtype))
        variances = {path: pair.variance for path, pair in found.items() if pair.variance is not None}
        return (
            Outputs(student.logits, {path: pair.student for path, pair in found.items()}, variances),
            Outputs(teacher.logits, {path: pair.teacher for path, pair in found.items()}),
        )


class Lesson(Callback):
    """The sum of the parts, at the place in the course that the last step reached.

    As a callback it counts the steps, and its adapters and place are in the checkpoint, so that a resume is exact."""

    def __init__(
        self,
        parts: Sequence[Part],
        alpha: Callable[[float], float],
        temperature: Callable[[float], float],
        steps: int,
    ) -> None:
        self.parts = parts
        self.steps = steps
        self._alpha, self._temperature, self._done = alpha, temperature, 0

    @property
    def adapters(self) -> nn.ModuleList:
        """Of all parts."""
        return nn.ModuleList(part.adapters for part in self.parts)

    @property
    def alpha(self) -> float:
        return self._alpha(self._done / self.steps)

    @property
    def temperature(self) -> float:
        return self._temperature(self._done / self.steps)

    def specs(self, teacher: int | None) -> list[str]:
        """The layers that are read: a teacher's, or with None the student's."""
        wanted = [
            taught if teacher is not None else mine
            for part in self.parts
            if teacher is None or part.teacher == teacher
            for mine, taught in part.pairs
        ]
        return list(dict.fromkeys(wanted))

    def reads_logits(self, teacher: int | None) -> bool:
        """Whether a loss reads those of a teacher, or with None the student's."""
        return any(part.term.needs.logits for part in self.parts if teacher is None or part.teacher == teacher)

    @property
    def teachers(self) -> list[int]:
        """The numbers of those that a loss reads."""
        return sorted({part.teacher for part in self.parts if part.teacher is not None})

    def loss(self, student: Outputs, teachers: Mapping[int, Outputs], batch: Batch) -> Tensor:
        """Σ weight·loss over the parts; of the teachers, those that are read."""
        itself = Outputs(student.logits.detach())
        values = [
            part.loss(student, itself if part.teacher is None else teachers[part.teacher], batch, self.temperature)
            for part in self.parts
        ]
        return torch.stack(values).sum()

    # -- as a callback

    def on_step(self, moment: Moment) -> None:
        self._done = moment.step

    def state_dict(self) -> dict[str, Any]:
        return {"done": self._done, "adapters": dict(self.adapters.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._done = state["done"]
        self.adapters.load_state_dict(state["adapters"])
