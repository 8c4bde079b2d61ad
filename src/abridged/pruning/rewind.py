"""Lottery tickets: train, prune, go back to where the weights were early in the first training, and again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from abridged.data import Data
from abridged.errors import InputError, expect
from abridged.pruning.masks import Masks
from abridged.pruning.prune import prune
from abridged.training import Callback, History, Moment, cosine, fit
from abridged.training.options import MakeScheduler


@dataclass(frozen=True)
class Ticket:
    """A sparse network found by rewinding: its masks, and the history of each training, dense first, the ticket's last."""

    masks: Masks
    histories: tuple[History, ...]


def find_ticket(
    model: nn.Module,
    data: Data,
    sparsity: float,
    *,
    rounds: int = 5,
    rewind: int = 0,
    epochs: int = 10,
    batch_size: int = 64,
    scheduler: MakeScheduler = cosine,
    pruning: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    **training: Any,
) -> Ticket:
    """Iterative pruning with rewinding: the model, in place, becomes the trained ticket (Frankle & Carbin 2019, "The
    Lottery Ticket Hypothesis"; Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis").

    Each of the `rounds` trains for `epochs`, prunes to the density (1 − sparsity)^(r / rounds), and sets what is left back to
    its value after step `rewind` of the first training (0: before it), statistics included; a last training follows, so
    that there are rounds + 1. A later training goes on from step `rewind` of the learning rate's schedule, and is as many
    steps shorter. `pruning` are options of `prune`, all others those of `fit`. With a `checkpoint` directory a killed
    search goes on where it was, when called with the same arguments.

    Raises `InputError` for numbers out of range; the model is then as it was.

    >>> from abridged.data.sets import get
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> ticket = find_ticket(model, get("digits"), 0.75, rounds=2, rewind=5, epochs=1)
    >>> len(ticket.histories), ticket.masks.density
    (3, 0.25)
    """
    expect(model, nn.Module, "find_ticket takes an nn.Module")
    expect(data, Data, "data must be an ab.Data")
    total = epochs * -(-len(data.batches("train", batch_size)) // training.get("accumulate", 1))
    _check(sparsity, rounds, rewind, total, pruning or {})
    late = Late(scheduler, rewind)
    memory = Memory(model, rewind)
    callbacks = tuple(training.pop("callbacks", ()))
    masks: Masks | None = None
    histories: list[History] = []
    for turn in range(rounds + 1):
        extra = (memory,) if masks is None else (Stop(total - rewind),)
        histories.append(
            fit(
                model,
                data,
                epochs=epochs,
                batch_size=batch_size,
                scheduler=scheduler if masks is None else late,
                masks=masks,
                callbacks=(*extra, *callbacks),
                checkpoint=None if checkpoint is None else Path(checkpoint) / f"round-{turn}",
                label=f"round {turn} of {rounds}",
                identity={"rewind": rewind},
                **training,
            )
        )
        if turn < rounds:
            masks = prune(model, 1 - (1 - sparsity) ** ((turn + 1) / rounds), **{"say": None, **(pruning or {})})
            memory.restore(model)
            masks.apply()
    assert masks is not None
    return Ticket(masks, tuple(histories))


class Memory(Callback):
    """A copy of the model as it is after one step of its training; step 0 is now."""

    def __init__(self, model: nn.Module, step: int) -> None:
        self._step = step
        self._weights = _copy(model)

    def on_step(self, moment: Moment) -> None:
        if moment.step == self._step:
            self._weights = _copy(moment.model)

    def restore(self, model: nn.Module) -> None:
        """Write the copy into the model."""
        model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._weights = state["weights"]


@dataclass(frozen=True)
class Stop(Callback):
    """Ends a training after so many steps."""

    steps: int

    def on_step(self, moment: Moment) -> bool:
        return moment.step >= self.steps


@dataclass(frozen=True)
class Late:
    """Makes schedulers that start at a later step than the first."""

    make: MakeScheduler
    step: int

    def __call__(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        scheduler = self.make(optimizer, total_steps)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch expects a step of the optimizer before each
            for _ in range(self.step):
                scheduler.step()
        return scheduler


def _check(sparsity: object, rounds: object, rewind: object, total: int, pruning: Mapping[str, Any]) -> None:
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 < sparsity < 1:
        raise InputError(f"sparsity must be in (0, 1), not {sparsity!r}")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise InputError(f"rounds must be a whole number from 1, not {rounds!r}")
    if isinstance(rewind, bool) or not isinstance(rewind, int) or not 0 <= rewind < total:
        raise InputError(f"rewind must be a step of the training, from 0 to below {total}, not {rewind!r}")
    for name in ("schedule", "regrow", "threshold", "keep", "steps", "every"):
        if name in pruning:
            raise InputError(f"rewinding has rounds of its own: leave {name} out of the options of prune")


def _copy(model: nn.Module) -> dict[str, Tensor]:
    with torch.no_grad():
        return {key: value.detach().clone() for key, value in model.state_dict().items()}
