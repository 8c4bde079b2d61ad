"""Criteria: the law-suite of the table, and what each one says."""

import pytest
import torch

from abridged.errors import InputError
from abridged.pruning.criteria import CRITERIA, Stats


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1,), (7, 5), (3, 2, 3, 3), (0, 4)], ids=str)
@pytest.mark.parametrize("name", CRITERIA)
def test_law_of_criteria(name, shape, dtype):
    weight = torch.randn(shape).to(dtype)
    before = weight.clone()
    scores = CRITERIA[name](weight, Stats("layer.weight"))
    assert scores.shape == weight.shape
    assert scores.is_floating_point()
    assert torch.isfinite(scores).all()
    assert torch.equal(weight, before)
    assert weight.numel() == 0 or scores.data_ptr() != weight.data_ptr()
    assert torch.equal(scores, CRITERIA[name](weight, Stats("layer.weight")))
    assert CRITERIA.summary(name)


def test_table_of_criteria():
    assert set(CRITERIA) == {"magnitude", "random"}
    with pytest.raises(InputError, match="unknown criterion 'magnitud'; did you mean 'magnitude'"):
        CRITERIA["magnitud"]


def test_magnitude_is_the_absolute_value():
    assert CRITERIA["magnitude"](torch.tensor([[-3.0, 0.0], [0.5, -0.0]]), Stats("w")).tolist() == [[3, 0], [0.5, 0]]


def test_random_depends_on_seed_and_name_alone():
    weight = torch.randn(50)
    first = CRITERIA["random"](weight, Stats("a", 1))
    torch.manual_seed(99)
    assert torch.equal(first, CRITERIA["random"](weight * 2, Stats("a", 1)))
    assert not torch.equal(first, CRITERIA["random"](weight, Stats("b", 1)))
    assert not torch.equal(first, CRITERIA["random"](weight, Stats("a", 2)))
    assert 0 <= first.min() <= first.max() < 1
