"""What a legal Graph is: every complaint, each on a graph that is legal but for one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from abridged.graph.build import Builder
from abridged.graph.graph import Constant, Graph, Node, Value
from abridged.graph.verify import GraphError, legal_name, verify


def _legal() -> Graph:
    """y = relu(linear(x, w, b) + 2), and its two halves."""
    build = Builder()
    x = build.input("x", (2, 3), torch.float32)
    build.path, build.source = "layer", "net.py:7"
    w, b = build.constant(torch.ones(4, 3), ("layer.weight",)), build.constant(torch.ones(4), ("layer.bias",))
    y = build("relu", build.binary("add", build("linear", x, w, b), 2))
    left, right = build.many("split", y, outputs=2, sizes=(1, 3), axis=1)
    return build.finish([y, left, right], {"tuple": [0]}, {"tuple": [0, {"list": [1, 2]}]})


def _node(graph: Graph, op: str, /, **changes: Any) -> Graph:
    return replace(graph, nodes=tuple(replace(n, **changes) if n.op == op else n for n in graph.nodes))


def _value(graph: Graph, name: str, /, **changes: Any) -> Graph:
    return replace(graph, values={**graph.values, name: replace(graph.values[name], **changes)})


def _constant(graph: Graph, name: str, constant: Constant) -> Graph:
    return replace(graph, constants={**graph.constants, name: constant})


COMPLAINTS: dict[str, Callable[[Graph], Graph]] = {
    "unknown op 'rleu'; did you mean 'relu'": lambda g: _node(g, "relu", op="rleu"),
    r"linear takes 3 inputs, not 2": lambda g: _node(g, "linear", inputs=("x", "layer_weight")),
    r"relu takes 1 inputs, not 2": lambda g: _node(g, "relu", inputs=("layer_add", "x")),
    "linear needs its input 'weight'": lambda g: _node(g, "linear", inputs=("x", None, None)),
    "'ghost' is read before it is defined": lambda g: _node(g, "relu", inputs=("ghost",)),
    "'layer_add' is read before it is defined": lambda g: replace(g, nodes=g.nodes[:1] + g.nodes[2:]),
    "split needs its attribute 'axis'": lambda g: _node(g, "split", attrs={"sizes": (1, 3)}),
    "relu has no attribute 'slope'": lambda g: _node(g, "relu", attrs={"slope": 1.0}),
    "attribute 'sizes' is a list": lambda g: _node(g, "split", attrs={"sizes": [1, 3], "axis": 1}),
    "attribute 'sizes' is a tuple": lambda g: _node(g, "split", attrs={"sizes": (1, torch.ones(1)), "axis": 1}),
    "split has 2 outputs, not 1": lambda g: _node(g, "split", outputs=("layer_split_0",)),
    "'layer_add' is defined twice": lambda g: _node(g, "relu", outputs=("layer_add",)),
    "'x' is defined twice": lambda g: replace(g, inputs=("x", "x")),
    "'y' has no value": lambda g: _node(g, "relu", outputs=("y",)),
    "'extra' is never defined": lambda g: replace(g, values={**g.values, "extra": Value("extra", (), torch.int64)}),
    "output 'z' is never defined": lambda g: replace(g, outputs=("z", *g.outputs[1:])),
    r"'layer_relu' is torch.float32 \(2, 4\), its value says torch.float64": lambda g: _value(g, "layer_relu", dtype=torch.float64),
    r"its value says torch.float32 \(2, 5\)": lambda g: _value(g, "layer_relu", shape=(2, 5)),
    "float32 and torch.float64, in: layer_add": lambda g: _constant(
        _value(g, "layer_add_y", dtype=torch.float64), "layer_add_y", Constant(torch.tensor(2.0).double())
    ),
    r"constant 'layer_bias' is torch.float32 \(5,\), its value says": lambda g: _constant(g, "layer_bias", Constant(torch.ones(5))),
    "is 2.0, its number says 3": lambda g: _constant(g, "layer_add_y", Constant(torch.tensor(2.0), number=3)),
    "the input structure names .* of 1 tensors": lambda g: replace(g, input_structure={"tuple": [0, 0]}),
    "the input structure is not a structure": lambda g: replace(g, input_structure={"tuple": [1]}),
    "the output structure names": lambda g: replace(g, output_structure={"tuple": [0, 2]}),
    "'for' cannot name a value": lambda g: replace(g, values={**g.values, "for": Value("for", (), torch.int64)}),
    "is named 'w'": lambda g: _value(g, "layer_weight", name="w"),
}  # fmt: skip


@pytest.mark.parametrize("complaint", COMPLAINTS)
def test_every_complaint_is_one_line_that_names_the_place(complaint: str) -> None:
    with pytest.raises(GraphError, match=complaint) as error:
        verify(COMPLAINTS[complaint](_legal()))
    assert "\n" not in str(error.value)


def test_a_complaint_about_a_node_names_its_module_and_line() -> None:
    with pytest.raises(GraphError, match=r"# layer net\.py:7"):
        verify(COMPLAINTS["relu has no attribute 'slope'"](_legal()))


def test_a_legal_graph_comes_back_itself() -> None:
    graph = _legal()
    assert verify(graph) is graph
    assert list(graph) == list(graph.nodes)


def test_a_number_that_is_no_number_is_legal() -> None:
    build = Builder()
    y = build.binary("mul", build.input("x", (2,), torch.float32), float("nan"))
    verify(build.finish([y], {"tuple": [0]}, 0))


@pytest.mark.parametrize("name", ["", "1x", "a.b", "größe", "float", "class", "int", "a b"])
def test_names_that_no_generated_code_could_use(name: str) -> None:
    assert not legal_name(name)
    assert legal_name(f"x_{'v' if not name.isascii() or not name.isalnum() else name}")


def test_nodes_of_no_inputs_do_not_break_the_walk() -> None:
    graph = Graph(
        (Node("cat", (), ("y",), {"axis": 0}),),
        {"y": Value("y", (0,), torch.float32)},
        {},
        (),
        ("y",),
        {"tuple": []},
        0,
    )
    with pytest.raises(GraphError, match="cat takes one dtype"):
        verify(graph)
