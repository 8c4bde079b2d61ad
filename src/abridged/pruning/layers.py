"""Weights in one form: (groups, outputs, inputs, taps), whatever layer they belong to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Form:
    """How a parameter's own axes stand for groups, outputs, inputs and kernel taps.

    A linear layer's (O, I) is (1, O, I, 1); a convolution's (O, I/g, kh, kw) is (g, O/g, I/g, kh·kw); a transposed
    convolution's (I, O/g, kh, kw) the same, turned round.

    >>> Form(groups=2).canonical(torch.zeros(8, 3, 5, 5)).shape, Form(2, True).canonical(torch.zeros(6, 4, 5, 5)).shape
    (torch.Size([2, 4, 3, 25]), torch.Size([2, 4, 3, 25]))
    """

    groups: int = 1
    transposed: bool = False

    def canonical(self, elements: Tensor) -> Tensor:
        """Elements of the parameter's shape → (groups, outputs, inputs, taps); a view wherever one can be had."""
        shape = (*elements.shape, 1, 1)
        taps = math.prod(shape[2:])
        if self.transposed:
            return elements.reshape(self.groups, shape[0] // self.groups, shape[1], taps).transpose(1, 2)
        return elements.reshape(self.groups, shape[0] // self.groups, shape[1], taps)

    def original(self, elements: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `canonical`: (groups, outputs, inputs, taps) → the parameter's shape."""
        return (elements.transpose(1, 2) if self.transposed else elements).reshape(shape)


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter's values, detached, and the form of its axes."""

    values: Tensor
    form: Form = Form()

    @property
    def canonical(self) -> Tensor:
        """The values as (groups, outputs, inputs, taps)."""
        return self.form.canonical(self.values)


def form_of(module: nn.Module, attribute: str) -> Form:
    """The form of one parameter of a layer; of a kind that we do not know, outputs first and then inputs."""
    if attribute == "weight" and isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return Form(module.groups, isinstance(module, TRANSPOSED))
    return Form()


def weights_of(model: nn.Module, names: Iterable[str]) -> dict[str, Weight]:
    """Parameters of a model by name, as they are now."""

    def weight(name: str) -> Weight:
        path, _, attribute = name.rpartition(".")
        return Weight(model.get_parameter(name).detach(), form_of(model.get_submodule(path), attribute))

    return {name: weight(name) for name in names}
