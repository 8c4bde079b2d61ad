"""Target `openvino`: OpenVINO's own format (.xml and .bin), made from the .onnx file, and OpenVINO on the CPU to run it."""

from __future__ import annotations

import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from abridged.errors import InputError, UnsupportedError
from abridged.graph.graph import Graph
from abridged.targets import Target
from abridged.targets.artifact import MANIFEST, Array, Manifest
from abridged.targets.onnx_export import write_onnx
from abridged.targets.provenance import Made, Ran, attribute

FILE = "model.xml"

# The ops that fusions are built on, by the names of what OpenVINO makes of them.
_BASE = {op: op for op in ("Convolution", "GroupConvolution", "MatMul")}
_BASE |= {"FullyConnected": "MatMul", "Deconvolution": "ConvolutionBackpropData"}


class OpenVinoEngine:
    """A compiled model and one inference request, which serves one caller at a time."""

    stands_in = False

    def __init__(self, directory: Path, manifest: Manifest, threads: int) -> None:
        self._threads = threads
        self._count = len(manifest.signature.outputs)
        self._lock = threading.Lock()
        compiled = _compile(directory / FILE, threads)
        found = [(port.any_name, tuple(port.shape)) for port in compiled.inputs]
        if found != [(port.name, port.shape) for port in manifest.signature.inputs]:
            raise InputError(f"{directory}: {MANIFEST} has not the signature of {FILE}; build the artifact again")
        self._request: Any = compiled.create_infer_request()

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        with self._lock:
            # Inputs are read where they are; outputs are copied, the next run overwrites the request's own.
            found = self._request.infer(list(inputs), share_inputs=True, share_outputs=False)
            return [found[i] for i in range(self._count)]

    def layer_times(self, directory: Path, inputs: Sequence[Array], runs: int) -> dict[str, float]:
        """From a second compilation that counts: median per node, summed by module path."""
        compiled = _compile(directory / FILE, self._threads, PERF_COUNT=True)
        request = compiled.create_infer_request()
        counts: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        request.infer(list(inputs))
        for _ in range(runs):
            request.infer(list(inputs))
            for node in request.profiling_info:
                counts[node.node_name, node.node_type].append(node.real_time.total_seconds() * 1000)
        made_of = {op.get_friendly_name(): _original(op) for op in compiled.get_runtime_model().get_ops()}
        ran = [
            Ran(made_of.get(name, (name,)), _BASE.get(kind), float(np.median(all_runs)))
            for (name, kind), all_runs in counts.items()
        ]
        return attribute(ran, _made(_openvino().Core().read_model(directory / FILE)))

    def close(self) -> None:
        self._request = None


def _original(op: Any) -> tuple[str, ...]:
    """The names of the nodes that OpenVINO fused into one of its own."""
    info = op.get_rt_info()
    return tuple(info["originalLayersNames"].value.split(",")) if "originalLayersNames" in info else ()


def _made(model: Any) -> dict[str, Made]:
    return {
        op.get_friendly_name(): Made(
            op.get_type_name(), tuple(value.get_node().get_friendly_name() for value in op.input_values())
        )
        for op in model.get_ops()
    }


def _compile(file: Path, threads: int, **more: Any) -> Any:
    # fp32 throughout: by default OpenVINO may compute in bf16 where the CPU can, off by 1 %.
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    core = _openvino().Core()
    try:
        return core.compile_model(file, "CPU", {**hints, **more})
    except RuntimeError as error:
        raise UnsupportedError(f"{file}: refused by OpenVINO: {_line(error)}") from error


def write(graph: Graph, directory: Path, options: Mapping[str, Any]) -> None:
    openvino = _openvino()
    with tempfile.TemporaryDirectory(prefix="abridged-onnx-") as folder:
        file = Path(folder) / "model.onnx"
        written = write_onnx(graph, file, sparse_storage=bool(options["sparse_storage"]))
        try:
            model = openvino.Core().read_model(file)
        except RuntimeError as error:
            raise UnsupportedError(f"OpenVINO cannot read the network: {_line(error)}") from error
        _name(model, {value: node.name for node in written.graph.node for value in node.output})
        openvino.save_model(model, directory / FILE, compress_to_fp16=False)


def _name(model: Any, makers: Mapping[str, str]) -> None:
    """Give nodes the names of ours: OpenVINO names what makes an output after the output."""
    for op in model.get_ops():
        for value in op.outputs():
            for name in value.get_names() & makers.keys():
                op.set_friendly_name(makers[name])


def _openvino() -> Any:
    try:
        import openvino
    except ImportError:
        raise InputError("target 'openvino' needs a package: pip install 'abridged[openvino]'") from None
    return openvino


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


TARGET = Target(
    write=write,
    start=OpenVinoEngine,
    packages=("onnx", "openvino", "torch"),
    options={"sparse_storage": True},
)
