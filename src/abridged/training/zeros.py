"""Zeros that nothing holds: the first step of a training would fill them, and a pruned network be dense again."""

from __future__ import annotations

import warnings

from torch import nn


class ZerosWarning(UserWarning):
    """A pruned network is trained without its masks."""


def warn_of_zeros(model: nn.Module) -> None:
    """Warn, in one line, of trainable weights that are mostly zero, before a training without masks.

    Mostly: more than half of a weight with two or more axes, but not all of it: that is how some layers begin."""
    sparse = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or parameter.ndim < 2:
            continue
        zeros = 1 - int(parameter.count_nonzero()) / max(1, parameter.numel())
        if 0.5 < zeros < 1:
            sparse.append(f"{name} {100 * zeros:.0f} %")
    if sparse:
        more = f" and {len(sparse) - 3} more" if len(sparse) > 3 else ""
        warnings.warn(
            f"weights are mostly zero ({', '.join(sparse[:3])}{more}) and no mask holds them: training fills the zeros; "
            "give masks=, what ab.prune returned, to keep them",
            ZerosWarning,
            stacklevel=3,
        )
