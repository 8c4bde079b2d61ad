"""Losses on class scores: what the teacher thinks of each class. Logits are (N, C), or (N, C, …) with further positions.

A network of two classes may give one logit z of the second: (N, 1), (N, 1, …) or (N,)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from abridged.data import Batch
from abridged.data.validate import IGNORED
from abridged.distillation.table import Outputs, loss
from abridged.errors import InputError

TINY = 1e-8


@loss("kd")
def kd(student: Outputs, teacher: Outputs, batch: Batch, *, temperature: float = 4.0) -> Tensor:
    """T²·KL(softmax(t / T) ‖ softmax(s / T)): the teacher's softened probabilities (Hinton, Vinyals & Dean, 2015).

    s, t: logits (N, C) or (N, C, …); the mean over samples and positions. T² keeps the size of the gradients when T
    changes. Needs no labels. One logit z stands for the two (0, z): T²·KL(Bernoulli(σ(t / T)) ‖ Bernoulli(σ(s / T))).

    >>> same = Outputs(torch.tensor([[2.0, 0.0, -1.0]]))
    >>> kd(same, same, Batch(None, None)).item()
    0.0
    """
    classes_second(student.logits, batch.y)
    s, t = (two_classes(outputs.logits) / temperature for outputs in (student, teacher))
    return temperature**2 * kl(s, t).mean()


def two_classes(logits: Tensor) -> Tensor:
    """One logit z as the logits (0, z) of two classes: (N,) or (N, 1, …) → (N, 2, …). Other logits as they are."""
    logits = logits[:, None] if logits.ndim == 1 else logits
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def several_classes(logits: Tensor, name: str) -> None:
    """Raise `InputError` for one logit, whose probability among one class is always 1: there is nothing to learn."""
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise InputError(f"loss '{name}' needs two classes or more: for one logit take loss='kd'")


def classes_second(logits: Tensor, labels: Tensor | None) -> None:
    """Raise `InputError` for logits whose labels say that the classes come last, as a language model's vocabulary does."""
    if logits.ndim < 3 or not isinstance(labels, Tensor):
        return
    last, second = logits.shape[:-1], (*logits.shape[:1], *logits.shape[2:])
    if labels.shape == last != second:
        raise InputError(
            f"logits {tuple(logits.shape)} with labels {tuple(last)} have the classes last: take loss='token' for them"
        )


def kl(student: Tensor, teacher: Tensor, dim: int = 1) -> Tensor:
    """KL(softmax(t) ‖ softmax(s)) along the axis of the classes: one value per sample and position."""
    mine, taught = F.log_softmax(student, dim), F.log_softmax(teacher, dim)
    return (taught.exp() * (taught - mine)).sum(dim)


@loss("dkd")
def dkd(
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    *,
    temperature: float = 4.0,
    target: float = 1.0,
    rest: float = 8.0,
) -> Tensor:
    """T²·(a·TCKD + b·NCKD), decoupled: target class against the rest, and among the rest (Zhao et al., 2022).

    With p the teacher's probability of the label at temperature T, KD = TCKD + (1 − p)·NCKD: the usual loss hushes what
    a sure teacher says about the other classes; here `target` (a) and `rest` (b) weigh the parts freely. Logits (N, C),
    labels (N,), means over the batch, without the samples whose label is −100. Raises `InputError` without such labels."""
    sure, others, _ = decoupled(student.logits / temperature, teacher.logits / temperature, batch.y)
    return temperature**2 * (target * mean(sure) + rest * mean(others))


def mean(values: Tensor) -> Tensor:
    """0 where there are none."""
    return values.sum() / max(1, values.numel())


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """TCKD and NCKD of each sample that has a label, and the teacher's probability of it, each (N,)."""
    several_classes(student, "dkd")
    if student.ndim != 2 or not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        raise InputError("loss 'dkd' needs logits (N, C) and a class number per sample: without them, take loss='kd'")
    there = labelled(labels, student.shape[1], "dkd")
    student, teacher, labels = student[there], teacher[there], labels[there]
    of_label = F.one_hot(labels.long(), student.shape[1]).bool()
    (label_s, rest_s), (label_t, rest_t) = (_parted(z, of_label) for z in (student, teacher))
    mine, taught = (
        torch.stack([label, rest.logsumexp(1)], 1) for label, rest in ((label_s, rest_s), (label_t, rest_t))
    )
    return kl(mine, taught), kl(rest_s, rest_t), taught.softmax(1)[:, 0]


def labelled(labels: Tensor, classes: int, name: str) -> Tensor:
    """Which samples have a label, (N,): −100 is none. Raises `InputError` for labels that are none of the classes."""
    there = labels != IGNORED
    used = labels[there]
    if used.numel() and not 0 <= used.min() <= used.max() < classes:
        raise InputError(
            f"loss '{name}': labels from {int(used.min())} to {int(used.max())}, but the networks give {classes} classes"
        )
    return there


def _parted(logits: Tensor, of_label: Tensor) -> tuple[Tensor, Tensor]:
    """The label's logit (N,) and the others' (N, C − 1)."""
    return logits[of_label], logits[~of_label].view(len(logits), logits.shape[1] - 1)


@loss("standardized")
def standardized(student: Outputs, teacher: Outputs, batch: Batch, *, temperature: float = 4.0) -> Tensor:
    """kd on logits of mean 0 and deviation 1 each: their order and ratios, not their size (Sun et al., 2024).

    z ← (z − mean z) / std z along the classes, then T²·KL of the softened ones. Raises `InputError` for one logit."""
    several_classes(student.logits, "standardized")
    classes_second(student.logits, batch.y)
    mine, taught = (_scored(outputs.logits) for outputs in (student, teacher))
    return temperature**2 * kl(mine / temperature, taught / temperature).mean()


def _scored(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + TINY**2).sqrt()


@loss("dist")
def dist(
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    *,
    temperature: float = 4.0,
    inter: float = 1.0,
    intra: float = 1.0,
) -> Tensor:
    """T²·(b·(1 − ρ over classes) + c·(1 − ρ over samples)), Pearson's ρ of probabilities: DIST (Huang et al., 2022).

    `inter` (b) compares how each sample's classes relate, `intra` (c) how each class's samples do. Shifts and positive
    scales of the probabilities cost nothing. (N, C, …) counts each position as a sample. Raises `InputError` for one
    logit."""
    several_classes(student.logits, "dist")
    classes_second(student.logits, batch.y)
    p, q = (_rows(outputs.logits / temperature).softmax(1) for outputs in (student, teacher))
    return temperature**2 * (inter * (1 - pearson(p, q, 1)).mean() + intra * (1 - pearson(p, q, 0)).mean())


def _rows(logits: Tensor) -> Tensor:
    return logits.movedim(1, -1).flatten(0, -2)  # (N, C, …) → (N · …, C)


def pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Correlation along an axis; 0 where one of the two is constant."""
    a, b = (x - x.mean(dim, keepdim=True) for x in (a, b))
    norms = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    correlation: Tensor = (a * b).sum(dim) / norms.clamp_min(TINY)
    return correlation


@loss("mimic", logits="values")
def mimic(student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
    """mean (s − t)²: the teacher's outputs as they are, logits or predicted values (Ba & Caruana, 2014)."""
    return F.mse_loss(student.logits, teacher.logits)
