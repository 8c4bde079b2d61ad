"""Losses on how the samples of a batch relate to each other in a layer: widths and shapes need not agree."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from abridged.data import Batch
from abridged.distillation.features import each_pair, total
from abridged.distillation.table import Outputs, loss


@loss("similarity", logits=None, layers=True)
def similarity(student: Outputs, teacher: Outputs, batch: Batch, *, scale: float = 3000.0) -> Tensor:
    """scale·‖G_s − G_t‖² / N², G the scalar products of the N samples, rows of length 1 (Tung & Mori, 2019)."""
    return scale * total(F.mse_loss(_gram(s), _gram(t)) for _, s, t in each_pair(student, teacher))


def _gram(feature: Tensor) -> Tensor:
    rows = feature.flatten(1)
    return F.normalize(rows @ rows.T, dim=1)  # (N, N)


@loss("rkd-distance", logits=None, layers=True)
def rkd_distance(student: Outputs, teacher: Outputs, batch: Batch, *, scale: float = 25.0) -> Tensor:
    """scale·mean Huber(d_s − d_t), d the distances of two samples over their mean (Park et al., 2019).

    Over all pairs of different samples; Huber with δ = 1. Shifts, rotations and scales of a feature cost nothing."""
    return scale * total(F.smooth_l1_loss(_distances(s), _distances(t)) for _, s, t in each_pair(student, teacher))


def _distances(feature: Tensor) -> Tensor:
    """(N·(N − 1),): of each ordered pair, divided by the mean; a single sample has none, and gives one zero."""
    rows = feature.flatten(1)
    pairs = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    if len(rows) < 2:
        return rows.new_zeros(1) * rows.sum()
    found = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")[pairs]  # exact, without N²·D numbers
    return found / found.mean().clamp_min(1e-12)


def _lengths(difference: Tensor) -> Tensor:
    """Euclidean lengths along the last axis, with gradient 0 at 0."""
    lengths: Tensor = torch.linalg.vector_norm(difference, dim=-1)
    return lengths


@loss("rkd-angle", logits=None, layers=True)
def rkd_angle(student: Outputs, teacher: Outputs, batch: Batch, *, scale: float = 50.0) -> Tensor:
    """scale·mean Huber(cos_s − cos_t), the angle at j between samples i and k (Park et al., 2019).

    Over all triples with i ≠ j ≠ k; Huber with δ = 1. Takes memory for N³ numbers."""
    return scale * total(F.smooth_l1_loss(_cosines(s), _cosines(t)) for _, s, t in each_pair(student, teacher))


def _cosines(feature: Tensor) -> Tensor:
    """(N, N − 1, N − 1): at each sample, between the directions to any two others."""
    rows = feature.flatten(1)
    count = len(rows)
    if count < 2:
        return rows.new_zeros(1) * rows.sum()
    pairs = ~torch.eye(count, dtype=torch.bool, device=rows.device)
    directions = (rows[None, :] - rows[:, None])[pairs].view(count, count - 1, -1)
    units = directions / _lengths(directions).clamp_min(1e-12)[..., None]
    return units @ units.transpose(1, 2)
