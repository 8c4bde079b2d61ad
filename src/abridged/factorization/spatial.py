"""k×1, then 1×k."""

from __future__ import annotations

from torch import Tensor

from abridged.errors import UnsupportedError
from abridged.factorization.decomposition import METHODS, Decomposition, Shape
from abridged.factorization.svd import in_two


@METHODS.entry("spatial")
def spatial(weight: Tensor, gram: Tensor | None = None) -> Decomposition:
    """A kh×kw convolution as kh×1 to R channels, then 1×kw: W[o,i,a,b] ≈ Σ_r V[r,i,a] H[o,r,b].

    The best of this form is the truncated SVD of the (I·kh) × (O·kw) matrix (Jaderberg et al. 2014,
    https://arxiv.org/abs/1405.3866, scheme 2; closed form: Tai et al. 2016). R (I·kh + O·kw) parameters; depthwise layers
    profit too."""
    if weight.dim() != 4 or min(weight.shape[2:]) == 1:
        raise UnsupportedError("spatial needs a kernel with two axes larger than 1")
    outputs, inputs, height, width = weight.shape

    def shapes(rank: int) -> tuple[Shape, Shape]:
        return (rank, inputs, height, 1), (outputs, rank, 1, width)

    return in_two(
        weight.permute(1, 2, 0, 3).reshape(inputs * height, outputs * width),
        ("vertical", "horizontal"),
        shapes,
        lambda a, b: (a.T, b.reshape(len(b), outputs, width).transpose(0, 1)),
    )
