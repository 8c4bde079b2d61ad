"""`distill`: train a student on what a teacher says. The teacher is only looked at: not a bit of it changes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from abridged.data import Batch, Data
from abridged.data.content import digest
from abridged.distillation import courses
from abridged.distillation.arrange import Teachers, all_read, arranged, listed
from abridged.distillation.cache import Remembered
from abridged.distillation.courses import Course
from abridged.distillation.lesson import Lesson
from abridged.distillation.taps import tapped
from abridged.distillation.teachers import Teacher, heard, present
from abridged.distillation.terms import Layers, Term, terms
from abridged.errors import InputError, expect, nearest
from abridged.training import Callback, History, adamw, fit, train_device
from abridged.training.options import MakeOptimizer, whole
from abridged.training.processes import join
from abridged.training.surroundings import borrowed

# Options that go to `fit` as they are.
ALLOWED = inspect.signature(fit).parameters.keys() - {"model", "data", "loss", "objective"}


def distill(student: nn.Module, teacher: Teachers, data: Data, *, epochs: int = 20, **options: Any) -> nn.Module:
    """Train `student` in place on what `teacher` says, and return it. Options are those of `distill_fit`.

    Raises `InputError` as it does, and for a teacher that no loss reads.

    >>> from abridged.data.sets import get
    >>> teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))
    >>> distill(student, teacher, get("digits"), temperature=4.0, alpha=0.7, epochs=1) is student
    True
    """
    all_read(teacher, terms(options.get("loss", "kd"), options.get("layers")))
    distill_fit(student, teacher, data, epochs=epochs, **options)
    return student


def distill_fit(
    student: nn.Module,
    teacher: Teachers,
    data: Data,
    *,
    temperature: Course = 4.0,
    alpha: Course = 0.7,
    loss: Any = "kd",
    layers: Layers | None = None,
    teacher_weights: Sequence[float] | None = None,
    cache: str | Path | None = None,
    epochs: int = 20,
    batch_size: int = 64,
    accumulate: int = 1,
    seed: int = 0,
    optimizer: MakeOptimizer = adamw,
    device: str | torch.device | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> History:
    """Train `student` in place on (1 − α)·(the data's own loss) + α·Σ weight·loss; returns its History.

    `loss`: a name of `LOSSES`, {name: weight}, or a list of these and of {"name": …, "weight": …, "layers": …, option: …}.
    `layers`, for losses on features: a module path that both have, a list of them, or {student's: teacher's}; `*` is one
    part of a path, `path:1` the second output of a module. Adapters between different shapes are made from the shapes,
    trained with the student, and thrown away. `alpha` and `temperature`: numbers, {"linear": [from, to]},
    {"cosine": [from, to]}, or callables of t in [0, 1]. With alpha = 1 throughout, labels may be absent.

    `teacher`: one network, several (each loss is their mean, weighted by `teacher_weights`; for `kd` the gradient is that
    of the mean of their probabilities), or None for losses that need none. One that no loss reads does not run, and
    `distill` refuses it. A teacher runs in eval mode, without gradients; its weights, statistics, modes and `requires_grad`
    stay as they are. `cache`: a directory for its answers, kept by the bits of the input, so that a replay always fits the
    augmentation. Further options are those of `training.fit`.

    Raises `InputError`, before any training, for a teacher that is the student or shares parameters with it, that has
    other classes or gives NaN, for numbers out of range, unknown losses, layers that are missing or cannot be compared."""
    expect(student, nn.Module, "the student must be an nn.Module")
    expect(data, Data, "data must be an ab.Data(train=(x, y), val=(x, y), …)")
    if not whole(seed):
        raise InputError(f"seed must be a whole number, not {seed!r}")
    expect(callbacks, Sequence, "callbacks must be a list of Callback")
    expect(cache, (str, Path, type(None)), "cache must be a directory")
    for name in options.keys() - ALLOWED:
        raise InputError(f"distill has no option '{name}'{nearest(name, _known())}")
    chosen = terms(loss, layers)
    lesson = arranged(
        student, teacher, data, chosen, alpha=alpha, temperature=temperature, weights=teacher_weights,
        steps=_steps(data, epochs, batch_size, accumulate), seed=seed,
    )  # fmt: skip
    teachers, home = {number: listed(teacher)[number] for number in lesson.teachers}, train_device(student, device)
    identity = _identity(chosen, alpha, temperature, list(teachers.values()), lesson, teacher_weights)
    options = {"label": "distil", **options, "identity": {**identity, **(options.get("identity") or {})}}
    with ExitStack() as stack:
        asked: dict[int, Teacher] = {}
        watching: list[Callback] = [lesson]
        for number, model in teachers.items():
            stack.enter_context(borrowed(model, home))
            model.eval()
            answering: Teacher = stack.enter_context(present(model, lesson.specs(number), lesson.reads_logits(number)))
            if cache is not None:
                kept = Remembered(answering, Path(cache), options.get("precision", "fp32"), join(home, device).rank)  # type: ignore[arg-type]
                stack.callback(kept.flush)
                watching.append(kept)
                answering = kept
            asked[number] = answering
        lesson.adapters.to(home)
        mine = lesson.specs(None)
        taps = stack.enter_context(tapped(student, mine, "student"))

        def objective(outputs: Any, batch: Batch) -> Tensor:
            share = lesson.alpha
            total = torch.zeros((), device=home)
            if share < 1:
                total = total + (1 - share) * data.loss_function(outputs, batch.y)
            if share > 0:
                said = heard(outputs, batch.size, taps, mine, lesson.reads_logits(None))
                answers = {number: one.answer(batch.x) for number, one in asked.items()}
                with torch.autocast(home.type, enabled=False):  # sums of squares overflow float16
                    total = total + share * lesson.loss(said, answers, batch)
            return total

        return fit(
            student, data, objective=objective, epochs=epochs, batch_size=batch_size, accumulate=accumulate, seed=seed,
            optimizer=_with(lesson.adapters, optimizer), device=device, callbacks=[*watching, *callbacks], **options,
        )  # fmt: skip


def _known() -> set[str]:
    """The names of all options, distillation's own and those of `fit`."""
    parameters = inspect.signature(distill_fit).parameters.values()
    return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY} | ALLOWED


def _with(adapters: nn.Module, optimizer: MakeOptimizer) -> MakeOptimizer:
    """An optimizer of the student's parameters that trains the adapters too."""
    more = list(adapters.parameters())
    if not more or not callable(optimizer) or isinstance(optimizer, Optimizer):
        return optimizer
    make: Callable[[Iterable[nn.Parameter]], Optimizer] = optimizer
    return lambda parameters: make([*parameters, *more])


def _steps(data: Data, epochs: int, batch_size: int, accumulate: int) -> int:
    """Of the whole training; numbers that are none are `fit`'s to refuse."""
    if any(not isinstance(n, int) or n < 1 for n in (epochs, batch_size, accumulate)):
        return 1
    return max(1, epochs * -(-len(data.batches("train", batch_size, shuffle=True)) // accumulate))


def _identity(
    chosen: list[Term],
    alpha: Course,
    temperature: Course,
    teachers: Sequence[nn.Module],
    lesson: Lesson,
    weights: Sequence[float] | None,
) -> dict[str, Any]:
    """What must be equal for a resume to be exact."""
    return {
        "distillation": f"{chosen} T {courses.identity(temperature)} alpha {courses.identity(alpha)} {weights}",
        "teacher": [digest(teacher.state_dict().values()) for teacher in teachers],
        "adapters": digest(lesson.adapters.state_dict().values()),
    }
