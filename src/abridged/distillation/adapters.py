"""What stands between two layers of different shapes: small modules trained with the student and thrown away afterwards."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abridged.distillation.shapes import same_size, vectors
from abridged.distillation.table import Adapted, Shapes
from abridged.errors import InputError

EMBEDDED = 128  # width of CRD's embeddings


class Along(nn.Module):
    """A linear map along one axis: a 1×1 convolution of maps, a linear layer of sequences and vectors."""

    def __init__(self, axis: int, narrow: int, wide: int) -> None:
        super().__init__()
        self.axis = axis
        self.linear = nn.Linear(narrow, wide)

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.linear(x.movedim(self.axis, -1))
        return mapped.movedim(-1, self.axis)


class Regressor(nn.Module):
    """The student's feature in the teacher's shape; nothing is learned where the shapes agree."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        shapes = _alike(shapes)
        self.path, self.axis = shapes.path, _channels(shapes)
        self.narrow, wide = shapes.student[self.axis], shapes.teacher[self.axis]
        self.project = nn.Identity() if self.narrow == wide else Along(self.axis, self.narrow, wide)

    def forward(self, student: Tensor, teacher: Tensor) -> Adapted:
        if student.ndim != teacher.ndim:
            student, teacher = vectors(student), vectors(teacher)
        if student.shape[self.axis] != self.narrow and isinstance(self.project, Along):
            raise InputError(
                f"layer '{self.path}' gives shape {tuple(student.shape)}, and its adapter takes {self.narrow} along axis "
                f"{self.axis}, as the first batch had: where lengths vary, name layers of one length in both networks"
            )
        return Adapted(*same_size(self.project(student), teacher))


def regressor(shapes: Shapes) -> nn.Module:
    """A linear map of the channels where they differ, and pooling to the smaller of two sizes (Romero et al., 2015).

    A map and a sequence, or a vector, are both averaged over their positions first."""
    return Regressor(shapes)


def _alike(shapes: Shapes) -> Shapes:
    """The shapes as they are, or those of their `vectors` where a map meets a sequence or a vector."""
    student, teacher = shapes.student, shapes.teacher
    if min(len(student), len(teacher)) < 2 or max(len(student), len(teacher)) > 5:
        raise _misfit(shapes)
    if len(student) == len(teacher):
        return shapes
    return shapes._replace(student=(student[0], _width(student)), teacher=(teacher[0], _width(teacher)))


def _channels(shapes: Shapes) -> int:
    """The axis of the channels: the second; in sequences the last, unless it is the second alone that differs (Conv1d).

    Raises `InputError` where no adapter fits."""
    student, teacher = shapes.student, shapes.teacher
    if len(student) != 3:
        return 1
    differing = [axis for axis in (1, 2) if student[axis] != teacher[axis]]
    if len(differing) == 2:
        raise _misfit(shapes)
    return differing[0] if differing else 2


def _misfit(shapes: Shapes) -> InputError:
    two = f"{shapes.student} and the teacher's {shapes.teacher}"
    return InputError(f"layer '{shapes.path}' gives shape {two}: no adapter fits between them; name other layers")


class Variational(nn.Module):
    """A regressor for the mean, and a variance for each of the teacher's channels."""

    def __init__(self, shapes: Shapes, variance: float = 5.0) -> None:
        super().__init__()
        self.mean = Regressor(shapes)
        shapes = _alike(shapes)
        axis = _channels(shapes)
        self.shape = [1] * len(shapes.teacher)
        self.shape[axis] = shapes.teacher[axis]
        self.raw = nn.Parameter(torch.full((shapes.teacher[axis],), math.log(math.expm1(variance))))

    def forward(self, student: Tensor, teacher: Tensor) -> Adapted:
        variance = (F.softplus(self.raw) + 1e-5).view(self.shape)
        return self.mean(student, teacher)._replace(variance=variance)  # type: ignore[no-any-return]


def variational(shapes: Shapes) -> nn.Module:
    """A Gaussian of the teacher's feature: linear mean, one learned variance per channel (Ahn et al., 2019)."""
    return Variational(shapes)


class Embedding(nn.Module):
    """Both features, averaged over positions, mapped to unit vectors of one width."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.student, self.teacher = (nn.Linear(_width(shape), EMBEDDED) for shape in (shapes.student, shapes.teacher))

    def forward(self, student: Tensor, teacher: Tensor) -> Adapted:
        mine, taught = self.student(vectors(student)), self.teacher(vectors(teacher))
        return Adapted(F.normalize(mine, dim=1), F.normalize(taught, dim=1))


def embedding(shapes: Shapes) -> nn.Module:
    """A linear map of each of the two features to a unit vector (Tian et al., 2020)."""
    return Embedding(shapes)


class Head(nn.Module):
    """Class scores from one layer of the student."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.scores = nn.Linear(_width(shapes.student), shapes.classes)

    def forward(self, student: Tensor, teacher: Tensor) -> Adapted:
        return Adapted(self.scores(vectors(student)), teacher)


def head(shapes: Shapes) -> nn.Module:
    """An auxiliary classifier on the feature averaged over positions (Zhang et al., 2019)."""
    return Head(shapes)


def _width(shape: tuple[int, ...]) -> int:
    """The length of `vectors` of a feature."""
    return shape[2] if len(shape) == 3 else math.prod(shape[1:2])
