"""The oracle: structures, dtypes, the float64 reference, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from abridged.errors import InputError
from abridged.graph.build import Builder
from abridged.graph.graph import Graph, Node
from abridged.graph.interpret import interpret, run


def _third() -> Graph:
    """{"third": x · 0.1, "whole": (n, x)} for an x and a whole number n."""
    build = Builder()
    x, n = build.input("x", (3,), torch.float32), build.input("n", (), torch.int64)
    third = build("cast", build("cast", build.binary("mul", x, 0.1), dtype=torch.float32), dtype=torch.float32)
    w = build.constant(torch.full((3,), 0.1), ("w",))
    return build.finish([third, n, build("add", x, w)], {"tuple": [{"list": [0]}, 1]}, {"dict": {"third": 0, "whole": {"tuple": [1, 2]}}})  # fmt: skip


X, N = torch.tensor([1.0, 2.0, 3.0]), torch.tensor(7)


def test_outputs_come_in_the_users_structure() -> None:
    outputs = interpret(_third(), [X], N)
    assert torch.equal(outputs["third"], X * 0.1)
    assert outputs["whole"][0] is N
    assert torch.equal(outputs["whole"][1], X + 0.1)


def test_float64_has_the_numbers_of_the_code_exact_and_the_weights_as_they_are() -> None:
    outputs = interpret(_third(), [X], N, dtype=torch.float64)
    assert outputs["third"].dtype == torch.float64
    assert torch.equal(outputs["third"], X.double() * 0.1)
    assert torch.equal(outputs["whole"][1], X.double() + torch.tensor(0.1).double())
    assert outputs["whole"][0].dtype == torch.int64


def test_the_observer_sees_every_node_once_in_order() -> None:
    seen: list[Node] = []
    graph = _third()
    run(graph, [X, N], observe=lambda node, results: seen.append(node) if len(results) == 1 else None)
    assert tuple(seen) == graph.nodes


def test_no_gradient_is_recorded() -> None:
    (third, _, _) = run(_third(), [X.clone().requires_grad_(), N])
    assert not third.requires_grad


def test_an_output_may_be_an_input_or_named_twice() -> None:
    build = Builder()
    x = build.input("x", (3,), torch.float32)
    y = build("neg", x)
    build("abs", y)  # nobody reads it: it goes
    graph = build.finish([x, y, y], {"tuple": [0]}, {"tuple": [0, 1, 2]})
    assert len(graph.nodes) == 1
    assert all(torch.equal(a, b) for a, b in zip(interpret(graph, X), (X, -X, -X), strict=True))


def test_a_graph_without_inputs_is_a_constant() -> None:
    build = Builder()
    w = build.constant(X, ("w",))
    assert torch.equal(interpret(build.finish([w], {"tuple": []}, 0)), X)


def test_half_precision_input_is_not_taken_for_float32() -> None:
    with pytest.raises(InputError, match=r"'x' is torch\.float16; the network was captured with torch\.float32"):
        interpret(_third(), [X.half()], N)
    assert interpret(_third(), [X.half()], N, dtype=torch.float64)["third"].dtype == torch.float64


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ((X, N), "nested as"),
        (([X],), "nested as"),
        (([X[:2]], N), r"'x' has shape \(2,\); captured with \(3,\)"),
        (([X], N.float()), "'n' is torch.float32"),
        (([[1.0, 2.0]], N), "nested as"),
        (([1.0], N), "'x' must be a tensor, not float"),
    ],
)
def test_other_inputs_than_those_captured_are_refused(inputs: tuple[object, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        interpret(_third(), *inputs)


def test_run_counts_its_inputs() -> None:
    with pytest.raises(InputError, match="takes 2 input tensors, not 1"):
        run(_third(), [X])
