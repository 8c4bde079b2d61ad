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
    _, lengths = _geometry(feature)
    if len(lengths) < 2:
        return feature.sum().view(1) * 0
    found = lengths[_different(lengths)]
    return (found / found.mean().clamp_min(1e-12)).to(feature.dtype)


@loss("rkd-angle", logits=None, layers=True)
def rkd_angle(student: Outputs, teacher: Outputs, batch: Batch, *, scale: float = 50.0) -> Tensor:
    """scale·mean Huber(cos_s − cos_t), the angle at j between samples i and k (Park et al., 2019).

    Over all triples with i ≠ j ≠ k; Huber with δ = 1. Takes memory for N³ numbers."""
    return scale * total(F.smooth_l1_loss(_cosines(s), _cosines(t)) for _, s, t in each_pair(student, teacher))


def _cosines(feature: Tensor) -> Tensor:
    """(N·(N − 1)²,): at each sample j, between the directions to i and to k; 0 where two samples coincide.

    (x_i − x_j)·(x_k − x_j) = G_ik − G_ij − G_jk + G_jj."""
    products, lengths = _geometry(feature)
    if len(lengths) < 2:
        return feature.sum().view(1) * 0
    dots = (
        products[None] - products[:, :, None] - products[:, None, :] + products.diagonal()[:, None, None]
    )  # (j, i, k)
    inverse = 1 / lengths.where(lengths > 0, torch.inf)
    other = _different(lengths)
    triples = other[:, :, None] & other[:, None, :]
    return (dots * inverse[:, :, None] * inverse[:, None, :])[triples].to(feature.dtype)


def _geometry(feature: Tensor) -> tuple[Tensor, Tensor]:
    """Scalar products of the centred samples and the lengths of their differences, both (N, N): all that relations read,
    without the N²·D numbers of the differences.

    In float64, since |x − y|² = |x|² − 2·x·y + |y|² takes away almost all of two large numbers where samples are alike;
    what is below its rounding is a length of 0, and has a gradient of 0."""
    rows = feature.flatten(1)
    rows = rows if rows.device.type == "mps" else rows.double()  # Apple's GPUs have no float64
    rows = rows - rows.mean(0)
    products = rows @ rows.T
    squares = products.diagonal()
    size = squares[:, None] + squares[None, :]
    squared = size - 2 * products
    apart = squared > 8 * torch.finfo(rows.dtype).eps * size
    return products, squared.where(apart, 1).sqrt() * apart


def _different(lengths: Tensor) -> Tensor:
    return ~torch.eye(len(lengths), dtype=torch.bool, device=lengths.device)
