"""Least squares: the last factor fitted to what the layer really sees."""

from __future__ import annotations

import torch
from torch import Tensor

from abridged.factorization.decomposition import Kernels, compose

RIDGE = 1e-6  # of the mean diagonal, so that the last kernel stays as it was in directions in which nothing was seen


def refined(kernels: Kernels, weight: Tensor, gram: Tensor) -> Kernels:
    """The chain with the last kernel B moved to where ‖(W − B A) X‖² is least: B + (W − B A) C Aᵀ (A C Aᵀ)⁻¹, C = XᵀX.

    `weight`: (O, I, *k) in float64; `gram`: (I·k, I·k). A is what the kernels before the last do together. Only a last
    kernel that is 1 × 1 and mixes all channels is fitted; any other chain comes back as it was, and so does one that was
    exact: a small ridge holds B where nothing was seen. (Zhang et al. 2016,
    "Accelerating Very Deep Convolutional Networks", without their rectifier.)

    >>> a, b = torch.eye(3).double()[:2], torch.zeros(4, 2).double()
    >>> w = torch.ones(4, 3).double()
    >>> [round(x, 5) for x in refined((a, b), w, torch.eye(3).double())[1][0].tolist()]
    [1.0, 1.0]
    """
    *before, last = kernels
    if last[0, 0].numel() != 1 or last.shape[1] != before[-1].shape[0]:
        return kernels
    inner = compose(tuple(before)).flatten(1)  # (R, I·k)
    seen = inner @ gram @ inner.T
    ridge = RIDGE * seen.diagonal().mean() + torch.finfo(seen.dtype).tiny
    wrong = (weight - compose(kernels)).flatten(1) @ gram @ inner.T
    eye = torch.eye(len(seen), dtype=seen.dtype, device=seen.device)
    step = torch.linalg.solve(seen + ridge * eye, wrong.T).T
    return (*before, last + step.reshape(last.shape))
