"""Calibration data in `factorize`: whitened beats plain SVD on outputs, refinement never makes them worse, nothing else changes."""

import pytest
import torch
from torch import Tensor, nn

import abridged as ab
from abridged.errors import InputError
from abridged.factorization.decomposition import METHODS, compose
from abridged.factorization.factorize import report
from abridged.factorization.refine import refined


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, groups=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 40),
    ).eval()  # fmt: skip


def images(n: int) -> Tensor:
    """Smooth ones, so that some directions are seen far more often than others."""
    return nn.functional.interpolate(torch.randn(n, 3, 4, 4), size=(14, 14), mode="bilinear")


def loss(thin: nn.Module, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((thin(x) - model(x)).square().mean())


def test_data_helps_and_whitened_most() -> None:
    model, x = network(), images(64)
    plain = ab.factorize(model, x[:1], "svd", rank=6)
    fitted = ab.factorize(model, x[:1], "svd", rank=6, data=x)
    aware = ab.factorize(model, x[:1], "whitened", rank=6, data=x)
    assert loss(fitted, model, x) < loss(plain, model, x)
    assert loss(aware, model, x) < loss(plain, model, x)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("cp", "tt")])
def test_refinement_never_makes_outputs_worse(method: str) -> None:
    weight, seen = torch.randn(12, 5, 3, 3).double(), torch.randn(400, 45).double() @ torch.randn(45, 45).double()
    gram = seen.T @ seen
    part = METHODS[method](weight, gram)
    for rank in (1, 2, 4):
        kernels = part.kernels(tuple(min(rank, limit) for limit in part.limits))

        def error(chain: tuple[Tensor, ...]) -> float:
            off = (weight - compose(chain)).flatten(1)
            return float(((off @ gram) * off).sum())

        assert error(refined(kernels, weight, gram)) <= error(kernels) * (1 + 1e-6)


def test_full_rank_stays_exact() -> None:
    model, x = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 8)).eval(), torch.randn(200, 30)
    with torch.no_grad():
        model[0].weight[:] = torch.randn(40, 5) @ torch.randn(5, 30)  # of rank 5
    thin = ab.factorize(model, x[:1], "whitened", rank={"0": 5}, data=x)
    assert loss(thin, model, x) < 1e-6
    assert "whitened" in str(report(thin))


def test_whitened_without_data_is_an_error() -> None:
    with pytest.raises(InputError, match="give calibration data="):
        ab.factorize(network(), images(1), "whitened", rank=4)


def test_nan_in_the_data_is_an_error() -> None:
    with pytest.raises(InputError, match="NaN"):
        ab.factorize(network(), images(1), "svd", rank=4, data=images(8) * torch.nan)


def test_whitened_says_where_the_data_are_too_few() -> None:
    model, x = nn.Sequential(nn.Linear(64, 64)), torch.randn(100, 64)
    few = ab.factorize(model, x[:1], "whitened", rank=4, data=x[:8])
    assert any("0 saw fewer inputs than a row has numbers" in line for line in report(few).summary)
    assert not any("fewer" in line for line in report(ab.factorize(model, x[:1], "whitened", rank=4, data=x)).summary)
    assert not any("fewer" in line for line in report(ab.factorize(model, x[:1], rank=4, data=x[:8])).summary)
