"""Accuracy: the intervals are right, and hold the truth as often as they say."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from abridged.data import Data, Score
from abridged.errors import InputError
from abridged.graph.capture import capture
from abridged.measurement.accuracy import accuracy, batch_of, interval, mean_interval, wilson
from abridged.measurement.records import Accuracy
from abridged.targets import build


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_wilson_holds_the_fraction_and_stays_a_fraction(n: int, fraction: float) -> None:
    successes = round(n * fraction)
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    mirrored = wilson(n - successes, n)
    assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]), abs=1e-12)


@given(st.integers(1, 1000), st.floats(0, 1))
def test_wilson_solves_its_equation(n: int, fraction: float) -> None:
    """Both ends are the p at which the observed fraction is z standard errors away."""
    observed = round(n * fraction) / n
    for p in wilson(round(n * fraction), n):
        assert abs(observed - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / n), abs=1e-6)


def test_wilson_golden_and_impossible_counts() -> None:
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson(10, 10) == (pytest.approx(0.7225, abs=1e-4), 1.0)
    for successes, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="expected"):
            wilson(successes, n)


def test_wilson_covers_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).binomial(300, 0.97, size=4000)
    covered = np.mean([low <= 0.97 <= high for low, high in (wilson(int(k), 300) for k in draws)])
    assert 0.93 <= covered <= 0.975


def score(values: torch.Tensor) -> Score:
    return Score("mse", float(values.mean()), len(values), float(values.std()), None, "test")


def test_mean_interval_covers_as_often_as_it_says() -> None:
    draws = torch.distributions.Exponential(2.0).sample((2000, 200))
    covered = np.mean([low <= 0.5 <= high for low, high in map(mean_interval, map(score, draws))])
    assert 0.92 <= covered <= 0.97


def test_a_mean_of_one_is_known_to_no_bound() -> None:
    found = interval(Score("mse", 1.0, 1, 0.0, None, "test"))
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert Accuracy.model_validate_json(found.model_dump_json()) == found


x, y = torch.randn(37, 5, generator=torch.Generator().manual_seed(0)), torch.arange(37) % 3


def classes() -> Data:
    return Data((x, y), (x, y), (x, y))


def test_module_artifact_and_callable_agree() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.9), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        expected = int((model.eval()(x).argmax(1) == y).sum())
    model.train()
    found = accuracy(model, classes())
    assert model.training
    assert model[1].training, "modes are restored"
    assert (found.value, found.samples, found.split, found.metric) == (expected / 37, 37, "test", "accuracy")
    assert (found.low, found.high) == wilson(expected, 37)
    assert accuracy(model.eval().forward, classes(), batch_size=10) == found
    with build(capture(model, torch.zeros(8, 5)), threads=1) as artifact:
        assert batch_of(artifact) == 8
        assert accuracy(artifact, classes()) == found, "37 samples are no multiple of 8: copies do not count"


def test_a_metric_that_is_a_mean() -> None:
    data = Data((x, x), (x, x), (x, x), loss="mse", metric="mse")
    found = accuracy(lambda x: x + 1, data, "val")
    assert (found.value, found.split) == (pytest.approx(1.0, rel=1e-5), "val")
    assert found.low <= found.value <= found.high
    random = accuracy(torch.zeros_like, data)
    assert random.high - random.low == pytest.approx(
        2 * 1.96 * float(x.square().mean(1).std()) / math.sqrt(37), rel=1e-3
    )


def test_an_artifact_without_a_batch_axis_cannot_run_data() -> None:
    with (
        build(capture(nn.ReLU(), torch.tensor(1.0)), threads=1) as artifact,
        pytest.raises(InputError, match="no batch axis"),
    ):
        accuracy(artifact, classes())
