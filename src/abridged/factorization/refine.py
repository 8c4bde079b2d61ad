"""Least squares: the last factor fitted to what the layer really sees."""

from __future__ import annotations

import torch
from torch import Tensor

from abridged.factorization.decomposition import Kernels, compose

RIDGE = 1e-6  # of the mean diagonal, so that the last kernel stays as it was in directions in which nothing was seen


def refined(kernels: Kernels, weight: Tensor, gram: Tensor) -> Kernels:
    """The chain with the last kernel B moved to where ‖(W − B A) X‖² is least: B + (W − B A) C Aᵀ (A C Aᵀ)⁻¹, C = XᵀX.

    `weight`: (O, I, *k) in float64; `gram`: (I·k, I·k). A, (R · taps of B, I·k), is what the kernels before the last do,
    once for each tap of B. Only a last kernel that mixes all channels is fitted; a chain with a grouped one comes back as
    it was, and so does one that was exact: a small ridge holds B where nothing was seen. (Zhang et al. 2016,
    "Accelerating Very Deep Convolutional Networks", without their rectifier.)

    >>> a, b = torch.eye(3).double()[:2], torch.zeros(4, 2).double()
    >>> w = torch.ones(4, 3).double()
    >>> [round(x, 5) for x in refined((a, b), w, torch.eye(3).double())[1][0].tolist()]
    [1.0, 1.0]
    """
    *before, last = kernels
    if last.shape[1] != before[-1].shape[0]:
        return kernels
    features = last[0].numel()
    each = torch.eye(features, dtype=last.dtype, device=last.device).reshape(features, *last.shape[1:])
    inner = compose((*before, each)).flatten(1)  # (R · taps, I·k)
    half = gram @ inner.T
    seen = inner @ half
    ridge = RIDGE * seen.diagonal().mean() + torch.finfo(seen.dtype).tiny
    wrong = (weight - compose(kernels)).flatten(1) @ half
    eye = torch.eye(len(seen), dtype=seen.dtype, device=seen.device)
    step = torch.linalg.solve(seen + ridge * eye, wrong.T).T
    return (*before, last + step.reshape(last.shape))
