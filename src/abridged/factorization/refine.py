"""Least squares: the last factor fitted to what the layer really sees."""

from __future__ import annotations

import torch
from torch import Tensor

from abridged.factorization.decomposition import Kernels, compose

RIDGE = 1e-6  # of the mean diagonal, so that directions in which nothing was seen stay solvable


def refined(kernels: Kernels, weight: Tensor, gram: Tensor) -> Kernels:
    """The chain with the last kernel B that makes ‖(W − B A) X‖² least: B = W C Aᵀ (A C Aᵀ)⁻¹, C = XᵀX.

    `weight`: (O, I, *k) in float64; `gram`: (I·k, I·k). A is what the kernels before the last do together. Only a last
    kernel that is 1 × 1 and mixes all channels is fitted; any other chain comes back as it was. (Zhang et al. 2016,
    "Accelerating Very Deep Convolutional Networks", without their rectifier.)

    >>> a, b = torch.eye(3).double()[:2], torch.zeros(4, 2).double()
    >>> w = torch.ones(4, 3).double()
    >>> refined((a, b), w, torch.eye(3).double())[1][0].tolist()
    [0.9999990000010001, 0.9999990000010001]
    """
    *before, last = kernels
    if last[0, 0].numel() != 1 or last.shape[1] != before[-1].shape[0]:
        return kernels
    inner = compose(tuple(before)).flatten(1)  # (R, I·k)
    seen = inner @ gram @ inner.T
    ridge = RIDGE * seen.diagonal().mean() + torch.finfo(seen.dtype).tiny
    target = weight.flatten(1) @ gram @ inner.T
    eye = torch.eye(len(seen), dtype=seen.dtype, device=seen.device)
    fitted = torch.linalg.solve(seen + ridge * eye, target.T).T
    return (*before, fitted.reshape(last.shape))
