"""What an agent prunes: a model as a row of layers, each with one sparsity; its MACs, and the pruned model, for any sparsities."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from abridged.calibration.samples import run
from abridged.data.batches import each
from abridged.data.evaluate import device_of
from abridged.pruning.allocation import Layer
from abridged.pruning.channels import channels, macs_by_node, makers_of, masks_of, sparsity_of, zeroed
from abridged.pruning.collect import Collector
from abridged.pruning.layers import form_of, weights_of
from abridged.pruning.plan import Plan
from abridged.pruning.select import select
from abridged.pruning.shrink import Constants, left, settle
from abridged.pruning.surgery import cut

Row = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """One layer as an agent sees it. Of channels that several layers make, the first stands for all."""

    name: str  # the parameter that a sparsity is said of
    outputs: int
    inputs: int
    height: int
    width: int
    stride: int
    kernel: int


class Prunable(Protocol):
    """A model and what can be chosen in it. It is a copy of the user's, in eval mode."""

    model: nn.Module
    places: tuple[Place, ...]
    left: tuple[str, ...]  # lines: what is not touched, and why

    def macs(self, sparsities: Sequence[float]) -> Row:
        """Multiply-accumulates that are left at a sparsity per place, in parts; the same parts each time."""

    def pruned(self, sparsities: Sequence[float]) -> Any:
        """Context manager: the model pruned so, good for the block."""

    def masks(self, sparsities: Sequence[float]) -> dict[str, Tensor]:
        """True for what stays, by parameter name."""


class PrunableWeights:
    """Weights, layer by layer, in any pattern in which a layer's density is free."""

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        collector: Collector,
        plan: Plan,
        include: Sequence[str],
        exclude: Sequence[str],
    ) -> None:
        plan.check()
        self.model = copy.deepcopy(model).eval()
        names, _, self.left = select(self.model, include, exclude)
        self._weights = weights_of(self.model, names)
        self._dense = {name: weight.values.clone() for name, weight in self._weights.items()}
        self._layouts, self._layers = plan.ranked(self.model, names, collector)
        self.places = tuple(_places(self.model, example, names))
        self._cost: Row = np.array([layer.size * layer.positions for layer in self._layers.values()])

    def macs(self, sparsities: Sequence[float]) -> Row:
        layers = zip(self._layers.values(), sparsities, strict=True)
        left_of_each: Row = self._cost * np.array([_share(layer, sparsity) for layer, sparsity in layers])
        return left_of_each

    @contextmanager
    def pruned(self, sparsities: Sequence[float]) -> Iterator[nn.Module]:
        with torch.no_grad():
            for name, mask in self.masks(sparsities).items():
                self.model.get_parameter(name).copy_(self._dense[name] * mask)
            yield self.model

    def masks(self, sparsities: Sequence[float]) -> dict[str, Tensor]:
        densities = {name: 1 - sparsity for name, sparsity in zip(self._layers, sparsities, strict=True)}
        return {
            name: weight.form.original(
                self._layouts[name].mask(self._layers[name].units, densities[name], weight.canonical.shape),
                weight.values.shape,
            )
            for name, weight in self._weights.items()
        }


def _share(layer: Layer, sparsity: float) -> float:
    units = layer.units.shape[1]
    return math.floor((1 - sparsity) * units + 0.5) / units


class PrunableChannels:
    """Groups of coupled channels. Those that forward does not bear to be cut, tried at the highest sparsity, are left."""

    def __init__(self, model: nn.Module, example: Any, collector: Collector, most: float, **options: Any) -> None:
        self.model = copy.deepcopy(model).eval()
        every = channels(self.model, example, collector, **options)
        gone = every.gone([most] * len(every.groups))
        with zeroed(self.model, masks_of(self.model, every.coupling, gone)):
            constants = Constants(every.coupling)
            settled = settle(self.model, constants, example, gone)
            self._folds = bool(constants.folds(settled.gone))
        self._found = every.without(settled.frozen)
        self.left = (*left(every.coupling, settled.frozen), *every.left)
        # Groups that the same weights make share the sparsity that a glob gives: each key is the first name that is new.
        makers = [makers_of(self._found.coupling, group) for group in self._found.groups]
        keys: list[str] = []
        for names in makers:
            if not set(names) & set(keys):
                keys.append(next((name for name in names if name.endswith("weight")), names[0]))
        self._makers = makers
        self.places = tuple(_places(self.model, example, keys))

    def _gone(self, sparsities: Sequence[float]) -> Any:
        said = {place.name: sparsity for place, sparsity in zip(self.places, sparsities, strict=True)}
        return self._found.gone([sparsity_of(names, said) for names in self._makers])

    def macs(self, sparsities: Sequence[float]) -> Row:
        return macs_by_node(self._found.coupling, self._gone(sparsities))

    @contextmanager
    def pruned(self, sparsities: Sequence[float]) -> Iterator[nn.Module]:
        gone, coupling = self._gone(sparsities), self._found.coupling
        if not self._folds:
            yield cut(self.model, coupling, gone)
            return
        with zeroed(self.model, masks_of(self.model, coupling, gone)):
            yield cut(self.model, coupling, gone, Constants(coupling).folds(gone))

    def masks(self, sparsities: Sequence[float]) -> dict[str, Tensor]:
        return masks_of(self.model, self._found.coupling, self._gone(sparsities))


# ---- what an agent sees ------------------------------------------------------------------------------------------------


def _places(model: nn.Module, example: Any, names: Sequence[str]) -> list[Place]:
    """The shapes of the layers that own these parameters; height and width of what they give for the example."""
    shapes: dict[nn.Module, Sequence[int]] = {}

    def remember(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            shapes[module] = output.shape

    modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
    hooks = [module.register_forward_hook(remember) for module in {*modules.values()}]
    try:
        with torch.no_grad():
            run(model, each(example, lambda x: x.to(device_of(model))), "example")
    finally:
        for hook in hooks:
            hook.remove()
    return [_place(name, model.get_parameter(name), modules[name], shapes.get(modules[name], ())) for name in names]


def _place(name: str, parameter: Tensor, module: nn.Module, output: Sequence[int]) -> Place:
    kernel, stride = (_first(getattr(module, key, 1)) for key in ("kernel_size", "stride"))
    canonical = _canonical(module, name, parameter)
    height, width = (*output[2:4], 1, 1)[:2]
    return Place(name, canonical[0] * canonical[1], canonical[2], height, width, stride, kernel)


def _canonical(module: nn.Module, name: str, parameter: Tensor) -> Sequence[int]:
    """(groups, outputs, inputs, taps) of a parameter of a layer."""
    return form_of(module, name.rpartition(".")[2]).canonical(parameter.detach()).shape


def _first(size: Any) -> int:
    return int(size[0] if isinstance(size, (tuple, list)) else size)
