"""Everything that is settled before a distillation trains: terms bound to layers, adapters made, every mistake refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from abridged.data import Data, check
from abridged.data.batches import each
from abridged.data.evaluate import device_of, judging
from abridged.data.validate import valued
from abridged.distillation import courses
from abridged.distillation.courses import Course
from abridged.distillation.lesson import Lesson, Part
from abridged.distillation.table import Outputs, Shapes
from abridged.distillation.taps import pairs
from abridged.distillation.teachers import tried
from abridged.distillation.terms import Term, finite
from abridged.errors import InputError
from abridged.training.surroundings import own_randomness

Teachers = nn.Module | Sequence[nn.Module] | None


def listed(teacher: Teachers) -> list[nn.Module]:
    """One teacher, several or none, as a list. Raises `InputError` for what is no network."""
    several: list[Any] = [teacher] if not isinstance(teacher, (list, tuple, type(None))) else list(teacher or ())
    for model in several:
        if not isinstance(model, nn.Module):
            raise InputError(f"the teacher must be an nn.Module or a list of them, not {type(model).__name__}")
    return several


def all_read(teacher: Teachers, chosen: list[Term]) -> None:
    """Raise `InputError` for a teacher that no loss reads."""
    there = set(range(len(listed(teacher))))
    read = {term.teacher for term in chosen if term.needs.teacher}
    if None in read or not read <= there or read == there:  # one that is not there is refused in other words
        return
    which = "the teacher" if there == {0} else f"teacher {min(there - read)}, counted from 0,"
    raise InputError(
        f"{which} is read by no loss: leave it out (None for no teacher), or add a loss that reads it, such as 'kd'"
    )


def arranged(
    student: nn.Module,
    teacher: Teachers,
    data: Data,
    chosen: list[Term],
    *,
    alpha: Course = 0.7,
    temperature: Course = 4.0,
    weights: Sequence[float] | None = None,
    steps: int = 1,
    seed: int = 0,
) -> Lesson:
    """The lesson, tried out on two samples. Raises `InputError` for all that would stop or spoil the training."""
    shares, degrees = courses.alpha(alpha), courses.temperature(temperature)
    check(data, student, labels=any(shares(t) < 1 for t in courses.GRID))
    teachers = listed(teacher)
    for model in teachers:
        valued(model, "teacher")
    _strangers(student, teachers)
    if data.loss == "mse" and any(term.needs.logits == "classes" for term in chosen):
        raise InputError(
            "distillation of class scores is for classification: the data's loss is mse, not cross-entropy; take loss='mimic'"
        )
    parts = _bound(student, teachers, chosen, _weights(weights, len(teachers)))
    with own_randomness(device_of(student)):
        torch.manual_seed(seed)
        return _tried(student, teachers, data, Lesson(parts, shares, degrees, steps))


def _strangers(student: nn.Module, teachers: Sequence[nn.Module]) -> None:
    mine = {id(parameter) for parameter in student.parameters()}
    for teacher in teachers:
        if mine & {id(parameter) for parameter in teacher.parameters()}:
            what = "is the student" if teacher is student else "shares parameters with the student"
            raise InputError(
                f"the teacher {what}: give a copy, copy.deepcopy(model), made before the student is changed"
            )


def _weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """Shares of the teachers, of sum 1."""
    if weights is None:
        return [1 / count] * count if count else []
    sound = isinstance(weights, (list, tuple)) and len(weights) == count
    if not sound or not all(finite(w) and w >= 0 for w in weights) or not sum(weights):
        one = "one number" if count == 1 else f"{count} numbers"
        raise InputError(f"teacher_weights must be a list of {one}, a share for each teacher, not {weights!r}")
    return [w / sum(weights) for w in weights]


def _bound(student: nn.Module, teachers: Sequence[nn.Module], chosen: list[Term], weights: list[float]) -> list[Part]:
    """Each term with each of its teachers, layers by their full paths."""
    parts = []
    for term in chosen:
        if not term.needs.teacher:
            matched = pairs(term.layers, student, student) if term.layers else []
            parts.append(Part(term, term.weight, None, matched, nn.ModuleList()))
            continue
        if not teachers:
            raise InputError(f"loss '{term.name}' needs a teacher: only loss='self' goes without")
        if term.teacher is not None and term.teacher not in range(len(teachers)):
            raise InputError(f"loss '{term.name}': there is no teacher {term.teacher}, of {len(teachers)} from 0")
        for number in range(len(teachers)) if term.teacher is None else [term.teacher]:
            weight = term.weight * (weights[number] if term.teacher is None else 1.0)
            matched = pairs(term.layers, student, teachers[number]) if term.layers else []
            parts.append(Part(term, weight, number, matched, nn.ModuleList()))
    return parts


def _tried(student: nn.Module, teachers: Sequence[nn.Module], data: Data, lesson: Lesson) -> Lesson:
    """Two samples through all networks: adapters from the shapes, and every loss once."""
    batch = next(iter(data.batches("train", 2))).rows(slice(0, 2)).to(torch.device("cpu"))

    def ask(model: nn.Module, number: int | None, whose: str) -> Outputs:
        with judging(model) as device:
            x = each(batch.x, lambda x: x.to(device))
            return tried(model, x, lesson.specs(number), lesson.reads_logits(number), whose)

    mine = ask(student, None, "student")
    taught = {number: ask(teachers[number], number, "teacher") for number in lesson.teachers}
    for part in lesson.parts:
        said = taught[part.teacher] if part.teacher is not None else Outputs(mine.logits)
        _sound(part, mine, said)
        part.adapters.extend(_adapters(part, mine, said))
    with torch.no_grad():
        value = lesson.loss(mine, taught, batch)
    if not value.isfinite():
        raise InputError(f"the distillation loss of two samples is {value.item()}: look at the weights and the layers")
    return lesson


def _sound(part: Part, mine: Outputs, taught: Outputs) -> None:
    read = part.term.needs.logits
    if read == "classes" and mine.logits.shape[1:] != taught.logits.shape[1:]:
        raise InputError(
            f"the teacher has {_classes(taught.logits)} and the student {_classes(mine.logits, False)}: "
            "both must give the same ones"
        )
    if read == "values" and mine.logits.shape != taught.logits.shape:
        shapes = f"{tuple(taught.logits.shape)} and the student {tuple(mine.logits.shape)}"
        raise InputError(f"the teacher gives outputs of shape {shapes}: they must be equal")
    for what, tensor in [("gives NaN or infinity", taught.logits), *taught.features.items()]:
        if not tensor.isfinite().all():
            where = what if tensor is taught.logits else f"gives NaN or infinity in '{what}'"
            raise InputError(f"the teacher {where}: load other weights")


def _classes(logits: Tensor, noun: bool = True) -> str:
    if logits.ndim == 2:
        return f"{logits.shape[1]} classes" if noun else str(logits.shape[1])
    return f"outputs of shape {tuple(logits.shape)}" if noun else str(tuple(logits.shape))


def _adapters(part: Part, mine: Outputs, taught: Outputs) -> list[nn.Module]:
    make = part.term.needs.adapter
    if make is None:
        return []
    classes = mine.logits.shape[1] if mine.logits.ndim > 1 else 1
    found = []
    for left, right in part.pairs:
        feature = mine.features[left]
        other = taught.features.get(right, feature)
        shapes = Shapes(left, tuple(feature.shape), tuple(other.shape), classes)
        found.append(make(shapes).to(feature.dtype if feature.is_floating_point() else torch.float32))
    return found
