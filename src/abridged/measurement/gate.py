"""The export gate: no artifact is done until it ran in its runtime and computed what the PyTorch model computes.

On the same inputs every output is computed in the runtime, in PyTorch's fp32, and in float64, which is the reference.
For each floating-point output, over all inputs,

    max |artifact − float64|  ≤  8 · max(max |fp32 − float64|, 4 · eps · max |float64|)

where fp32 and eps stand for the output's own dtype. The artifact may round differently from PyTorch, not worse by an
order of magnitude; the floor is for outputs that PyTorch gets right by luck. Integers and booleans are equal or wrong,
and so are infinities and NaN. Both fp32 and float64 come from the interpreter, which runs PyTorch's own ops one by one;
the module itself has to keep the same bound, so that the Graph is the module is checked, not believed.

When the bound is broken the gate says where: it builds the network for the same target again, only up to some node, and
finds the first node whose value is off by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from abridged.data.batches import each
from abridged.data.evaluate import judging
from abridged.errors import GateError, InputError
from abridged.graph.graph import Graph, Node
from abridged.graph.interpret import run
from abridged.graph.structure import flatten, unflatten
from abridged.measurement.records import Deviation
from abridged.progress import bar
from abridged.targets import build
from abridged.targets.artifact import Artifact

FACTOR = 8  # times the error of PyTorch's own fp32
FLOOR = 4  # times eps of the largest value: a smaller error than that is luck

Flat = Sequence[Tensor]


@dataclass(frozen=True)
class Reference:
    """The flat outputs for one flat input: in the network's own dtypes, and in float64."""

    inputs: Flat
    own: Flat
    exact: Flat


@dataclass(frozen=True)
class Gap:
    """How far one output is from the reference, and how far it may be."""

    largest: float
    bound: float

    @property
    def ratio(self) -> float:
        """Above 1 is too far."""
        if self.largest <= self.bound:
            return self.largest / self.bound if 0 < self.bound < math.inf else 0.0
        return self.largest / self.bound if self.bound else math.inf


def require(artifact: Artifact, model: Any, graph: Graph, inputs: Sequence[Any]) -> Deviation:
    """`check`, which raises `GateError` naming the layer where the deviation begins when it is above the bound."""
    found = check(artifact, model, graph, inputs)
    if not found.kept:
        begins = f"it begins at {found.layer}" if found.layer else "built again it does not, so its files were altered"
        raise GateError(
            f"the {artifact.target} artifact deviates from PyTorch by {found.largest:.3g}, "
            f"where {found.bound:.3g} is allowed; {begins}"
        )
    return found


def check(artifact: Artifact, model: Any, graph: Graph, inputs: Sequence[Any]) -> Deviation:
    """The deviation of an artifact from PyTorch: that of the output, over all inputs, which is nearest to its bound.

    `model` (a module or an exported program) and `graph` are what the artifact was built from. `inputs`: for each call
    a tensor or the tuple of positional inputs, torch or numpy. `Deviation.layer` is "path (op, source line)" where the
    deviation begins, when it is above the bound. Raises `GateError` when the Graph is not what the module computes,
    and `InputError` without any inputs."""
    output, worst, references = _compare(artifact, model, graph, inputs)
    layer = None if worst.ratio <= 1 or output is None else _begin(artifact, graph, output, references)
    return Deviation(largest=worst.largest, bound=worst.bound, layer=layer)


def compare(artifact: Artifact, model: Any, graph: Graph, inputs: Sequence[Any]) -> Deviation:
    """`check` of an artifact that may be another network's: where a deviation begins is not looked for."""
    _, worst, _ = _compare(artifact, model, graph, inputs)
    return Deviation(largest=worst.largest, bound=worst.bound)


def _compare(
    artifact: Artifact, model: Any, graph: Graph, inputs: Sequence[Any]
) -> tuple[str | None, Gap, list[Reference]]:
    """The output that is nearest to its bound, how near, and the references."""
    if not inputs:
        raise InputError("the export gate needs at least one input to compare on")
    calls = [_call(given) for given in inputs]
    references: list[Reference] = []
    with bar("Compare with PyTorch", total=3 * len(calls)) as task:
        for call in calls:
            references.append(_reference(graph, flatten(call)[0]))
            task.advance()
        _same_network(model, calls, references)
        task.advance(len(calls))
        found = gaps([flatten(artifact(*call))[0] for call in calls], references)
        task.advance(len(calls))
    worst = _worst(found)
    return (graph.outputs[found.index(worst)] if found else None), worst, references


def _call(given: Any) -> tuple[Any, ...]:
    """Positional inputs as torch tensors on the CPU."""
    leaves, structure = flatten(given if isinstance(given, tuple) else (given,))
    call: tuple[Any, ...] = unflatten(structure, [torch.as_tensor(leaf).detach().cpu() for leaf in leaves])
    return call


def _reference(graph: Graph, inputs: Flat) -> Reference:
    return Reference(inputs, run(graph, inputs), run(graph, inputs, dtype=torch.float64))


def _same_network(model: Any, calls: Sequence[tuple[Any, ...]], references: Sequence[Reference]) -> None:
    """Whether the Graph is what the module computes: the module is held to the bound of the Graph's own fp32."""
    module: Callable[..., Any] = model if isinstance(model, nn.Module) else model.module()
    with judging(model) as device, torch.no_grad():
        outputs = [flatten(module(*each(call, lambda tensor: tensor.to(device))))[0] for call in calls]
    worst = _worst(gaps([[tensor.cpu() for tensor in flat] for flat in outputs], references))
    if worst.ratio > 1:
        raise GateError(
            f"the captured graph deviates from the module by {worst.largest:.3g}, where {worst.bound:.3g} is allowed: "
            "does its forward draw random numbers, or depend on values that the example does not have?"
        )


def gaps(outputs: Sequence[Flat], references: Sequence[Reference]) -> list[Gap]:
    """The gap of every output, each over all calls."""
    owns = [reference.own for reference in references]
    exacts = [reference.exact for reference in references]
    return [
        _gap(*of_all_calls)
        for of_all_calls in zip(*(zip(*flats, strict=True) for flats in (outputs, owns, exacts)), strict=True)
    ]


def _gap(ours: Flat, owns: Flat, exacts: Flat) -> Gap:
    """The gap of one output over all calls."""
    y, own, exact = (torch.cat([tensor.reshape(-1) for tensor in tensors]) for tensors in (ours, owns, exacts))
    if not own.is_floating_point():
        return Gap(_largest((y.double() - own.double()).abs().clamp(min=1) * (y != own)), 0.0)
    finite = own.isfinite()
    same = (y == own) | (y.isnan() & own.isnan())
    if not bool(torch.where(finite, y.isfinite(), same).all()):
        return Gap(math.inf, 0.0)
    y, rounded, exact = y[finite].double(), own[finite].double(), exact[finite].double()
    noise = max(_largest(rounded - exact), FLOOR * torch.finfo(own.dtype).eps * _largest(exact))
    return Gap(_largest(y - exact), FACTOR * noise)


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _worst(found: Sequence[Gap]) -> Gap:
    return max(found, key=lambda gap: gap.ratio, default=Gap(0.0, 0.0))


def _begin(artifact: Artifact, graph: Graph, output: str, references: Sequence[Reference]) -> str | None:
    """The first node on the way to an output whose value is off when the target builds the network only up to it.

    None when not even the whole is off once it is built again."""
    nodes = up_to(graph, output).nodes
    options, target, threads = artifact.manifest.options, artifact.target, artifact.threads

    def off(node: Node) -> bool:
        part = up_to(graph, *node.outputs)
        with build(part, target, threads=threads, **options) as built:
            ours = [flatten(built(*_positional(part, reference.inputs)))[0] for reference in references]
        return _worst(gaps(ours, [_reference(part, reference.inputs) for reference in references])).ratio > 1

    with bar("Find where it begins", total=max(1, len(nodes)).bit_length() + 1) as task:
        low, high = -1, len(nodes) - 1  # low is not off, high is
        if not nodes or not off(nodes[high]):
            return None
        while high - low > 1:
            task.advance()
            middle = (low + high) // 2
            low, high = (low, middle) if off(nodes[middle]) else (middle, high)
    node = nodes[high]
    return f"{node.path or 'the top module'} ({', '.join(filter(None, (node.op, node.source)))})"


def _positional(graph: Graph, inputs: Flat) -> tuple[Any, ...]:
    call: tuple[Any, ...] = unflatten(graph.input_structure, inputs)
    return call


def up_to(graph: Graph, *outputs: str) -> Graph:
    """The part of a graph that some of its values need; its outputs are the tuple of them. The inputs stay."""
    needed = set(outputs)
    nodes: list[Node] = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            nodes.insert(0, node)
            needed.update(name for name in node.inputs if name)
    made = {name for node in nodes for name in node.outputs}
    constants = {name: constant for name, constant in graph.constants.items() if name in needed}
    names = {*graph.inputs, *constants, *made}
    return replace(
        graph,
        nodes=tuple(nodes),
        values={name: value for name, value in graph.values.items() if name in names},
        constants=constants,
        outputs=outputs,
        output_structure={"tuple": [*range(len(outputs))]},
    )
