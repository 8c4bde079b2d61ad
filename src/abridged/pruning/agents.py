"""Agents: who chooses the sparsities. One function each in `AGENTS`, from stable-baselines3 (extra `rl`).

All learn off-policy from every episode so far. The reward comes once, at the end of an episode, so returns are taken to its end
(n-step returns as long as the episode, no discount), which tells every step of it the same, as in He et al. 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from abridged.errors import InputError
from abridged.tables import Table

if TYPE_CHECKING:
    from abridged.pruning.environment import Layers

HIDDEN = 300  # units of each of the two hidden layers
NOISE = (0.35, 0.05)  # standard deviation of the exploration at the first and the last episode, in [−1, 1]


@dataclass(frozen=True)
class Course:
    """How long is learnt: episodes in all, of which the first are uniformly random, and the seed."""

    episodes: int
    warmup: int
    seed: int


class Agent(Protocol):
    """What is used of an algorithm of stable-baselines3."""

    def learn(self, total_timesteps: int) -> Any: ...

    def predict(self, observation: Any, *, deterministic: bool) -> tuple[Any, Any]: ...


AGENTS: Table[Callable[[Layers, Course], Agent]] = Table("agent")


@AGENTS.entry("ddpg")
def ddpg(layers: Layers, course: Course) -> Agent:
    """Deterministic policy gradient (Lillicrap et al. 2016), the agent of AMC (He et al. 2018): noise that decays by episode."""
    return _sb3().DDPG("MlpPolicy", layers, action_noise=_noise(course), **_options(layers, course))  # type: ignore[no-any-return]


@AGENTS.entry("td3")
def td3(layers: Layers, course: Course) -> Agent:
    """Twin critics, delayed and smoothed targets (Fujimoto et al. 2018): the same with less overestimation."""
    return _sb3().TD3("MlpPolicy", layers, action_noise=_noise(course), **_options(layers, course))  # type: ignore[no-any-return]


@AGENTS.entry("sac")
def sac(layers: Layers, course: Course) -> Agent:
    """Soft actor-critic (Haarnoja et al. 2018): a random policy, its entropy part of the reward and tuned on the way."""
    return _sb3().SAC("MlpPolicy", layers, **_options(layers, course))  # type: ignore[no-any-return]


def _sb3() -> Any:
    try:
        import stable_baselines3
    except ImportError:
        raise InputError("agents need stable-baselines3 and gymnasium: pip install 'abridged[rl]'") from None
    return stable_baselines3


def _options(layers: Layers, course: Course) -> dict[str, Any]:
    steps = layers.length
    return {
        "learning_rate": 1e-3,
        "buffer_size": course.episodes * steps + 1,
        "learning_starts": course.warmup * steps,
        "batch_size": 64,
        "tau": 0.01,
        "gamma": 1.0,
        "n_steps": steps,
        "train_freq": (1, "episode"),
        "gradient_steps": steps,
        "policy_kwargs": {"net_arch": [HIDDEN, HIDDEN]},
        "seed": course.seed,
        "device": "cpu",
    }


def _noise(course: Course) -> Any:
    """Normal noise whose deviation shrinks from episode to episode by a constant factor, once the warm-up is over."""
    noise = _sb3().common.noise.NormalActionNoise
    first, last = NOISE
    factor = (last / first) ** (1 / max(1, course.episodes - course.warmup))

    class Fading(noise):  # type: ignore[misc, valid-type]
        _sigma: Any
        episode = 0

        def reset(self) -> None:
            self.episode += 1
            if self.episode > course.warmup:
                self._sigma = self._sigma * factor

    return Fading(np.zeros(1), np.full(1, first))
