"""The law-suite of target `native`: every op of the table, with the cases of the op's own law-suite, equals its meaning."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from native_checks import poison
from test_ops import EPS, Case, _all_cases

from abridged import targets
from abridged.compiler.pipeline import plan
from abridged.errors import UnsupportedError
from abridged.graph.build import Builder
from abridged.graph.graph import Graph, Node
from abridged.graph.ops import OPS, apply, signature

# What target `native` does not compute yet, by the words that the refusal must say.
REFUSED = {
    "conv-2": "conv over 3 spatial axes",
    "matmul-0": "matmul",
    "einsum-0": "einsum",
    "attention-0": "attention",
    "attention-1": "attention",
    "attention-2": "attention",
    "attention-3": "attention",
    "max_pool-2": "max_pool over 3 spatial axes",
    "avg_pool-2": "avg_pool over 3 spatial axes",
}
EVERY = {param.id: param.values for param in _all_cases()}
COMPUTED = [name for name in EVERY if name not in REFUSED]
PARAMETERS = {"weight", "bias", "mean", "var"}


def graph_of(cases: dict[str, tuple[str, Case]]) -> tuple[Graph, list[torch.Tensor]]:
    """All cases side by side in one network, whose inputs are theirs; weights are constants."""
    build, inputs, outputs = Builder(), [], []
    for op, case in cases.values():
        build.path = op
        declared = signature(op).inputs
        given = []
        for i, tensor in enumerate(case.inputs):
            constant = i < len(declared) and declared[i] in PARAMETERS
            if tensor is None or constant:
                given.append(None if tensor is None else build.constant(tensor))
                continue
            given.append(build.input(f"x{len(inputs)}", tensor.shape, tensor.dtype))
            inputs.append(tensor)
        count = len(apply(Node(op, (), (), case.attrs), case.inputs))
        outputs += build.many(op, *given, outputs=count, **case.attrs)
    structure = {"tuple": list(range(len(inputs)))}, {"tuple": list(range(len(outputs)))}
    return build.finish(outputs, *structure), inputs


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[torch.Tensor, ...]]:
    """The outputs of every computed case, from one library."""
    cases = {name: EVERY[name] for name in COMPUTED}
    graph, inputs = graph_of(cases)
    with targets.build(graph, "native", threads=2, tune=False) as artifact:
        outputs = list(poison(artifact)(*inputs))
    found = {}
    for name, (op, case) in cases.items():
        count = len(apply(Node(op, (), (), case.attrs), case.inputs))
        found[name], outputs = tuple(outputs[:count]), outputs[count:]
    assert not outputs
    return found


@pytest.mark.parametrize("name", COMPUTED)
def test_every_op_equals_its_meaning(name: str, results: dict[str, tuple[torch.Tensor, ...]]) -> None:
    op, case = EVERY[name]
    double = tuple(t.double() if t is not None and t.is_floating_point() else t for t in case.inputs)
    exact = apply(Node(op, (), (), case.attrs), double)
    own = apply(Node(op, (), (), case.attrs), case.inputs)
    for got, expected, single in zip(results[name], exact, own, strict=True):
        assert (got.shape, got.dtype) == (single.shape, single.dtype)
        if not got.is_floating_point():
            assert torch.equal(got, single)
            continue
        numbers = [t.abs().max().item() for t in double if t is not None and t.numel() and t.dtype != torch.bool]
        largest = max([1.0, *numbers, *([expected.abs().max().item()] if expected.numel() else [])])
        assert ((got - expected).abs() <= case.terms * EPS * largest).all()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_the_module_and_the_op(name: str) -> None:
    graph, _ = graph_of({name: EVERY[name]})
    with pytest.raises(UnsupportedError, match=f"module '{EVERY[name][0]}'.*{REFUSED[name]}"):
        plan(graph)


def test_every_op_is_computed_or_refused() -> None:
    kinds: defaultdict[str, set[Any]] = defaultdict(set)
    for name, (op, _) in EVERY.items():
        kinds[op].add(name in REFUSED)
    assert set(kinds) == set(OPS)
    assert {op for op, refused in kinds.items() if False not in refused} == {"matmul", "einsum", "attention"}
