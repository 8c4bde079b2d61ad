"""A layer's weight as kernels per group, and kernels as a layer again: an nn.Sequential of plain modules."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from abridged.factorization.decomposition import Kernels, Shape, grouped
from abridged.tables import Table

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class Kind:
    """How one type of layer is read and rebuilt.

    `weight(layer)`: (groups, O, I, *k), as it is stored. `build(layer, names, kernels)`: the stages of a chain, whose
    kernels are (groups, O, I, *k); biases are on the last. `uses(layer, shapes, inputs, output)`: how often each element
    of each kernel is multiplied, for inputs and an output of these shapes."""

    weight: Callable[[Any], Tensor]
    build: Callable[[Any, Sequence[str], Kernels], nn.Sequential]
    uses: Callable[[Any, Sequence[Shape], Shape, Shape], tuple[int, ...]]


# Name of the exact type of a layer → Kind; a subclass may compute something else.
KINDS: Table[Kind] = Table("kind of layer")


def owners(shapes: Sequence[Shape]) -> list[int]:
    """For each axis of k the kernel that acts along it (the first, where none does): stride and padding go there.

    >>> owners([(4, 8, 3, 1), (16, 4, 1, 3)])
    [0, 1]
    """
    axes = len(shapes[0]) - 2
    return [next((at for at, shape in enumerate(shapes) if shape[2 + axis] > 1), 0) for axis in range(axes)]


def _sequence(names: Sequence[str], stages: Sequence[nn.Module], like: Any) -> nn.Sequential:
    sequence = nn.Sequential(OrderedDict(zip(names, stages, strict=True)))
    sequence.requires_grad_(like.weight.requires_grad)
    return sequence.train(like.training)


def _fill(layer: Any, kernel: Tensor, bias: nn.Parameter | None = None) -> nn.Module:
    """A layer built without memory gets its weight, and the bias of the original."""
    filled: nn.Module = layer
    filled.weight = nn.Parameter(kernel)
    if bias is not None:
        filled.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return filled


# --- linear layers ----------------------------------------------------------------------------------------------------


def _linear(layer: nn.Linear, names: Sequence[str], kernels: Kernels) -> nn.Sequential:
    stages, last = [], len(kernels) - 1
    for at, kernel in enumerate(kernels):
        bias = layer.bias if at == last else None
        outputs, inputs = kernel.shape[1:]
        stages.append(_fill(nn.Linear(inputs, outputs, bias is not None, device="meta"), _plain(kernel, layer), bias))
    return _biased(_sequence(names, stages, layer), layer)


def _plain(kernel: Tensor, layer: Any) -> Tensor:
    """(groups, O, I, *k) → (groups · O, I, *k), in the dtype and on the device of the layer."""
    weight = layer.weight
    return kernel.flatten(0, 1).to(weight.device, weight.dtype).contiguous()


def _biased(sequence: nn.Sequential, layer: Any) -> nn.Sequential:
    if getattr(layer, "bias", None) is not None:
        sequence[-1].bias.requires_grad_(layer.bias.requires_grad)
    return sequence


def _linear_uses(layer: nn.Linear, shapes: Sequence[Shape], inputs: Shape, output: Shape) -> tuple[int, ...]:
    return (math.prod(inputs[:-1]),) * len(shapes)


KINDS.entry("Linear")(Kind(lambda layer: layer.weight[None], _linear, _linear_uses))


# --- embeddings: a lookup of R numbers, then a linear layer -------------------------------------------------------------


def _embedding(layer: nn.Embedding, names: Sequence[str], kernels: Kernels) -> nn.Sequential:
    """The first kernel (R, tokens) becomes the table; the row of a padding token gets no gradient, as before."""
    table = _plain(kernels[0], layer).T.contiguous()
    lookup = nn.Embedding(
        len(table),
        table.shape[1],
        padding_idx=layer.padding_idx,
        scale_grad_by_freq=layer.scale_grad_by_freq,
        device="meta",
    )
    linear = nn.Linear(kernels[1].shape[2], kernels[1].shape[1], bias=False, device="meta")
    return _sequence(names, [_fill(lookup, table), _fill(linear, _plain(kernels[1], layer))], layer)


def _embedding_uses(layer: nn.Embedding, shapes: Sequence[Shape], inputs: Shape, output: Shape) -> tuple[int, ...]:
    return (0, math.prod(inputs))[: len(shapes)]


KINDS.entry("Embedding")(Kind(lambda layer: layer.weight.T[None], _embedding, _embedding_uses))


# --- convolutions -------------------------------------------------------------------------------------------------------


def _convolution(layer: Any, names: Sequence[str], kernels: Kernels) -> nn.Sequential:
    """Each stage has the stride, padding and dilation of its own axes; groups of a stage come from its channels."""
    stages: list[nn.Module] = []
    channels, last = layer.in_channels, len(kernels) - 1
    owner = owners([tuple(kernel.shape[1:]) for kernel in kernels])
    for at, kernel in enumerate(kernels):
        own = [axis_owner == at for axis_owner in owner]
        bias = layer.bias if at == last else None
        groups, outputs = channels // kernel.shape[2], kernel.shape[0] * kernel.shape[1]
        convolution = CONVOLUTIONS[len(owner)](
            channels, outputs, tuple(kernel.shape[3:]),
            stride=_of(own, layer.stride, 1), padding=_padding(own, layer.padding), dilation=_of(own, layer.dilation, 1),
            groups=groups, bias=bias is not None, padding_mode=layer.padding_mode, device="meta",
        )  # fmt: skip
        stages.append(_fill(convolution, _plain(kernel, layer), bias))
        channels = outputs
    return _biased(_sequence(names, stages, layer), layer)


def _of(own: list[bool], values: tuple[int, ...], otherwise: int) -> tuple[int, ...]:
    return tuple(value if mine else otherwise for mine, value in zip(own, values, strict=True))


def _padding(own: list[bool], padding: str | tuple[int, ...]) -> str | tuple[int, ...]:
    return padding if isinstance(padding, str) else _of(own, padding, 0)


def _convolution_uses(layer: Any, shapes: Sequence[Shape], inputs: Shape, output: Shape) -> tuple[int, ...]:
    """Samples · positions after each stage: strided once the stage that owns an axis has run."""
    axes = len(shapes[0]) - 2
    owner = owners(shapes)
    samples = math.prod(inputs[: -axes - 1])
    before, after = inputs[-axes:], output[-axes:]
    return tuple(
        samples * math.prod(after[axis] if owner[axis] <= at else before[axis] for axis in range(axes))
        for at in range(len(shapes))
    )


for _name in ("Conv1d", "Conv2d", "Conv3d"):
    KINDS.entry(_name)(Kind(lambda layer: grouped(layer.weight, layer.groups), _convolution, _convolution_uses))


@torch.no_grad()
def stored(layer: nn.Module) -> Tensor:
    """The weight of a layer as (groups, O, I, *k), in float64 on the CPU."""
    return KINDS[type(layer).__name__].weight(layer).detach().to("cpu", torch.float64)
