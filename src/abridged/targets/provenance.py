"""Which module a node of ONNX Runtime's optimized graph belongs to, though it was fused and renamed."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping

from onnx import ModelProto, NodeProto

# The op that a fusion is built on: its time belongs to the layer that multiplies, not to the activation behind it.
_BASE = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul"}


def attribute(times: Mapping[tuple[str, str], float], model: ModelProto) -> dict[str, float]:
    """Times of the runtime's nodes, by (name, op), summed by module path; "" is what belongs to no submodule.

    A runtime's node has the name of one of ours, alone or with an addition ("features.0/conv/BiasFusion"), or of the
    value it makes ("relu_1_nchwc"). A convolution that took in what followed it has the last one's name: it is
    searched backwards from there, and each of ours is found once."""
    by_name = {node.name: node for node in model.graph.node}
    makers = {name: node for node in model.graph.node for name in node.output}
    fused: list[tuple[NodeProto, str, float]] = []
    found: defaultdict[str, float] = defaultdict(float)
    taken: set[str] = set()
    for (name, op), time in times.items():
        node, base = _origin(name, by_name, makers), _BASE.get(op, op)
        if node is None or base not in ("Conv", "Gemm", "MatMul") or node.op_type == base:
            found["" if node is None else _path(node)] += time
            taken |= {node.name} if node else set()
        else:
            fused.append((node, base, time))
    for node, base, time in fused:
        first = _behind(node, base, makers, taken) or node
        found[_path(first)] += time
        taken.add(first.name)
    return dict(found)


def _path(node: NodeProto) -> str:
    return node.name.split("/")[0]


def _origin(name: str, by_name: Mapping[str, NodeProto], makers: Mapping[str, NodeProto]) -> NodeProto | None:
    """Our node that a runtime's node was made of."""
    name = name.removesuffix("_nchwc")
    if node := by_name.get(name) or makers.get(name):
        return node
    # The runtime adds to a name in front or behind; ours that is in it and longest is meant.
    return max((node for own, node in by_name.items() if own in name), key=lambda node: len(node.name), default=None)


def _behind(last: NodeProto, op: str, makers: Mapping[str, NodeProto], taken: set[str]) -> NodeProto | None:
    """The nearest node of an op that `last` was computed from and that was not found yet."""
    queue, seen = deque([last]), {last.name}
    while queue:
        node = queue.popleft()
        if node.op_type == op and node.name not in taken:
            return node
        for name in node.input:
            maker = makers.get(name)
            if maker is not None and maker.name not in seen:
                seen.add(maker.name)
                queue.append(maker)
    return None
