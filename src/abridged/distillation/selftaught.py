"""Self-distillation: a network whose depths teach its shallows. Born-again training is `kd` from a copy of one's own kind."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from abridged.data import Batch
from abridged.distillation.adapters import head
from abridged.distillation.features import total
from abridged.distillation.logits import kl, labelled, mean, two_classes
from abridged.distillation.table import Outputs, loss
from abridged.errors import InputError


@loss("self", layers=True, adapter=head, teacher=False)
def deep_to_shallow(
    student: Outputs, teacher: Outputs, batch: Batch, *, temperature: float = 3.0, labels: float = 0.5
) -> Tensor:
    """Σ b·CE(h, y) + (1 − b)·T²·KL(softmax(z / T) ‖ softmax(h / T)): be your own teacher (Zhang et al., 2019).

    h: the scores (N, C) of an auxiliary classifier on each named layer, trained with the student and discarded; z: the
    network's own logits (N, C), which learn nothing from it. `labels` (b) counts where the batch has labels (N,), those of
    −100 left out. One logit z stands for the two (0, z), as in kd. No other teacher is needed: `distill(student, None, …)`.
    Raises `InputError` for logits of further positions, and for labels that are none of the classes."""
    if not 0 <= labels <= 1:
        raise InputError(f"loss 'self': labels, the weight of the labels' part, must be between 0 and 1, not {labels}")
    if student.logits.ndim > 2:
        raise InputError(
            f"loss 'self' needs logits (N, C), one answer per sample, not {tuple(student.logits.shape)}: "
            "take a loss with a teacher, such as loss='kd'"
        )
    deep = two_classes(student.logits.detach()) / temperature
    scores = [two_classes(h) for h in student.features.values()]
    soft = total([temperature**2 * kl(h / temperature, deep).mean() for h in scores])
    if not labels or not isinstance(batch.y, Tensor) or batch.y.ndim != 1:
        return soft
    return labels * total([_hard(h, batch.y.long()) for h in scores]) + (1 - labels) * soft


def _hard(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, the mean over the samples that have a label."""
    there = labelled(labels, scores.shape[1], "self")
    return mean(F.cross_entropy(scores[there], labels[there], reduction="none"))
