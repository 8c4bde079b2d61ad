"""What criteria need to know, collected when they need it: one pass over calibration data for all weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from abridged.calibration.gradients import KINDS, gradients, synaptic_flow
from abridged.calibration.outputs import outputs
from abridged.calibration.positions import positions
from abridged.calibration.samples import Samples
from abridged.calibration.stats import stream
from abridged.data import Data
from abridged.errors import InputError
from abridged.pruning.criteria import Stats
from abridged.pruning.layers import Weight

LABELLED = frozenset(KINDS)  # these need data with labels
INPUTS = {"input_norm": "input_norm", "input_gram": "gram"}  # our name of it, and its statistic's
OUTPUTS = frozenset({"scale", "active", "activation"})
SHAPED = frozenset({"flow", "positions", *INPUTS, *OUTPUTS})  # for these an example of the input is enough


class Collector:
    """Where statistics of weights come from. What is learnt while training (movement) it keeps between steps."""

    def __init__(self, data: Data | None = None, example: Any = None, samples: int = 1024) -> None:
        if data is not None and not isinstance(data, Data):
            raise InputError(f"data must be an ab.Data, not {type(data).__name__}")
        self._data, self._example, self._samples = data, example, samples
        self._movement: dict[str, Tensor] = {}
        self._positions: dict[str, float] = {}

    def check(self, criterion: str, needs: frozenset[str]) -> None:
        """Raises `InputError` when data or example is missing for what is needed."""
        if needs & LABELLED and self._data is None:
            what = sorted(needs & LABELLED)[0].replace("_", " ")
            raise InputError(f"criterion '{criterion}' needs data (the {what} of the loss): give data=ab.Data(…)")
        if needs & SHAPED and self._data is None and self._example is None:
            who = f"criterion '{criterion}'" if needs & {"flow", *INPUTS, *OUTPUTS} else "of='macs'"
            raise InputError(f"{who} needs to know what goes in: give example= (an input) or data=ab.Data(…)")

    def __call__(
        self,
        model: nn.Module,
        weights: Mapping[str, Weight],
        masks: Mapping[str, Tensor],
        needs: frozenset[str],
        seed: int = 0,
    ) -> dict[str, Stats]:
        """What is needed of each of these weights of the model, as it is with the masks applied."""
        found: dict[str, Mapping[str, Any]] = {}
        if kinds := needs & LABELLED:
            assert self._data is not None
            taken = gradients(model, self._data, kinds, weights, masks=masks, samples=self._samples, seed=seed)
            found |= {kind: _canonical(values, weights) for kind, values in taken.items()}
        if kinds := needs & set(INPUTS):
            found |= self._inputs(model, weights, kinds, seed)
        if kinds := needs & OUTPUTS:
            known = outputs(model, self._source(seed), weights)
            found |= {kind: {n: _as_output(known[n].get(kind), w) for n, w in weights.items()} for kind in kinds}
        if "flow" in needs:
            found["flow"] = _canonical(synaptic_flow(model, self._input(), weights, masks), weights)
        if "positions" in needs:
            self._positions = self._positions or positions(model, self._input(), weights)
            found["positions"] = self._positions
        if "movement" in needs:
            found["movement"] = _canonical(self._moved(weights), weights)
        return {name: Stats(name, seed, **{need: found[need][name] for need in needs}) for name in weights}

    def watch(self, model: nn.Module, names: Iterable[str]) -> None:
        """Add up Σ w · ∂L/∂w; to be called just before each optimizer step of a criterion that needs movement."""
        for name in names:
            parameter = model.get_parameter(name)
            if parameter.grad is not None:
                product = parameter.detach().float() * parameter.grad.detach().float()
                before = self._movement.get(name)
                self._movement[name] = product if before is None else before.to(product.device).add_(product)

    def __deepcopy__(self, memo: dict[int, Any]) -> Collector:
        """What was learnt is copied; data, which nothing changes, is shared."""
        copied = copy.copy(self)
        copied._movement = {name: value.clone() for name, value in self._movement.items()}
        return copied

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs, by parameter name."""
        return dict(self._movement)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        self._movement = {name: value.clone() for name, value in state.items()}

    def _source(self, seed: int) -> Samples:
        source: Any = self._data
        if source is None:  # a tuple is the model's positional inputs
            source = (self._example, None) if isinstance(self._example, tuple) else self._example
        return Samples(source, self._samples, seed=seed)

    def _inputs(
        self, model: nn.Module, weights: Mapping[str, Weight], kinds: frozenset[str], seed: int
    ) -> dict[str, dict[str, Tensor]]:
        known = dict(stream(model, self._source(seed), [INPUTS[kind] for kind in kinds], names=weights))
        return {
            kind: {
                name: _as_input(known[name][INPUTS[kind]], weight) if kind == "input_norm" else known[name]["gram"]
                for name, weight in weights.items()
            }
            for kind in kinds
        }

    def _input(self) -> Any:
        if self._example is not None:
            return self._example
        assert self._data is not None
        return self._data.example_input()

    def _moved(self, weights: Mapping[str, Weight]) -> dict[str, Tensor]:
        # Before the first step nothing has moved; all that is asked for then is a density of one.
        return {
            name: self._movement[name].to(weight.values.device)
            if name in self._movement
            else torch.zeros(weight.values.shape, device=weight.values.device)
            for name, weight in weights.items()
        }


def _as_input(values: Tensor, weight: Weight) -> Tensor:
    """(g, I·T) → (g, 1, I, T)."""
    groups, _, inputs, taps = weight.canonical.shape
    return values.reshape(groups, 1, inputs, taps)


def _as_output(values: Tensor | None, weight: Weight) -> Tensor | None:
    """(outputs of all groups,) → (g, O)."""
    return None if values is None else values.reshape(weight.canonical.shape[:2])


def _canonical(values: Mapping[str, Tensor], weights: Mapping[str, Weight]) -> dict[str, Tensor]:
    return {name: weights[name].form.canonical(value) for name, value in values.items()}
