"""What a layer takes on the target, by a function that was given: dense, and in factors of any ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import nn

from abridged.data.batches import each
from abridged.data.data import copied
from abridged.data.evaluate import device_of
from abridged.errors import InputError
from abridged.factorization.amount import Cost
from abridged.factorization.decomposition import Ranks
from abridged.factorization.factoring import Factoring
from abridged.graph.capture import capture
from abridged.graph.graph import Graph


def on_cpu(module: nn.Module, example: Any) -> Graph:
    """The graph of a module, wherever it is."""
    if device_of(module).type != "cpu":
        module = copied(module).cpu()
    return capture(module, each(example, lambda x: x.cpu()))


@dataclass(eq=False)
class Clock:
    """Asks `cost` once for each different layer; layers of one form and input share an answer."""

    cost: Cost
    _known: dict[object, float] = field(default_factory=dict)

    def dense(self, factoring: Factoring) -> float:
        """Seconds of all calls of the layer as it is."""
        return self._seconds(factoring, factoring.layer.module, ())

    def factors(self, factoring: Factoring, ranks: Ranks) -> float:
        """Seconds of all calls of its factors; their values do not matter, so none are computed."""
        shapes = factoring.parts[0].shapes(ranks)
        kernels = tuple(torch.randn(len(factoring.parts), *shape) for shape in shapes)
        return self._seconds(factoring, factoring.module(kernels), (factoring.method, ranks))

    def _seconds(self, factoring: Factoring, module: nn.Module, what: tuple[object, ...]) -> float:
        layer = factoring.layer
        if layer.example is None:
            return 0.0
        key = (repr(layer.module), tuple(layer.example.shape), what)
        if key not in self._known:
            seconds: Any = self.cost(on_cpu(module.eval() if what else module, layer.example))
            if not isinstance(seconds, Real) or not 0 < float(seconds) < float("inf"):
                raise InputError(f"cost must give seconds above 0, not {seconds!r}")
            self._known[key] = float(seconds)
        return self._known[key] * len(layer.calls)
