"""The agent's search: its environment meets the budget whatever is done, it is reproducible, and what it finds is what prune does."""

import builtins
import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

import abridged as ab
from abridged.data.sets import get
from abridged.errors import AbridgedError, InputError
from abridged.graph.cost import cost
from abridged.graph.graph import Graph
from abridged.pruning.agent import REWARDS
from abridged.pruning.agents import AGENTS
from abridged.training import fit

pytest.importorskip("stable_baselines3")


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, ab.Data]:
    torch.manual_seed(0)
    data = get("digits")
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    fit(model, data, epochs=4)
    return model.eval(), data


def macs(model: nn.Module, x: torch.Tensor) -> int:
    graph = ab.capture(model, x)
    return sum(cost(node, graph).effective_macs for node in graph)


def search(trained, **options) -> ab.Search:
    model, data = trained
    return ab.search_sparsities(model, data, **{"macs": 0.4, "episodes": 6, "samples": 128, "say": None, **options})


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("pattern", ["channel", "unstructured"])
def test_what_is_found_meets_the_budget_and_is_what_prune_does(trained, agent, pattern):
    model, data = copy.deepcopy(trained[0]), trained[1]
    before = copy.deepcopy(model.state_dict())
    found = search((model, data), agent=agent, pattern=pattern)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(found.history) == 6 + 2, "uniform first, and at the end without exploring"
    assert f"{agent}, 6 episodes over" in str(found)
    assert all(episode.macs <= 0.4 for episode in found.history)
    assert found.best.reward == max(episode.reward for episode in found.history)
    assert found.best.error <= found.uniform.error
    x = data.example_input()
    masks = ab.prune(
        model, pattern=pattern, allocation=found.sparsities, example=x if pattern == "channel" else None, say=None
    )
    assert set(masks) == set(found.masks)
    assert all(torch.equal(masks[name], mask) for name, mask in found.masks.items())
    small = ab.shrink(model, x, say=None) if pattern == "channel" else model
    assert macs(small, x) / macs(trained[0], x) == pytest.approx(found.best.macs)
    assert AGENTS.summary(agent)


@pytest.mark.parametrize("agent", AGENTS)
def test_two_searches_of_one_seed_agree_and_leave_the_generators(trained, agent):
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    first = search(trained, agent=agent, seed=3, warmup=2)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected
    assert search(trained, agent=agent, seed=3, warmup=2).history == first.history
    assert search(trained, agent=agent, seed=4, warmup=2).history != first.history


def by_macs(graph: Graph) -> float:
    """A machine on which a convolution takes three times as long per MAC as a linear layer, and 0.1 ms for the rest."""
    return sum((3 if node.op == "conv" else 1) * cost(node, graph, {}).macs for node in graph) * 1e-9 + 1e-4


def test_a_budget_in_seconds_is_met_as_measured(trained):
    dense = by_macs(ab.capture(trained[0], trained[1].example_input()))
    found = search(trained, macs=None, seconds=0.7 * dense, cost=by_macs)
    model = copy.deepcopy(trained[0])
    x = trained[1].example_input()
    ab.prune(model, pattern="channel", allocation=found.sparsities, example=x, say=None)
    seconds = by_macs(ab.capture(ab.shrink(model, x, say=None), x))
    assert found.best.seconds == pytest.approx(seconds)
    assert seconds <= 0.7 * dense
    assert f"{1e3 * seconds:.4g} ms" in str(found)


def test_rewards_by_hand():
    assert REWARDS["error"](0.25, 1e6, math.nan) == -0.25
    assert REWARDS["macs"](0.5, math.e**3, math.nan) == pytest.approx(-1.5)
    assert REWARDS["latency"](0.5, 1e6, math.e * 1e-6) == pytest.approx(-0.5)
    assert all(REWARDS.summary(name) for name in REWARDS)


@pytest.mark.parametrize(("reward", "timed"), [("macs", {}), ("latency", {"cost": by_macs})])
def test_rewards_without_a_budget(trained, reward, timed):
    found = search(trained, macs=None, reward=reward, **timed)
    assert found.uniform.macs == 1.0
    assert min(episode.macs for episode in found.history) < 0.9
    assert found.best.reward >= found.uniform.reward


def test_the_error_is_the_loss_or_what_the_metric_misses(trained):
    for kind in ("loss", "metric"):
        found = search(trained, error=kind, episodes=2)
        assert all(episode.reward == -episode.error for episode in found.history)
        missed = [episode.error == pytest.approx(1 - episode.value) for episode in found.history]
        assert all(missed) == (kind == "metric")
        assert 0 <= found.best.value <= 1


def test_batch_norms_are_estimated_anew_on_request(trained):
    plain, estimated = (search(trained, episodes=1, reestimate=flag, macs=0.25, samples=300) for flag in (False, True))
    assert estimated.uniform.sparsities == plain.uniform.sparsities
    assert estimated.uniform.value != plain.uniform.value


def test_the_environment_is_sound_and_always_meets_its_budget(trained):
    from gymnasium.utils.env_checker import check_env

    from abridged.pruning.environment import Layers
    from abridged.pruning.prunable import Place

    places = [Place(f"{i}", 8 * (i + 1), 4, 6, 6, 1, 3) for i in range(5)]
    weights = np.array([1.0, 5, 2, 9, 3]) / 20

    def load(sparsities):
        return float((weights * (1 - np.array(sparsities))).sum())

    judged = []
    layers = Layers(places, load, 0.3, 0.8, lambda chosen: judged.append(chosen) or load(chosen))
    check_env(layers, skip_render_check=True)
    rng = np.random.default_rng(0)
    for push in (-1.0, 1.0, None):
        state, _ = layers.reset()
        states, done = [state], False
        while not done:
            action = rng.uniform(-1, 1, 1) if push is None else np.array([push])
            state, reward, done, _, _ = layers.step(action.astype(np.float32))
            states.append(state)
        assert load(judged[-1]) <= 0.3 + 1e-9
        assert reward == load(judged[-1])
        assert all(layers.observation_space.contains(state) for state in states)
        assert [state[0] for state in states] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
        assert states[-2][-1] == pytest.approx(judged[-1][-2]), "the last action that was taken"
    assert judged[-3][0] == 0.0, "what needs no raising is taken as it is"


def test_recipes_and_prune_take_an_agent_as_allocation(trained, monkeypatch):
    from abridged.pruning import agent as module
    from abridged.recipe import Prune

    assert Prune(macs=0.5, pattern="channel", allocation="td3", epochs=0).allocation == "td3"
    asked = {}
    real = module.search_sparsities

    def few(*args, **options):
        asked.update(options)
        return real(*args, **options, episodes=2, samples=64)

    monkeypatch.setattr("abridged.pruning.prune.search_sparsities", few)
    model, data = copy.deepcopy(trained[0]), trained[1]
    masks = ab.prune(model, 0.6, of="macs", allocation="sac", data=data, say=None)
    assert "sac" in masks.summary[0]
    assert macs(model, data.example_input()) / macs(trained[0], data.example_input()) <= 0.4 + 1e-6
    assert (asked["agent"], asked["macs"], asked["pattern"]) == ("sac", 0.4, "unstructured")
    ab.prune(model, macs=0.4, pattern="channel", allocation="ddpg", data=data, example=data.example_input(), say=None)
    assert (asked["agent"], asked["pattern"]) == ("ddpg", "channel")


def test_without_the_extra_one_line_says_what_to_install(trained, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if name.split(".")[0] in ("stable_baselines3", "gymnasium"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'abridged\[rl\]'"):
        search(trained)


MISTAKES = {
    "no budget": ({"macs": None}, "give a budget"),
    "two budgets": ({"seconds": 1.0, "cost": by_macs}, "macs or seconds as the budget, not both"),
    "seconds of what": ({"macs": None, "seconds": 1.0}, "seconds are measured: give cost="),
    "cost for what": ({"cost": by_macs}, "give seconds= as the budget"),
    "macs": ({"macs": 1.5}, r"macs must be a number in \(0, 1\], not 1.5"),
    "out of reach": ({"macs": 0.001}, "with 0.8 of every layer removed 0.0.. are left; allow more MACs, or raise most"),
    "seconds out of reach": ({"macs": None, "seconds": 1e-9, "cost": by_macs}, "it takes about .* ms; allow more"),
    "agent": ({"agent": "dpg"}, "did you mean 'ddpg'"),
    "reward": ({"reward": "eror"}, "did you mean 'error'"),
    "error": ({"error": "accuracy"}, "error must be 'loss' or 'metric', not 'accuracy'"),
    "episodes": ({"episodes": 0}, "episodes must be a whole number from 1"),
    "seed": ({"seed": -1}, "seed must be a whole number from 0, not -1"),
    "large seed": ({"seed": 1 << 32}, r"seed must be a whole number below 2\^32"),
    "warmup": ({"warmup": 7}, "warmup must be a whole number of episodes from 0 to 6"),
    "samples": ({"samples": 0}, "samples must be a whole number from 1"),
    "most": ({"most": 0}, r"most must be a number in \(0, 1\]"),
    "pattern": ({"pattern": "2:4"}, "no budget can be divided"),
    "criterion": ({"criterion": "synflow", "pattern": "unstructured"}, "is taken anew in rounds"),
    "glob": ({"include": ["convolution"]}, "matches no parameter"),
    "seconds of zero": ({"macs": None, "seconds": 1.0, "cost": lambda graph: 0.0}, "cost must give seconds above 0"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(trained, mistake):
    options, words = MISTAKES[mistake]
    with pytest.raises(AbridgedError, match=words) as caught:
        search(trained, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_wrong_kinds_are_named(trained):
    with pytest.raises(InputError, match=r"takes an nn.Module, not str"):
        ab.search_sparsities("net", trained[1], macs=0.5)
    with pytest.raises(InputError, match=r"give an ab.Data, not Tensor"):
        ab.search_sparsities(trained[0], torch.zeros(1), macs=0.5)
