"""The contrastive loss: of all teacher features, a student's own should be the one it recognizes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from abridged.data import Batch
from abridged.distillation.adapters import embedding
from abridged.distillation.features import alike, each_pair, total
from abridged.distillation.table import Outputs, loss


@loss("crd", logits=None, layers=True, adapter=embedding)
def contrast(student: Outputs, teacher: Outputs, batch: Batch, *, tau: float = 0.07, scale: float = 0.8) -> Tensor:
    """−scale·mean (log h_ii + Σ_j log(1 − h_ij)), h = e^x / (e^x + k/N), x_ij = s_i·t_j / τ (Tian et al., 2020).

    s, t: embeddings (N, D) of length 1. The k negatives j are the other samples of this batch, where there are labels
    those of another class; the paper draws them from a memory of the whole data set instead, which a pure function of
    the batch has not. Larger batches give more of them."""
    return scale * total(_contrasted(s, t, batch.y, tau) for _, s, t in each_pair(student, teacher))


def _contrasted(s: Tensor, t: Tensor, labels: Tensor | None, tau: float) -> Tensor:
    negatives = ~alike(labels, s)
    k = negatives.sum(1, keepdim=True).clamp_min(1).to(s.dtype)  # (N, 1)
    odds = s @ t.T / tau - (k / len(s)).log()  # log of e^x / (k/N): h = sigmoid
    positive = F.logsigmoid(odds.diagonal())
    negative = (F.logsigmoid(-odds) * negatives).sum(1)
    return -(positive + negative).mean()
