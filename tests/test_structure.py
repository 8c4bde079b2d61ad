"""Nested arguments and outputs: flat tensors and JSON, and back."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abridged.errors import InputError
from abridged.graph.structure import flatten, indices, unflatten

TREES = st.recursive(
    st.one_of(st.none(), st.floats(allow_nan=False)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=4), inner, max_size=3),
    ),
    max_leaves=12,
)


@given(TREES)
def test_there_and_back_by_way_of_json(tree: Any) -> None:
    leaves, structure = flatten(tree)
    assert list(indices(structure)) == list(range(len(leaves)))
    assert unflatten(json.loads(json.dumps(structure)), leaves) == tree


def test_named_tuples_mappings_and_dataclasses() -> None:
    @dataclass
    class Output:
        logits: float
        hidden: tuple[float, ...] | None = None

    Pair = namedtuple("Pair", "left right")
    tree = [Output(1.0), Pair(2.0, (3.0,)), OrderedDict(z=4.0, a=5.0)]
    leaves, structure = flatten(tree)
    assert leaves == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert unflatten(structure, leaves) == [
        {"logits": 1.0, "hidden": None},
        (2.0, (3.0,)),
        {"z": 4.0, "a": 5.0},
    ]


def test_a_type_is_a_leaf() -> None:
    @dataclass
    class Kind:
        x: int

    assert flatten(Kind) == ([Kind], 0)


@pytest.mark.parametrize(
    "broken", [2, -1, "x", {"set": [0]}, {"tuple": [0], "list": [1]}, {"tuple": 0}, {"list": [5]}, {"dict": [0]}, {}]
)
def test_what_is_no_structure_of_these_leaves_is_refused(broken: Any) -> None:
    with pytest.raises(InputError, match="not a structure of 2 tensors"):
        unflatten(broken, ["a", "b"])
