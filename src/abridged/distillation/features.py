"""Losses on features of named layers. `features` of both networks have the same keys, and come through the adapters.

Maps are (N, C, H, W) or (N, C, D, H, W), sequences (N, T, D), vectors (N, D). Several layers are summed. Three axes do not say
which is which: the last is taken for the channels, but by a regressor where the second alone differs (Conv1d)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from abridged.data import Batch
from abridged.data.validate import IGNORED
from abridged.distillation.adapters import regressor, variational
from abridged.distillation.shapes import same_size, vectors
from abridged.distillation.table import Outputs, loss
from abridged.errors import InputError


def each_pair(student: Outputs, teacher: Outputs) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(layer, student's feature, teacher's feature)."""
    return ((name, feature, teacher.features[name]) for name, feature in student.features.items())


def total(parts: Iterator[Tensor] | list[Tensor]) -> Tensor:
    """The sum over the layers."""
    return torch.stack(list(parts)).sum()


@loss("hint", logits=None, layers=True, adapter=regressor)
def hint(student: Outputs, teacher: Outputs, batch: Batch, *, scale: float = 100.0) -> Tensor:
    """scale·mean (r(s) − t)², r a linear regressor trained with the student: FitNets (Romero et al., 2015)."""
    return scale * total(F.mse_loss(s, t) for _, s, t in each_pair(student, teacher))


@loss("hidden", logits=None, layers=True, adapter=regressor)
def hidden(student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
    """mean (s·W − t)² of hidden states (N, T, D), W learned where widths differ: TinyBERT (Jiao et al., 2020)."""
    return total(F.mse_loss(s, t) for _, s, t in each_pair(student, teacher))


@loss("heads", logits=None, layers=True)
def heads(student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
    """mean (a_s − a_t)² of attention matrices (N, heads, T, T), or their mean over heads: TinyBERT (Jiao et al., 2020).

    A layer is a module that gives them; `path:1` takes the second of several outputs. Raises `InputError` for other
    shapes, and for another number of heads."""

    def compared(name: str, s: Tensor, t: Tensor) -> Tensor:
        if s.shape != t.shape:
            raise InputError(
                f"loss 'heads': '{name}' gives attention {tuple(s.shape)} and the teacher's {tuple(t.shape)}: "
                "the same number of heads and tokens is needed"
            )
        return F.mse_loss(s, t)

    return total(compared(*pair) for pair in each_pair(student, teacher))


@loss("attention", logits=None, layers=True)
def attention(student: Outputs, teacher: Outputs, batch: Batch, *, scale: float = 1000.0) -> Tensor:
    """scale·mean (q_s − q_t)², q = a / ‖a‖, a the mean of the squared channels: Zagoruyko & Komodakis (2017).

    Where does a layer look? a has one value per position; channels may differ, and the larger map is pooled to the
    smaller. Maps (N, C, H, W), or sequences (N, T, D) with D as the channels."""

    def compared(name: str, s: Tensor, t: Tensor) -> Tensor:
        if s.ndim != t.ndim or s.ndim < 3:
            raise InputError(f"loss 'attention': '{name}' gives {_two(s, t)}: two maps (N, C, H, W) are needed")
        s, t = same_size(s, t)
        return F.mse_loss(_looks(s), _looks(t))

    return scale * total(compared(*pair) for pair in each_pair(student, teacher))


def _looks(feature: Tensor) -> Tensor:
    channels = 2 if feature.ndim == 3 else 1
    return F.normalize(feature.square().mean(channels).flatten(1), dim=1)


@loss("fsp", logits=None, layers=True, adapter=regressor)
def fsp(student: Outputs, teacher: Outputs, batch: Batch, *, scale: float = 50.0) -> Tensor:
    """scale·mean (G_s − G_t)², G = F₁·F₂ᵀ / positions between one layer and the next: the flow (Yim et al., 2017).

    Layers in order of depth, two or more; maps (N, C, …), the larger of two pooled to the smaller."""
    if len(student.features) < 2:
        raise InputError("loss 'fsp' compares how one layer leads to the next: name two layers or more")
    flows = zip(*(_flows(list(outputs.features.values())) for outputs in (student, teacher)), strict=True)
    return scale * total(F.mse_loss(s, t) for s, t in flows)


def _flows(features: list[Tensor]) -> list[Tensor]:
    """(N, C₁, C₂) for each layer and the next."""
    found = []
    for first, second in pairwise(features):
        if first.ndim != second.ndim or first.ndim < 4:
            raise InputError(f"loss 'fsp' compares maps (N, C, H, W), not {_two(first, second)}")
        a, b = (x.flatten(2) for x in same_size(first, second))  # (N, C, P)
        found.append(a @ b.transpose(1, 2) / a.shape[2])
    return found


@loss("vid", logits=None, layers=True, adapter=variational)
def vid(student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
    """mean ½·(log v + (t − μ(s))² / v), v learned per channel: variational information (Ahn et al., 2019).

    The negative log-likelihood, a constant aside, of the teacher's feature under a Gaussian that the student predicts:
    a lower bound on their mutual information."""
    parts = ((student.variances[name], s, t) for name, s, t in each_pair(student, teacher))
    return total((0.5 * (v.log() + (t - s).square() / v)).mean() for v, s, t in parts)


@loss("feature-norm", logits=None, layers=True, adapter=regressor)
def feature_norm(student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
    """1 − mean s·e / max(‖s‖, ‖t‖): long features in the teacher's direction e, the ND loss (Wang et al., 2023).

    e is the unit vector of the teacher's mean feature of the sample's class in this batch; without labels, of the
    sample's own. Maps and sequences are averaged over their positions first."""
    return total(_norm_and_direction(vectors(s), vectors(t), batch.y) for _, s, t in each_pair(student, teacher))


def _norm_and_direction(s: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    together = alike(labels, t).to(t.dtype)  # (N, N)
    centres = together @ t / together.sum(1, keepdim=True)
    longest = torch.maximum(torch.linalg.vector_norm(s, dim=1), torch.linalg.vector_norm(t, dim=1)).clamp_min(1e-8)
    return 1 - ((s * F.normalize(centres, dim=1)).sum(1) / longest).mean()


def alike(labels: Tensor | None, feature: Tensor) -> Tensor:
    """Which samples are of one class, (N, N); without labels (N,), or with the label −100, each is alone."""
    alone = torch.eye(len(feature), dtype=torch.bool, device=feature.device)
    if not isinstance(labels, Tensor) or labels.shape != feature.shape[:1]:
        return alone
    return alone | ((labels[:, None] == labels[None, :]) & (labels != IGNORED))


def _two(a: Tensor, b: Tensor) -> str:
    return f"{tuple(a.shape)} and {tuple(b.shape)}"
