"""A Graph as one standard .onnx file: node by node through the table of `onnx_ops`, provenance in names and doc strings."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import onnx
from onnx import ModelProto, ValueInfoProto, helper

from abridged.errors import UnsupportedError
from abridged.graph.graph import Graph
from abridged.targets.artifact import Signature
from abridged.targets.onnx_emitter import DTYPES, Emitter, onnx_dtype
from abridged.targets.onnx_ops import EMIT

OPSET = 20  # the first with Gelu; every runtime of the last years reads it
IR_VERSION = 9  # what goes with it

# A protobuf message holds less than 2 GiB; the weights of a larger network go into a file beside it.
LIMIT = 2**31 - 2**24
WEIGHTS = "weights.bin"


def to_onnx(graph: Graph, *, sparse_storage: bool = True) -> ModelProto:
    """The Graph as an ONNX model of opset 20, static shapes. A node's name begins with its module path and a slash.

    `sparse_storage` keeps a pruned weight as its non-zeros (5 bytes each in fp32) where that is smaller; a runtime
    unpacks it once, as it loads. Raises `UnsupportedError` naming the module path for an op or dtype it lacks."""
    emitter = Emitter(graph, sparse_storage)
    _check_dtypes(graph)
    used = {name for node in graph for name in node.inputs} | set(graph.outputs)
    for name, constant in graph.constants.items():
        if name in used:
            emitter.constant(name, constant.tensor)
    for node in graph:
        emitter.node, first = node, len(emitter.nodes)
        result = EMIT[node.op](emitter, *node.inputs, **node.attrs)
        emitter.finish(first, (result,) if isinstance(result, str) else result)
    return _model(graph, emitter)


def _model(graph: Graph, emitter: Emitter) -> ModelProto:
    signature = Signature.of(graph)
    names = [port.name for port in signature.outputs]
    copies = [
        helper.make_node("Identity", [source], [name], name=f"/{name}")
        for source, name in zip(graph.outputs, names, strict=True)
        if source != name
    ]
    onnx_graph = helper.make_graph(
        [*emitter.nodes, *copies],
        "abridged",
        [_info(graph, name, name) for name in graph.inputs],
        [_info(graph, source, name) for source, name in zip(graph.outputs, names, strict=True)],
        emitter.initializers,
    )
    return helper.make_model(
        onnx_graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="abridged",
        producer_version=metadata.version("abridged"),
    )


def _info(graph: Graph, source: str, name: str) -> ValueInfoProto:
    value = graph.values[source]
    return helper.make_tensor_value_info(name, onnx_dtype(value.dtype), value.shape)


def _check_dtypes(graph: Graph) -> None:
    made_by = {name: str(node) for node in graph for name in node.outputs}
    for value in graph.values.values():
        if value.dtype not in DTYPES:
            where = made_by.get(value.name, f"'{value.name}'")
            raise UnsupportedError(f"{where}: ONNX export of {value.dtype} is not supported; use model.float()")


def write_onnx(graph: Graph, path: Path, *, sparse_storage: bool = True) -> ModelProto:
    """Write the Graph to `path`, one file below 2 GiB, else with its weights in `weights.bin` beside it; and give it."""
    model = to_onnx(graph, sparse_storage=sparse_storage)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < LIMIT:
        onnx.save_model(model, path)
    else:
        onnx.save_model(model, path, save_as_external_data=True, location=WEIGHTS, size_threshold=1024)
    onnx.checker.check_model(str(path), full_check=True)
    return model
