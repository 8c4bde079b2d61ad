"""Builds the nodes and initializers of an ONNX graph; pruned weights are stored by their non-zeros alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from abridged.errors import UnsupportedError
from abridged.graph.graph import Graph, Node, Value
from abridged.tables import Table

Array = np.ndarray[Any, np.dtype[Any]]

Ints = tuple[int, ...]
Rule = Callable[..., str | tuple[str, ...]]

EMIT = Table[Rule]("op in ONNX")

# What ONNX Runtime's CPU kernels know; the narrow integers are computed as int32.
DTYPES = frozenset(
    {torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
    | {torch.bool}
)
NARROW = (torch.uint8, torch.int8, torch.int16)

# ONNX Runtime folds constants of at most 1 GiB; a larger tensor would be unpacked again at every call.
FOLDABLE = 2**30
# Bytes that must be saved for the six nodes which unpack a tensor: about 700 in the file, and a moment at load.
UNPACKING = 4096


class Emitter:
    """The ONNX graph under construction. Calling it adds a node and gives the name of its output.

    `node` is the Graph's node that is being emitted: its path and outputs name everything that is added."""

    def __init__(self, graph: Graph, sparse_storage: bool) -> None:
        self.graph = graph
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.node: Node | None = None
        self._sparse_storage = sparse_storage
        self._literals: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._added = 0

    def __call__(self, op: str, *inputs: str | None, **attrs: Any) -> str:
        return self.several(op, 1, *inputs, **attrs)[0]

    def several(self, op: str, count: int, *inputs: str | None, **attrs: Any) -> tuple[str, ...]:
        """Add a node of several outputs. An attribute of None is left out; an input of None is absent."""
        own = self.node.outputs[0] if self.node else ""
        path = self.node.path if self.node else ""
        suffix = f"/{self._added}" if self._added else ""
        outputs = [f"{own}/{self._added}.{i}" for i in range(count)]
        given = {key: value for key, value in attrs.items() if value is not None}
        made = helper.make_node(op, [name or "" for name in inputs], outputs, name=f"{path}/{own}{suffix}", **given)
        if self.node and self.node.source:
            made.doc_string = self.node.source
        self.nodes.append(made)
        self._added += 1
        return tuple(outputs)

    def finish(self, first: int, names: tuple[str, ...]) -> None:
        """Give what the rule returned, made by the nodes from `first` on, the names of the Graph's outputs."""
        assert self.node is not None
        new = {}
        made = {name for node in self.nodes[first:] for name in node.output}
        for name, output in zip(names, self.node.outputs, strict=True):
            if name in made and name not in new:
                new[name] = output
            else:  # an op that did nothing here, or one value under two names
                self.nodes.append(helper.make_node("Identity", [name], [output], name=f"{self.node.path}/{output}"))
        for node in self.nodes[first:]:
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]
        self._added = 0

    def value(self, name: str) -> Value:
        return self.graph.values[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.graph.values[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.graph.values[name].dtype

    @property
    def result(self) -> Value:
        """The (first) output of the node that is being emitted."""
        assert self.node is not None
        return self.graph.values[self.node.outputs[0]]

    def known(self, name: str) -> torch.Tensor | None:
        """The tensor of a constant."""
        constant = self.graph.constants.get(name)
        return constant.tensor if constant else None

    def literal(self, value: Any, dtype: torch.dtype = torch.int64) -> str:
        """A constant of the export's own; equal ones are stored once."""
        array = np.asarray(value, numpy_dtype(dtype))
        key = (str(dtype), array.shape, array.tobytes())
        if key not in self._literals:
            name = self._literals[key] = f"literal/{len(self._literals)}"
            self.initializers.append(numpy_helper.from_array(array, name))
        return self._literals[key]

    def cast(self, name: str, dtype: torch.dtype) -> str:
        return self("Cast", name, to=onnx_dtype(dtype))

    def cut(self, x: str, axis: int, start: int, stop: int, step: int = 1) -> str:
        """x[start:stop:step] along an axis."""
        bounds = (self.literal([bound]) for bound in (start, stop, axis, step))
        return self("Slice", x, *bounds)

    def constant(self, name: str, tensor: torch.Tensor) -> None:
        """Store a constant under its name: dense, or by its non-zeros where that takes fewer bytes."""
        array = tensor.detach().cpu().contiguous().numpy()
        packed = pack(array) if self._sparse_storage else None
        if packed is None:
            self.initializers.append(numpy_helper.from_array(array, name))
        else:
            self._unpack(name, array, *packed)

    def _unpack(self, name: str, array: Array, values: Array, gaps: Array) -> None:
        """zeros[cumsum(gaps)] = values, as nodes over constants: a runtime folds them into a dense weight as it loads."""

        def add(op: str, output: str, *inputs: str, **attrs: Any) -> str:
            self.nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}", **attrs))
            return output

        zero = helper.make_tensor(f"{name}/zero", onnx_dtype_of(array.dtype), [1], np.zeros(1, array.dtype))
        if not len(values):  # OpenVINO scatters nothing into nothing only
            add("ConstantOfShape", name, self.literal(array.shape), value=zero)
            return
        self.initializers.append(numpy_helper.from_array(values, f"{name}/values"))
        self.initializers.append(numpy_helper.from_array(gaps, f"{name}/gaps"))
        dense = add("ConstantOfShape", f"{name}/zeros", self.literal([array.size]), value=zero)
        wide = add("Cast", f"{name}/steps", f"{name}/gaps", to=TensorProto.INT32)
        places = add("CumSum", f"{name}/places", wide, self.literal(0))
        dense = add("ScatterElements", f"{name}/flat", dense, places, f"{name}/values", axis=0)
        add("Reshape", name, dense, self.literal(array.shape))


def pack(array: Array) -> tuple[Array, Array] | None:
    """Non-zeros and the uint8 distance of each from the one before, or None where dense takes fewer bytes.

    A distance above 255 goes over stored zeros in between. −0.0, which masks leave behind, comes back as 0.0.

    >>> weight = np.zeros(2000, np.float32)
    >>> weight[[3, 7, 500]] = 1.0, 2.0, 3.0
    >>> values, gaps = pack(weight)
    >>> values.tolist(), gaps.tolist()
    ([1.0, 2.0, 0.0, 3.0], [3, 4, 255, 238])
    """
    if not UNPACKING < array.nbytes <= FOLDABLE or array.dtype.kind != "f":
        return None
    if 5 * np.count_nonzero(array) + UNPACKING >= array.nbytes:
        return None
    values, gaps = _by_gaps(array)
    return (values, gaps) if values.nbytes + gaps.nbytes + UNPACKING < array.nbytes else None


def _by_gaps(array: Array) -> tuple[Array, Array]:
    flat = array.reshape(-1)
    places = np.flatnonzero(flat)
    distance = np.diff(places, prepend=0)
    hops = np.maximum(distance - 1, 0) // 255  # stored zeros before each non-zero, 255 apart
    last = np.cumsum(hops + 1) - 1  # where each non-zero comes to stand
    count = int(last[-1]) + 1 if len(last) else 0
    values, gaps = np.zeros(count, array.dtype), np.full(count, 255, np.uint8)
    values[last], gaps[last] = flat[places], distance - 255 * hops
    return values, gaps


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    if dtype not in DTYPES:
        raise UnsupportedError(f"ONNX export of {dtype} is not supported; use model.float()")
    return np.dtype(str(dtype).removeprefix("torch."))


def onnx_dtype(dtype: torch.dtype) -> int:
    return onnx_dtype_of(numpy_dtype(dtype))


def onnx_dtype_of(dtype: np.dtype[Any]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(dtype))
