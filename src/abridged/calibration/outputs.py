"""What comes out of layers: how active each output channel is, after the batch norm that follows where one does."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from abridged.calibration.samples import Samples, run
from abridged.calibration.sites import Site, chosen
from abridged.data.evaluate import judging
from abridged.errors import InputError

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def outputs(model: nn.Module, data: Samples, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """By parameter name, each (output channels,): "active", the share of samples and positions at which the output is above
    zero; "activation", the mean of |output|; and "scale", |γ| of the batch norm, where a layer's output goes straight to one
    (the other two are then of the norm's output). One pass; the model stays as it is."""
    watch = _Watch()
    sites = chosen(model, names)
    layers = {module: site for site in sites.values() for module in site.modules}
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    hooks = [module.register_forward_hook(partial(watch.layer, site)) for module, site in layers.items()]
    hooks += [norm.register_forward_hook(watch.norm) for norm in norms]
    try:
        with judging(model):
            for x in data.on(model):
                run(model, x)
                watch.fresh.clear()
    finally:
        for hook in hooks:
            hook.remove()
    for name in sites:
        if name not in watch.own:
            raise InputError(
                f"{name}: the model never calls its layer on this data, so nothing is known of its outputs"
            )
    return {name: _told(watch.normed.get(name, watch.own[name])) | watch.scale.get(name, {}) for name in sites}


class _Watch:
    """Sums (positions, positive ones, absolute values) of each layer's outputs, and of those of the norm behind it."""

    def __init__(self) -> None:
        self.own: dict[str, Tensor] = {}
        self.normed: dict[str, Tensor] = {}
        self.scale: dict[str, dict[str, Tensor]] = {}
        self.fresh: list[
            tuple[str, Tensor]
        ] = []  # outputs of layers since the last forward began, kept alive to compare

    def layer(self, site: Site, module: nn.Module, args: object, output: Tensor) -> None:
        channels = output.ndim - 1 if isinstance(module, nn.Linear) else 1
        _add(self.own, site.name, output, channels)
        self.fresh = [*self.fresh[-7:], (site.name, output)]

    def norm(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        for name, given in self.fresh:
            if args and args[0] is given:
                _add(self.normed, name, output, 1)
                if isinstance(module.weight, Tensor):
                    self.scale[name] = {"scale": module.weight.detach().abs()}


def _add(sums: dict[str, Tensor], name: str, output: Tensor, channels: int) -> None:
    rows = output.detach().movedim(channels, 0).flatten(1).double()
    part = torch.stack([torch.full_like(rows[:, 0], rows.shape[1]), (rows > 0).sum(1).double(), rows.abs().sum(1)])
    sums[name] = sums[name] + part if name in sums else part


def _told(sums: Tensor) -> dict[str, Tensor]:
    return {"active": sums[1] / sums[0], "activation": sums[2] / sums[0]}
