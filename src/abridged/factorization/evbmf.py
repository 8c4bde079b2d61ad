"""How many singular values of a matrix are more than noise: variational Bayes, solved analytically."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from abridged.factorization.decomposition import spectrum

TAU = 2.5129  # the zero of Φ that bounds which singular values survive: τ̄ = 2.5129 √α
POINTS, ROUNDS = 256, 6  # of the search for the noise: on a grid, refined around the best


def evbmf(matrix: Tensor) -> int:
    """The rank that empirical variational Bayesian matrix factorization finds: components above the noise; 0 if none is.

    The global solution is analytic (Nakajima, Sugiyama, Babacan & Tomioka 2013, theorem 2 and corollary 1; JMLR 14): with
    L ≤ M the sides, α = L/M and noise variance σ², the h-th component is kept if its singular value exceeds
    σ √(M (1 + τ̄)(1 + α/τ̄)), τ̄ = 2.5129 √α. σ² minimises the free energy
    Ω(σ²) = Σ_{h ≤ H} ψ(x_h) + Σ_{h > H} ψ₀(x_h), x_h = s_h² / (M σ²), one-dimensional and here searched on a grid."""
    energies = spectrum(matrix.double()) / max(matrix.shape)
    if not energies.numel() or float(energies[0]) == 0:
        return 0
    rounding = torch.finfo(energies.dtype).eps * max(matrix.shape) * energies[0]
    energies = energies.where(energies > rounding, 0)  # the spectrum of rounding is not that of noise
    alpha = min(matrix.shape) / max(matrix.shape)
    tau = TAU * math.sqrt(alpha)
    threshold = (1 + tau) * (1 + alpha / tau)  # of x
    return int((energies > threshold * _noise(energies, alpha, threshold)).sum())


def _noise(energies: Tensor, alpha: float, threshold: float) -> float:
    """The σ² of least free energy, between the bounds of the theorem (energies: s_h² / M, descending)."""
    count = len(energies)
    most = min(math.ceil(count / (1 + alpha)) - 1, count - 1)
    low = max(float(energies[most] / threshold), float(energies[most:].mean()))
    high = float(energies.sum()) / count
    if high <= low or low == 0:  # without noise: what is not zero stays
        return low
    for _ in range(ROUNDS):
        grid = torch.logspace(math.log10(low), math.log10(high), POINTS, dtype=energies.dtype)
        best = int(_free_energy(energies / grid[:, None], alpha, threshold).argmin())
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, POINTS - 1)])
    return math.sqrt(low * high)


def _free_energy(x: Tensor, alpha: float, threshold: float) -> Tensor:
    """Σ x − ln x over the noise, and over the components kept x − τ + ln (τ + 1)/x + α ln(τ/α + 1); x (…, n) → (…)."""
    large, small = x.clamp(min=threshold), x.clamp(min=torch.finfo(x.dtype).tiny, max=threshold)
    off = large - (1 + alpha)
    root = (off.square() - 4 * alpha).clamp(min=0).sqrt()
    tau = (off + root) / 2
    rest = 1 + alpha + 2 * alpha / (off + root)  # x − τ, without cancellation
    kept = rest + ((tau + 1) / large).log() + alpha * (tau / alpha + 1).log()
    return torch.where(x > threshold, kept, small - small.log()).sum(-1)
