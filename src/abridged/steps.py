"""What each kind of step does to the model: one function per kind, in RUNNERS. They work in place and are exactly resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from abridged.data import Data
from abridged.distillation.distill import distill_fit
from abridged.factorization.amount import Cost
from abridged.factorization.decomposition import AWARE
from abridged.factorization.factorize import factorize, rebuild, report
from abridged.graph.graph import Graph
from abridged.ledger import Curve
from abridged.measurement.practice import positional
from abridged.options import Factorize, Prune, Shrink, Teaching, Training
from abridged.pruning.masks import Masks
from abridged.pruning.prune import prune
from abridged.pruning.shrink import shrink
from abridged.tables import Table
from abridged.targets import build
from abridged.training import constant, cosine, fit


@dataclass
class Work:
    """A model on its way through a recipe. The dense control takes every training step, and `masks` stays None."""

    model: nn.Module
    teacher: nn.Module
    data: Data
    seed: int
    masks: Masks | None = None
    cost: Cost | None = None  # seconds that a graph takes on the target of the recipe


@dataclass(frozen=True)
class Outcome:
    """What a step has to say for the ledger."""

    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()
    structure: dict[str, Any] | None = None  # of a step that made other modules: what REBUILDERS makes them from


Runner = Callable[[Work, Any, Path], Outcome]
RUNNERS = Table[Runner]("step")

# Kind of step → the model as that step left it but for its values, from the work before and the outcome's structure.
REBUILDERS = Table[Callable[[Work, dict[str, Any]], nn.Module]]("step that makes other modules")
REBUILDERS.entry("factorize")(lambda work, structure: rebuild(work.model, structure))


@RUNNERS.entry("train", "finetune", "distill")
def train(work: Work, options: Training, checkpoint: Path) -> Outcome:
    """Train the model as it is: on the labels, and on the teacher's soft labels where the step has a teacher."""
    common: dict[str, Any] = {
        "epochs": options.epochs,
        "optimizer": partial(_optimizer, options),
        "scheduler": cosine if options.lr_schedule == "cosine" else constant,
        "masks": work.masks,
        "clip": options.clip,
        "precision": options.precision,
        "batch_size": options.batch_size,
        "seed": work.seed,
        "checkpoint": checkpoint,
        "label": options.kind,
    }
    if isinstance(options, Teaching) and options.teacher == "dense":
        history = distill_fit(
            work.model, work.teacher, work.data,
            temperature=options.temperature, alpha=options.alpha, loss=options.loss, layers=options.layers, **common,
        )  # fmt: skip
    else:
        history = fit(work.model, work.data, **common)
    return Outcome(tuple(Curve(name=name, values=tuple(values)) for name, values in history.curves.items()))


@RUNNERS.entry("prune")
def remove(work: Work, options: Prune, checkpoint: Path) -> Outcome:
    """Zero weights at once, or little by little while training; what is zero stays zero in the steps that follow."""
    work.masks = zeroed(work.model, work.data, options, seed=work.seed)
    outcome = train(work, options, checkpoint) if options.epochs else Outcome()
    return Outcome(outcome.curves, notes=tuple(work.masks.summary))


def zeroed(model: nn.Module, data: Data, options: Prune, *, seed: int = 0, samples: int = 1024) -> Masks:
    """`prune` as a step asks for it, its times in training updates."""
    updates = options.epochs * len(data.batches("train", options.batch_size))
    ramp = None if options.schedule == "one-shot" else max(1, round(options.ramp * updates))
    return prune(
        model,
        options.sparsity,
        threshold=options.threshold,
        keep=options.keep,
        macs=options.macs,
        parameters=options.parameters,
        of=options.of,
        criterion=options.criterion,
        pattern=options.pattern,
        allocation=options.allocation,
        schedule=options.schedule,
        regrow=options.regrow,
        solver=options.solver,
        reestimate=options.reestimate,
        data=data,
        example=positional(data.example_input()) if options.structured else None,
        samples=samples,
        steps=ramp if options.regrow is None else updates,
        every=options.every,
        seed=seed,
        include=options.include,
        exclude=options.exclude,
        exact=options.exact,
        round_to=options.round_to,
        say=None,  # the ledger has its summary
    )


@RUNNERS.entry("shrink")
def narrow(work: Work, options: Shrink, checkpoint: Path) -> Outcome:
    """Remove the channels that are zero; their masks go with them."""
    notes: list[str] = []
    work.model = shrink(work.model, positional(work.data.example_input()), exact=options.exact, say=notes.append)
    work.masks = None
    return Outcome(notes=tuple(notes), structure={"exact": options.exact})


@REBUILDERS.entry("shrink")
def _narrow_again(work: Work, structure: dict[str, Any]) -> nn.Module:
    # What is zero in the model before says what goes, the same again.
    example = positional(work.data.example_input())
    return shrink(work.model, example, exact=structure["exact"], say=None)


@RUNNERS.entry("factorize")
def thin(work: Work, options: Factorize, checkpoint: Path) -> Outcome:
    """Replace layers by their factors; their masks go, since factors are dense."""
    work.model = factorize(
        work.model,
        work.data.example_input(),
        options.method,
        rank=options.rank,
        energy=options.energy,
        ratio=options.ratio,
        of=options.of,
        cost=work.cost if options.measured or options.of == "seconds" else None,
        data=work.data if options.calibrate or set(AWARE) & set(options.methods) else None,
        include=options.include,
        exclude=options.exclude,
        say=None,  # the ledger has its summary
    )
    parameters = dict(work.model.named_parameters())
    held = {name: mask for name, mask in (work.masks or {}).items() if name in parameters}  # of layers that stay dense
    work.masks = Masks.rebuild(work.model, held) if held else None
    done = report(work.model)
    return Outcome(notes=done.summary, structure=dict(done.structure))


def clock(target: str, threads: int | None, options: dict[str, Any]) -> Cost:
    """The median latency of a graph on a target, in seconds."""

    def seconds(graph: Graph) -> float:
        with build(graph, target, threads=threads, **options) as artifact:
            return artifact.latency(0.2).median / 1e3

    return seconds


def join(outcomes: list[Outcome]) -> Outcome:
    """One outcome after the other: curves of one name are concatenated."""
    values: dict[str, tuple[float, ...]] = {}
    for outcome in outcomes:
        for curve in outcome.curves:
            values[curve.name] = values.get(curve.name, ()) + curve.values
    return Outcome(tuple(Curve(name=name, values=line) for name, line in values.items()))


def _optimizer(options: Training, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    if options.optimizer == "sgd":
        return torch.optim.SGD(parameters, options.lr, momentum=options.momentum, weight_decay=options.weight_decay)
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, options.lr, weight_decay=options.weight_decay)
