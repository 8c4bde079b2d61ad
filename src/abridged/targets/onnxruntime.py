"""Target `onnxruntime`: one standard .onnx file, and ONNX Runtime on the CPU to run it."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from abridged.errors import InputError, UnsupportedError
from abridged.graph.graph import Graph
from abridged.targets import Target
from abridged.targets.artifact import MANIFEST, Array, Manifest
from abridged.targets.onnx_export import write_onnx
from abridged.targets.provenance import Made, Ran, attribute

FILE = "model.onnx"

_ERRORS = 3  # ONNX Runtime's log level: its warnings are about what it optimizes, not about the model
_WARMUP = 2

# The ops that fusions are built on, by the names of what ONNX Runtime makes of them.
_BASE = {op: op for op in ("Conv", "ConvTranspose", "Gemm", "MatMul")}
_BASE |= {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul"}


class OnnxRuntimeEngine:
    """An inference session. `run` is safe from several threads at once."""

    stands_in = False

    def __init__(self, directory: Path, manifest: Manifest, threads: int) -> None:
        self._threads = threads
        self._inputs = [port.name for port in manifest.signature.inputs]
        self._outputs = [port.name for port in manifest.signature.outputs]
        self._session = _session(directory / FILE, _options(threads))
        found = [(port.name, tuple(port.shape)) for port in self._session.get_inputs()]
        if found != [(port.name, port.shape) for port in manifest.signature.inputs]:
            raise InputError(f"{directory}: {MANIFEST} has not the signature of {FILE}; build the artifact again")

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        # Plain `run` reads the numpy inputs where they are; bindings and OrtValues measured no faster.
        outputs: list[Array] = self._session.run(self._outputs, dict(zip(self._inputs, inputs, strict=True)))
        return outputs

    def layer_times(self, directory: Path, inputs: Sequence[Array], runs: int) -> dict[str, float]:
        """From a second session that profiles itself: median per node, summed by module path."""
        with tempfile.TemporaryDirectory(prefix="abridged-profile-") as folder:
            options = _options(self._threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = _session(directory / FILE, options)
            feed = dict(zip(self._inputs, inputs, strict=True))
            for _ in range(runs + _WARMUP):
                session.run(self._outputs, feed)
            events = json.loads(Path(session.end_profiling()).read_bytes())
        return attribute(*_origins(_medians(events), onnx.load(directory / FILE, load_external_data=False)))

    def close(self) -> None:
        self._session = None


def _medians(events: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Milliseconds by (name, op) of the nodes that ran, from the profiler's events; warm-up runs are left out."""
    durations: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            durations[name, event["args"]["op_name"]].append(event["dur"] / 1000)
    return {node: statistics.median(runs[_WARMUP:]) for node, runs in durations.items()}


def _origins(times: Mapping[tuple[str, str], float], model: onnx.ModelProto) -> tuple[list[Ran], dict[str, Made]]:
    """The nodes that ran beside those we wrote.

    ONNX Runtime names a node as one of ours, alone or with an addition ("features.0/conv/BiasFusion"), or after the
    value that it makes ("relu_1_nchwc")."""
    makers = {value: node.name for node in model.graph.node for value in node.output}
    made = {
        node.name: Made(node.op_type, tuple(makers[value] for value in node.input if value in makers))
        for node in model.graph.node
    }

    def ours(name: str) -> str:
        name = name.removesuffix("_nchwc")
        if name in made:
            return name
        return makers.get(name) or max((own for own in made if own in name), key=len, default=name)

    ran = []
    for (name, op), milliseconds in times.items():
        own, base = ours(name), _BASE.get(op)
        # A product with a bias becomes a Gemm, whatever it was.
        base = made[own].op if own in made and base == "Gemm" and made[own].op == "MatMul" else base
        ran.append(Ran((own,), base, milliseconds))
    return ran, made


def _session(file: Path, options: onnxruntime.SessionOptions) -> Any:
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no base of their own
        raise UnsupportedError(f"{file}: refused by ONNX Runtime: {_line(error)}") from error


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS
    return options


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def write(graph: Graph, directory: Path, options: Mapping[str, Any]) -> None:
    write_onnx(graph, directory / FILE, sparse_storage=bool(options["sparse_storage"]))


TARGET = Target(
    write=write,
    start=OnnxRuntimeEngine,
    packages=("onnx", "onnxruntime", "torch"),
    options={"sparse_storage": True},
)
