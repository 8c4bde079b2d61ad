"""Schedules: the law-suite of the table."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abridged.errors import InputError
from abridged.pruning.schedules import SCHEDULES


@pytest.mark.parametrize("name", SCHEDULES)
@given(a=st.floats(0, 1), b=st.floats(0, 1))
def test_law_of_schedules(name, a, b):
    schedule = SCHEDULES[name]
    low, high = schedule(min(a, b)), schedule(max(a, b))
    assert 0 <= low <= high <= 1
    assert schedule(0.0) in (0.0, 1.0)
    assert schedule(1.0) == 1.0
    assert SCHEDULES.summary(name)


def test_table_of_schedules():
    assert set(SCHEDULES) == {"one-shot", "linear", "cubic", "gradual", "exponential", "cosine"}
    assert SCHEDULES["gradual"] is SCHEDULES["cubic"]
    with pytest.raises(InputError, match="unknown schedule 'cubik'; did you mean 'cubic'"):
        SCHEDULES["cubik"]


def test_values_by_hand():
    assert [SCHEDULES["cubic"](t) for t in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.578125, 0.875, 1.0]
    assert SCHEDULES["linear"](0.3) == 0.3
    assert SCHEDULES["cosine"](1 / 3) == pytest.approx(0.25, rel=1e-12)
    assert SCHEDULES["exponential"](0.2) == pytest.approx((1 - math.exp(-1)) / (1 - math.exp(-5)), rel=1e-12)
    assert SCHEDULES["one-shot"](0.0) == 1.0
