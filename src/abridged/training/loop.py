"""`fit`: the training loop, exact to the bit after a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from abridged.data import Batch, Data, check, evaluate, forward
from abridged.data.content import digest, fingerprint
from abridged.data.data import LOSSES, Loss
from abridged.errors import AbridgedError, InputError, expect
from abridged.progress import Task, bar
from abridged.training import checkpoint as files
from abridged.training.history import Callback, EarlyStop, History, Moment, TrainingError
from abridged.training.options import (
    AUTOCAST,
    HeldMasks,
    MakeOptimizer,
    MakeScheduler,
    Objective,
    Options,
    adamw,
    cosine,
    look,
)
from abridged.training.processes import Processes, join
from abridged.training.surroundings import borrowed, loader_generators, own_randomness, seed_all, target_device
from abridged.training.zeros import warn_of_zeros


def fit(
    model: nn.Module,
    data: Data,
    *,
    epochs: int,
    loss: str | Loss | None = None,
    objective: Objective | None = None,
    optimizer: MakeOptimizer = adamw,
    scheduler: MakeScheduler = cosine,
    masks: HeldMasks | None = None,
    clip: float | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    batch_size: int = 64,
    accumulate: int = 1,
    seed: int = 0,
    device: str | torch.device | None = None,
    callbacks: Sequence[Callback] = (),
    early_stop: EarlyStop | None = None,
    keep_best: bool = False,
    checkpoint: str | Path | None = None,
    label: str = "train",
    identity: Mapping[str, Any] | None = None,
) -> History:
    """Train `model` in place on `data.train` and judge it on `data.val` after each epoch.

    `loss` (outputs, target) replaces the data's own; `objective` (outputs, batch) replaces both. `optimizer` makes one
    from the trainable parameters; `scheduler` makes one from (optimizer, total steps), stepped after each step, or each
    epoch with the training loss when it is a ReduceLROnPlateau. `masks` hold their zeros and advance at each step.
    `clip` is the largest gradient norm; one step averages over `accumulate` batches. `precision` fp16 needs a GPU.
    The last epoch's weights are kept, or with `keep_best` or `early_stop` those of the best epoch on val (of the
    epochs at the final density).

    Afterwards the model is on its own device, each submodule in its former mode, and the global random generators go on
    as if nothing had been drawn. Two runs with the same seed are equal to the bit on one machine, if the user's own
    DataLoaders are seeded. With a `checkpoint` directory each epoch's end is written there, and a later call with the
    same arguments (and `identity`, what else matters) goes on from it and ends with the same bits.

    Launched by `accelerate launch` or torchrun, every process takes its part of each batch; the first one writes.

    Raises `InputError` for what cannot be trained, and `TrainingError` when the loss becomes NaN or infinite; either way
    the model has the weights again with which it came. Ctrl-C leaves the model as it is, and the last checkpoint.

    >>> from abridged.data.sets import get
    >>> history = fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), get("digits"), epochs=2)
    >>> history.epochs, sorted(history.curves)
    (2, ['density', 'loss', 'lr', 'val accuracy'])
    """
    expect(model, nn.Module, "the model must be an nn.Module")
    options = Options(epochs, batch_size, accumulate, clip, precision, seed, keep_best, early_stop)
    look(scheduler, masks, callbacks, checkpoint)
    home = target_device(model, device)
    with ExitStack() as stack:
        stack.enter_context(own_randomness(home))
        check(data, model, labels=objective is None)
        processes = join(home, device)
        if precision == "fp16" and processes.device.type == "cpu":
            raise InputError("precision fp16 needs a GPU: use bf16 or fp32 on a CPU")
        if masks is None:
            warn_of_zeros(model)
        stack.enter_context(borrowed(model, processes.device))
        run = _Run(model, data, options, processes, objective or _on_labels(loss or data.loss), masks, callbacks)
        run.prepare(optimizer, scheduler, stack)
        if checkpoint is not None:
            names = {"loss": _name(loss or data.loss) if objective is None else None, **(identity or {})}
            run.keep_in(Path(checkpoint), names)
        return run.train(label)


def train_device(model: nn.Module, device: str | torch.device | None = None) -> torch.device:
    """Where `fit` trains a model: the device asked for, this process's own when there are several, or the model's."""
    return join(target_device(model, device), device).device


def _on_labels(loss: str | Loss) -> Objective:
    function = LOSSES[loss] if isinstance(loss, str) else loss
    return lambda outputs, batch: function(outputs, batch.y)


def _name(function: Any) -> str:
    return function if isinstance(function, str) else getattr(function, "__qualname__", type(function).__name__)


class _Run:
    """One training: everything that changes while it goes on, and how it is written down and taken up again."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        options: Options,
        processes: Processes,
        objective: Objective,
        masks: HeldMasks | None,
        callbacks: Sequence[Callback],
    ) -> None:
        self.model, self.data, self.options, self.processes = model, data, options, processes
        self.objective, self.masks, self.callbacks = objective, masks, callbacks
        self.keeps_best = options.keep_best or options.early_stop is not None
        judge = data.judge
        self.history = History(judge.name, judge.higher_is_better)
        self.step = 0
        self.loss = math.nan
        self.lr = 0.0
        self.stop: str | None = None
        self.best: dict[str, Any] = {}
        self.directory: Path | None = None
        self.identity: dict[str, Any] = {}

    # -- beginning ------------------------------------------------------------------------------------------------

    def prepare(self, make_optimizer: MakeOptimizer, make_scheduler: MakeScheduler, stack: ExitStack) -> None:
        """Make optimizer and scheduler, let the masks hold, and note the weights with which the model came."""
        self.processes.same_start(self.model)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not parameters:
            raise InputError("the model has no parameter to train: all have requires_grad=False, or there are none")
        if not callable(make_optimizer) or isinstance(make_optimizer, Optimizer):
            raise InputError(
                "optimizer must be a callable parameters → Optimizer, such as lambda p: torch.optim.SGD(p, 0.1)"
            )
        self.optimizer = make_optimizer(parameters)
        if not isinstance(self.optimizer, Optimizer) or isinstance(self.optimizer, torch.optim.LBFGS):
            raise InputError(
                f"optimizer gave {type(self.optimizer).__name__}: it must be a torch Optimizer that needs no closure"
            )
        self.judged = _has_labels(self.data)
        self.generators = loader_generators(self.data.train, self.data.val)
        self.epoch_steps = -(-len(self._batches(0)) // self.options.accumulate)
        self.initial = self._weights()
        if self.masks is not None:
            handle = self.masks.hold(self.optimizer)
            if handle is not None:
                stack.callback(handle.remove)
        self.scheduler = make_scheduler(self.optimizer, self.epoch_steps * self.options.epochs)
        self.scaler = torch.amp.GradScaler(self.processes.device.type, enabled=self.options.precision == "fp16")

    def keep_in(self, directory: Path, names: Mapping[str, Any]) -> None:
        """Write checkpoints to this directory from now on, and go on from the one that is there."""
        self.directory, self.identity = directory, {**self._identity(), **names}
        if self.processes.rank == 0:
            files.sweep(directory)
        self.processes.wait()
        state = files.load(directory, self.identity)
        found = torch.tensor([float(state is not None)])
        if self.processes.sum(found).item() not in (0, self.processes.count):
            raise InputError(
                f"{directory} must be a directory that every process sees: it has a checkpoint for some only"
            )
        if state is not None:
            self._restore(state)

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a resume to end with the same bits."""
        plain = {
            name: getattr(self.options, name) for name in ("epochs", "batch_size", "accumulate", "clip", "precision")
        }
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        return {
            **plain,
            "seed": self.options.seed,
            "best kept": f"{self.options.keep_best} {self.options.early_stop}",
            "optimizer": f"{type(self.optimizer).__name__} {groups}",
            "scheduler": type(self.scheduler).__name__,
            "initial weights": digest(self.initial["model"].values()),
            "masks": None if self.masks is None else _digest(self.initial["masks"]),
            "data": fingerprint(self.data),
            "processes": self.processes.count,
        }

    # -- going on -------------------------------------------------------------------------------------------------

    def train(self, label: str) -> History:
        """All epochs that are left."""
        first = self.history.epochs
        total = self.options.epochs * self.epoch_steps
        try:
            with bar(label, total, shown=self.processes.rank == 0 and self.stop is None) as task:
                task.advance(first * self.epoch_steps)
                for epoch in range(first, self.options.epochs):
                    if self.stop is not None:
                        break
                    self._epoch(epoch, task)
        except AbridgedError:
            self._put(self.initial)
            raise
        if self.best and self.best["epoch"] != self.history.epochs - 1:
            self._put(self.best)
            self.history = replace(self.history, kept=self.best["epoch"] + 1)
        return replace(self.history, stopped=self.stop)

    def _epoch(self, epoch: int, task: Task) -> None:
        started = time.perf_counter()
        seed_all(self.options.seed, epoch)
        self.model.train()
        total, samples = 0.0, 0
        for group in _groups(self._batches(epoch), self.options.accumulate):
            n = self._step(group, epoch)
            total, samples = total + self.loss * n, samples + n
            task.advance(1, epoch=f"{epoch + 1}/{self.options.epochs}", loss=self.loss, **self._last_metric())
            self._call("on_step", epoch)
            if self.stop is not None:
                break
        if not samples:
            raise InputError("train: the split gave no batch")
        self.processes.mean_buffers(self.model)
        self._judge(total / samples)
        self.history = replace(self.history, seconds=self.history.seconds + time.perf_counter() - started)
        self._call("on_epoch", epoch)
        early = self.options.early_stop
        self.stop = self.stop or (early.reason(self.history) if early else None)
        self._write()

    def _batches(self, epoch: int) -> Any:
        processes, options = self.processes, self.options
        shard = (processes.rank, processes.count)
        return self.data.batches(
            "train", options.batch_size, shuffle=True, seed=options.seed, epoch=epoch, augment=True, shard=shard
        )

    def _step(self, group: list[Batch], epoch: int) -> int:
        """One optimizer step on the mean over the samples of the group, in all processes; returns their number."""
        n = int(self.processes.sum(torch.tensor(sum(batch.size for batch in group))))
        self.optimizer.zero_grad(set_to_none=True)
        self.loss = float(self.processes.sum(sum((self._backward(batch, n) for batch in group), torch.zeros(()))))
        if not math.isfinite(self.loss):
            raise self._broken(f"loss is {self.loss}", epoch)
        parameters = [parameter for parameters in self.optimizer.param_groups for parameter in parameters["params"]]
        self.processes.sum_gradients(parameters)
        if self.options.clip is not None:
            self.scaler.unscale_(self.optimizer)
            norm = float(nn.utils.clip_grad_norm_(parameters, self.options.clip))
            if not math.isfinite(norm) and not self.scaler.is_enabled():
                raise self._broken(f"gradient norm is {norm}", epoch)
        self.lr = float(self.optimizer.param_groups[0]["lr"])
        self._advance()
        self.step += 1
        return n

    def _backward(self, batch: Batch, n: int) -> Tensor:
        """Add the gradients of one batch; its part of the mean loss over n samples."""
        batch = batch.to(self.processes.device)
        dtype = AUTOCAST[self.options.precision]
        with torch.autocast(self.processes.device.type, dtype=dtype, enabled=dtype is not None):
            loss = self.objective(forward(self.model, batch.x), batch)
        if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
            raise InputError("the loss must be a scalar tensor that depends on the model's trainable parameters")
        part = loss * (batch.size / n)
        torch.autograd.backward(self.scaler.scale(part))
        return part.detach().float().cpu()

    def _advance(self) -> None:
        """Step optimizer and scheduler; a step that the GradScaler skips does not count for the scheduler."""
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()

    def _broken(self, what: str, epoch: int) -> TrainingError:
        if self.step == 0:
            mend = (
                "this is the first step, so the loss function, the data or the weights are to blame, not the training"
            )
        elif self.options.precision == "fp16":
            mend = "fp16 has a small range: use precision='bf16', or a lower learning rate"
        else:
            clip = "" if self.options.clip is not None else ", or clip=1.0"
            mend = f"the learning rate is probably too high: try {self.lr / 10:.2g}{clip}"
        return TrainingError(
            f"the {what} in epoch {epoch + 1}, step {self.step + 1} (learning rate {self.lr:.3g}): {mend}"
        )

    def _judge(self, loss: float) -> None:
        """Close an epoch: the metric on val, the curves, the best weights so far."""
        shard = (self.processes.rank, self.processes.count)
        metric = None
        if self.judged:
            size, total = self.options.batch_size, self.processes.sum
            score = evaluate(self.model, self.data, "val", size, label="evaluate", shard=shard, reduce=total)
            metric = score.value
        density = 1.0 if self.masks is None else float(self.masks.density)
        self.history = self.history.after(loss=loss, metric=metric, density=density, lr=self.lr, steps=self.step)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss)
        early = self.options.early_stop
        best = self.history.best(*((early.on, early.min_delta) if early else ()))
        if self.keeps_best and best == self.history.epochs - 1:
            self.best = {"epoch": best, **self._weights()}

    def _last_metric(self) -> dict[str, float]:
        return {self.history.metric_name: self.history.metric[-1]} if self.history.metric else {}

    def _call(self, name: Literal["on_step", "on_epoch"], epoch: int) -> None:
        """Call the callbacks; the training stops in all processes when one of them says so."""
        if not self.callbacks:
            return
        moment = Moment(self.model, self.optimizer, epoch + 1, self.step, self.loss, self.history)
        answers = [getattr(callback, name)(moment) for callback in self.callbacks]
        if self.processes.sum(torch.tensor(float(any(answer is True for answer in answers)))).item():
            self.stop = self.stop or f"a callback stopped it in epoch {epoch + 1}"

    # -- the state ------------------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, Any]:
        """A copy of the weights, and of the masks' state."""
        model = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        return {"model": model, "masks": None if self.masks is None else _copy(self.masks.state_dict())}

    def _put(self, weights: Mapping[str, Any]) -> None:
        self.model.load_state_dict(weights["model"])
        if self.masks is not None:
            self.masks.load_state_dict(_copy(weights["masks"]))

    def _write(self) -> None:
        if self.directory is None:
            return
        if self.processes.rank == 0:
            state = {
                "now": self._weights(),
                "best": self.best,
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
                "generators": [generator.get_state() for generator in self.generators],
                "callbacks": [callback.state_dict() for callback in self.callbacks],
                "history": {name: getattr(self.history, name) for name in self.history.__dataclass_fields__},
                "stop": self.stop,
            }
            files.save(self.directory, self.identity, state)
        self.processes.wait()

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._put(state["now"])
        self.best, self.stop = state["best"], state["stop"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.set_state(saved)
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(saved)
        self.history = History(**state["history"])
        self.step = self.history.steps


def _groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


def _copy(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}


def _digest(state: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    return f"{digest(value for value in state.values() if isinstance(value, Tensor))} {plain}"


def _has_labels(data: Data) -> bool:
    first = next(iter(data.batches("val", 1)), None)
    return first is not None and first.y is not None
