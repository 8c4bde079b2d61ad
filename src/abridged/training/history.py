"""What a training tells: its curves, when to stop early, and the moments at which a callback is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from abridged.errors import AbridgedError, InputError


class TrainingError(AbridgedError):
    """A training broke down: its loss or its gradients became NaN or infinite."""

    exit_status = 2


@dataclass(frozen=True)
class History:
    """One value per epoch: mean training loss, the metric on val (empty where val has no labels), the density of the
    masks (1 without masks), and the learning rate of the epoch's last step."""

    metric_name: str
    higher_is_better: bool = True
    loss: tuple[float, ...] = ()
    metric: tuple[float, ...] = ()
    density: tuple[float, ...] = ()
    lr: tuple[float, ...] = ()
    steps: int = 0
    stopped: str | None = None  # why before the last epoch
    kept: int | None = None  # the epoch, from 1, whose weights the model has when it is not the last
    seconds: float = field(default=0.0, compare=False)

    @property
    def epochs(self) -> int:
        return len(self.loss)

    @property
    def curves(self) -> Mapping[str, tuple[float, ...]]:
        """The curves by name: "loss", "val accuracy", "density", "lr"."""
        judged = {f"val {self.metric_name}": self.metric} if self.metric else {}
        return {"loss": self.loss, **judged, "density": self.density, "lr": self.lr}

    def after(self, *, loss: float, metric: float | None, density: float, lr: float, steps: int) -> History:
        """This history and one epoch more."""
        return replace(
            self,
            loss=(*self.loss, loss),
            metric=self.metric if metric is None else (*self.metric, metric),
            density=(*self.density, density),
            lr=(*self.lr, lr),
            steps=steps,
        )

    def best(self, on: Literal["metric", "loss"] = "metric", min_delta: float = 0.0) -> int:
        """The epoch, from 0, of the best value, the first of equals, among the epochs at the last density: while
        weights are still being removed, an earlier and denser network is no rival of a later one.

        >>> History("accuracy", metric=(0.9, 0.7, 0.8), loss=(1, 3, 2), density=(1.0, 0.1, 0.1)).best()
        2
        """
        values = self.metric if on == "metric" and self.metric else self.loss
        sign = 1 if values is self.metric and self.higher_is_better else -1
        final = [epoch for epoch, density in enumerate(self.density) if density != self.density[-1]]
        first = final[-1] + 1 if final else 0
        best = first
        for epoch in range(first, len(values)):
            if sign * (values[epoch] - values[best]) > min_delta:
                best = epoch
        return best


@dataclass(frozen=True)
class EarlyStop:
    """Stop when the value on val ("metric") or in training ("loss") has not become better by more than `min_delta` for
    `patience` epochs; the model keeps the weights of its best epoch. Epochs before the final density do not count."""

    patience: int = 5
    on: Literal["metric", "loss"] = "metric"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1 or self.min_delta < 0:
            raise InputError(f"early stop: patience must be at least 1 and min_delta at least 0, not {self}")
        if self.on not in ("metric", "loss"):
            raise InputError(f"early stop: on must be 'metric' or 'loss', not '{self.on}'")

    def reason(self, history: History) -> str | None:
        """Why to stop now, or None."""
        waited = history.epochs - 1 - history.best(self.on, self.min_delta)
        name = f"val {history.metric_name}" if self.on == "metric" and history.metric else "training loss"
        return f"{name} did not improve for {waited} epochs" if waited >= self.patience else None


@dataclass(frozen=True)
class Moment:
    """Where a training is: `epoch` and `step` count from 1, `step` over all epochs; `loss` is the last step's."""

    model: nn.Module
    optimizer: Optimizer
    epoch: int
    step: int
    loss: float
    history: History  # of the epochs that are done


class Callback:
    """Called after every step and every epoch (before its checkpoint is written); returning True ends the training.

    What `state_dict` gives (numbers, strings, tensors, nested) is in the checkpoint and comes back on resume."""

    def on_step(self, moment: Moment) -> bool | None:
        return None

    def on_epoch(self, moment: Moment) -> bool | None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return None
