"""How often a layer uses each of its weights: multiply-accumulates per weight and sample."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from abridged.calibration.samples import run
from abridged.data.batches import each
from abridged.data.evaluate import device_of, judging
from abridged.errors import InputError

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def positions(model: nn.Module, example: Any, names: Iterable[str]) -> dict[str, float]:
    """Output positions at which each weight is used, per sample; over all calls and sharers of a weight.

    A convolution's are the pixels of its output, a linear layer's the tokens. Raises `InputError` for a weight that the
    forward does not use in one of these ways."""
    owners = {id(model.get_parameter(name)): name for name in names}
    used = dict.fromkeys(owners.values(), 0.0)

    def count(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        places = _places(module, args, keywords, output)
        own = module.parameters() if isinstance(module, nn.MultiheadAttention) else module.parameters(recurse=False)
        for parameter in own:
            if id(parameter) in owners:
                used[owners[id(parameter)]] += places

    hooks = [module.register_forward_hook(count, with_kwargs=True) for module in model.modules()]
    try:
        with judging(model), torch.enable_grad():  # with gradients, attention takes no path around its own modules
            run(model, each(example, lambda x: x.to(device_of(model))), "example")
    finally:
        for hook in hooks:
            hook.remove()
    if silent := [name for name, places in used.items() if not places]:
        raise InputError(f"{silent[0]}: its MACs are not known from the forward of example; exclude it")
    return used


def _places(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> float:
    given = args[0] if args else next(iter(keywords.values()), None)
    if isinstance(module, nn.MultiheadAttention) and isinstance(given, Tensor):
        batch = given.shape[0 if module.batch_first else 1] if given.dim() == 3 else 1
        return prod(given.shape[:-1]) / batch
    if not isinstance(output, Tensor) or not isinstance(given, Tensor):
        return 0.0
    if isinstance(module, CONVOLUTIONS):
        return float(prod(output.shape[2:]))
    if isinstance(module, TRANSPOSED):
        return float(prod(given.shape[2:]))
    return float(prod(output.shape[1:-1])) if isinstance(module, nn.Linear) else 0.0
