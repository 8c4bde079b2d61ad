"""The environment of AMC (He et al. 2018): an episode walks once through the layers and gives each a sparsity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from abridged.pruning.prunable import Place, Row

Seen = npt.NDArray[np.float32]
HALVINGS = 9  # of the interval in which the least sparsity that meets the budget is sought


class Layers(gymnasium.Env[Seen, Seen]):
    """State: (t, n, c, h, w, stride, k, FLOPs[t], reduced, rest, a[t − 1]), each a share of its largest, in [0, 1].

    Action: the sparsity of layer t in [0, most], as a number a in [−1, 1] of which 0 is the sparsity that meets the budget when
    all layers to come have it too, so that learning starts from uniform sparsity, and what a layer spends or saves is shared
    by all after it; the distance from it goes by a³, since many small deviations at once are what mends a network, and large ones
    ruin it. It is raised to the least with which the budget can still be met when all layers to come have
    `most`: every episode meets it. Reward: 0, and `judge(sparsities)` at the end.

    `load(sparsities)` is what is left of the whole, in (0, 1], under the `budget`."""

    def __init__(
        self,
        places: Sequence[Place],
        load: Callable[[Sequence[float]], float],
        budget: float,
        most: float,
        judge: Callable[[Sequence[float]], float],
    ) -> None:
        self.length, self._load, self._judge = len(places), load, judge
        self._budget, self._most = budget, most
        # A layer's own share: what the whole loses when it alone is pruned as far as it may be.
        alone = [1 - load([most if other == t else 0.0 for other in range(self.length)]) for t in range(self.length)]
        rows = [
            (t, p.outputs, p.inputs, p.height, p.width, p.stride, p.kernel, share)
            for t, (p, share) in enumerate(zip(places, alone, strict=True))
        ]
        table = np.array(rows, np.float64)
        self._rows: Row = table / np.maximum(table.max(0), 1e-12)
        self._shares = np.array(alone)
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (len(rows[0]) + 3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._chosen: list[float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Seen, dict[str, Any]]:
        super().reset(seed=seed)
        self._chosen = []
        return self._state(), {}

    def step(self, action: Seen) -> tuple[Seen, float, bool, bool, dict[str, Any]]:
        way = float(action[0]) ** 3
        centre = self._least(lambda sparsity: self._meets(sparsity, sparsity))
        room = centre if way < 0 else self._most - centre
        self._chosen.append(self.legal(centre + room * way))
        done = len(self._chosen) == self.length
        return self._state(), self._judge(tuple(self._chosen)) if done else 0.0, done, False, {}

    def legal(self, sparsity: float) -> float:
        """The sparsity of the next layer, raised as far as the budget asks."""
        sparsity = min(max(sparsity, 0.0), self._most)
        if self._meets(sparsity, self._most):
            return sparsity
        return self._least(lambda least: self._meets(least, self._most), sparsity)

    def _least(self, meets: Callable[[float], bool], low: float = 0.0) -> float:
        """The least sparsity from `low` to `most` that meets; `most` does."""
        if meets(low):
            return low
        high = self._most
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if meets(middle) else (middle, high)
        return high

    def _meets(self, sparsity: float, later: float) -> bool:
        """Whether the budget is met with this sparsity now and that one in all layers to come."""
        rest = self.length - len(self._chosen) - 1
        return self._load([*self._chosen, sparsity, *[later] * rest]) <= self._budget

    def _state(self) -> Seen:
        t = min(len(self._chosen), self.length - 1)
        rest = [0.0] * (self.length - len(self._chosen))
        reduced = 1 - self._load([*self._chosen, *rest])
        before = self._chosen[-1] if self._chosen else 0.0
        ends = (reduced, self._shares[t + 1 :].sum(), before)
        state: Seen = np.clip(np.array([*self._rows[t], *ends]), 0, 1).astype(np.float32)
        return state
