"""What a target delivers: a folder with a manifest on disk, and a callable network while it is loaded."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from abridged import files
from abridged.compiler.library import LibraryError
from abridged.errors import InputError
from abridged.graph.graph import Graph, Value
from abridged.graph.structure import flatten, unflatten
from abridged.timing import Samples, time_interleaved

FORMAT = 1
MANIFEST = "abridged.json"
MOST_THREADS = 512

Array = np.ndarray[Any, np.dtype[Any]]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Port(_Record):
    """One flat tensor that goes in or comes out. `dtype` as numpy and torch both name it: "float32", "int64" …"""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}{list(self.shape)}"


class Signature(_Record):
    """What an artifact takes and gives: flat tensors, and how the user's arguments and outputs are made of them."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    input_structure: Any  # graph.Structure
    output_structure: Any

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.inputs))}) -> ({', '.join(map(str, self.outputs))})"

    @classmethod
    def of(cls, graph: Graph) -> Signature:
        """The signature of a Graph."""
        inputs = [port(graph.values[name], name) for name in graph.inputs]
        outputs = [port(graph.values[source], name) for source, name in zip(graph.outputs, _own(graph), strict=True)]
        return cls.model_validate(
            {
                "inputs": inputs,
                "outputs": outputs,
                "input_structure": graph.input_structure,
                "output_structure": graph.output_structure,
            }
        )


class File(_Record):
    bytes: int
    sha256: str


class Manifest(_Record):
    """abridged.json: everything that is known of an artifact without its runtime. It is written last."""

    format: int
    target: str
    signature: Signature
    files: dict[str, File]
    versions: dict[str, str]  # of what built it
    options: dict[str, Any]
    checksum: str  # SHA-256 of all the rest

    def sealed(self) -> Manifest:
        """With the checksum that it should have."""
        rest = self.model_dump_json(exclude={"checksum"})
        return self.model_copy(update={"checksum": hashlib.sha256(rest.encode()).hexdigest()})


class Engine(Protocol):
    """A loaded network in its runtime. Its inputs were checked: count, shape, dtype, contiguous.

    `stands_in`: for a device that this machine is not, so that its times are not the device's."""

    stands_in: bool

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]: ...

    def layer_times(self, directory: Path, inputs: Sequence[Array], runs: int) -> dict[str, float] | None: ...

    def close(self) -> None: ...


@contextmanager
def refusing(directory: Path) -> Iterator[None]:
    """What a compiled library refuses is the user's mistake."""
    try:
        yield
    except LibraryError as error:
        raise InputError(f"{directory}: {error}") from None


class Artifact:
    """A network as one target runs it. Called with numpy it answers in numpy, with torch in torch.

    A context manager; `close()` frees the runtime's memory and threads, after it every call raises `InputError`."""

    def __init__(self, path: Path, manifest: Manifest, engine: Engine, threads: int) -> None:
        self.path = path
        self.manifest = manifest
        self.threads = threads
        self.files = {
            **{name: file.bytes for name, file in manifest.files.items()},
            MANIFEST: (path / MANIFEST).stat().st_size,
        }
        self._engine: Engine | None = engine

    @property
    def target(self) -> str:
        return self.manifest.target

    @property
    def signature(self) -> Signature:
        return self.manifest.signature

    @property
    def stands_in(self) -> bool:
        """Whether it runs here in place of a device of its own: right in its outputs, and nothing to time."""
        return self._open().stands_in

    @property
    def bytes(self) -> int:
        """Of every file of the artifact, the manifest included."""
        return sum(self.files.values())

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run the network on the model's positional inputs; the outputs come in the model's own structure.

        Raises `InputError` for a wrong count, shape, dtype or device, and for inputs by name, before the runtime sees anything."""
        engine = self._open()
        if named:
            expected = ", ".join(map(str, self.signature.inputs))
            raise InputError(f"inputs are positional ({expected}), got '{next(iter(named))}' by name; leave names out")
        arrays, from_torch = _checked(inputs, self.signature)
        with refusing(self.path):
            outputs = engine.run(arrays)
        leaves = [torch.from_numpy(output) for output in outputs] if from_torch else list(outputs)
        return unflatten(self.signature.output_structure, leaves)

    def random_inputs(self, seed: int = 0) -> tuple[Any, ...]:
        """Positional numpy inputs of the right shapes: normal floats; integers are 0, which every table has."""
        return random_inputs(self.signature, seed)

    def latency(self, seconds: float = 1.0, inputs: tuple[Any, ...] | None = None) -> Samples:
        """Time whole calls, checks included, on the given or random inputs."""
        arguments = self.random_inputs() if inputs is None else inputs
        self(*arguments)
        return time_interleaved({self.target: lambda: self(*arguments)}, seconds=seconds)[self.target]

    def layer_times(self, inputs: tuple[Any, ...] | None = None, runs: int = 10) -> dict[str, float] | None:
        """Median milliseconds by module path as the runtime's own profiler says, or None where it has none.

        A fused layer's time is with the layer it was fused into; "" is what no submodule computes."""
        engine = self._open()
        arrays, _ = _checked(self.random_inputs() if inputs is None else inputs, self.signature)
        with refusing(self.path):
            return engine.layer_times(self.path, arrays, runs)

    def close(self) -> None:
        """Free what the runtime holds. A second close does nothing."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Artifact:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise InputError(f"{self.path}: an artifact is not copied or pickled; load it where it is wanted, with ab.load")

    def __repr__(self) -> str:
        state = "" if self._engine else ", closed"
        return f"Artifact({self.target!r}, {str(self.path)!r}, {self.bytes} bytes{state})"

    def _open(self) -> Engine:
        if self._engine is None:
            raise InputError(f"{self.path}: the artifact is closed; load it again with ab.load")
        return self._engine


def delete_with(owner: object, folder: Path) -> Callable[[], object]:
    """Delete a folder that nobody asked for when its owner goes, or when what comes back is called."""
    return weakref.finalize(owner, _delete, folder, os.getpid())


def _delete(folder: Path, process: int) -> None:
    """In the process that made it: a forked one may go first."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _own(graph: Graph) -> list[str]:
    """A name of its own for each output: an input, a constant or one value returned twice is a copy of its own."""
    made = {name for node in graph for name in node.outputs}
    names: list[str] = []
    for i, name in enumerate(graph.outputs):
        own = name in made and name not in names
        names.append(name if own else f"{name}/output{i}")
    return names


def port(value: Value, name: str) -> Port:
    return Port(name=name, shape=value.shape, dtype=str(value.dtype).removeprefix("torch."))


def thread_count(threads: int | None) -> int:
    """`threads`, or by None the number of cores that this process may use. Raises `InputError` below 1."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads: expected at least 1 and at most {MOST_THREADS}, got {threads!r}")
    return threads


def random_inputs(signature: Signature, seed: int = 0) -> tuple[Any, ...]:
    """Positional numpy inputs for a signature: standard normal floats; integers 0, booleans True."""
    generator = np.random.default_rng(seed)

    def draw(port: Port) -> Array:
        dtype = np.dtype(port.dtype)
        if dtype.kind == "f":
            return np.asarray(generator.standard_normal(port.shape), dtype)
        return np.ones(port.shape, dtype) if dtype.kind == "b" else np.zeros(port.shape, dtype)

    inputs: tuple[Any, ...] = unflatten(signature.input_structure, [draw(port) for port in signature.inputs])
    return inputs


def _checked(inputs: tuple[Any, ...], signature: Signature) -> tuple[list[Array], bool]:
    """The flat inputs as contiguous arrays, and whether they came from torch."""
    leaves, structure = flatten(inputs)
    if len(leaves) != len(signature.inputs):
        expected = ", ".join(map(str, signature.inputs)) or "none"
        raise InputError(f"expected {len(signature.inputs)} input(s) ({expected}), got {len(leaves)}")
    arrays = [_array(leaf, port) for leaf, port in zip(leaves, signature.inputs, strict=True)]
    if structure != signature.input_structure:
        raise InputError(f"expected the inputs nested as {signature.input_structure}, got {structure}")
    from_torch = [isinstance(leaf, torch.Tensor) for leaf in leaves]
    if any(from_torch) and not all(from_torch):
        raise InputError("expected all inputs from torch or all from numpy, got both")
    return arrays, any(from_torch)


def _array(leaf: object, port: Port) -> Array:
    """One input as a C-contiguous array, without a copy where it is one already."""
    if isinstance(leaf, torch.Tensor):
        dtype, device = str(leaf.dtype).removeprefix("torch."), leaf.device.type
    elif isinstance(leaf, np.ndarray):
        dtype, device = str(leaf.dtype), "cpu"
    else:
        raise InputError(f"input '{port.name}': expected a numpy array or torch tensor, got {type(leaf).__name__}")
    if isinstance(leaf, torch.Tensor) and leaf.layout != torch.strided:
        raise InputError(f"input '{port.name}': expected a dense tensor, got a {leaf.layout}; use .to_dense()")
    if device != "cpu":
        raise InputError(f"input '{port.name}': expected a tensor on the CPU, got one on {leaf.device}; use .cpu()")
    if dtype != port.dtype:
        raise InputError(f"input '{port.name}': expected dtype {port.dtype}, got {dtype}")
    if tuple(leaf.shape) != port.shape:
        raise InputError(f"input '{port.name}': expected shape {list(port.shape)}, got {list(leaf.shape)}")
    plain = leaf.detach().resolve_neg().numpy() if isinstance(leaf, torch.Tensor) else leaf
    return np.ascontiguousarray(plain).reshape(port.shape)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """What builds an artifact here: Abridged, Python, and the named packages."""
    found = {name: metadata.version(name) for name in ("abridged", *packages)}
    return {**found, "python": platform.python_version(), "platform": platform.platform()}


def write_manifest(
    directory: Path, target: str, graph: Graph, options: Mapping[str, Any], packages: Iterable[str]
) -> Manifest:
    """Describe and checksum everything in the directory; the last thing that is written there."""
    listed = {
        name: File(bytes=size, sha256=files.sha256(directory / name))
        for name, size in files.tree_bytes(directory).items()
    }
    manifest = Manifest(
        format=FORMAT,
        target=target,
        signature=Signature.of(graph),
        files=listed,
        versions=versions(packages),
        options=dict(options),
        checksum="",
    ).sealed()
    files.write_atomic(directory / MANIFEST, _to_json(manifest))
    return manifest


def _to_json(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=1).encode()


def read_manifest(directory: Path) -> Manifest:
    """Read abridged.json and check every file against it. Raises `InputError`, one line, for anything amiss."""
    directory = Path(directory)
    try:
        text = (directory / MANIFEST).read_bytes()
    except OSError as error:
        why = f"{MANIFEST} is missing" if directory.is_dir() else error.strerror
        raise InputError(f"{directory}: not an artifact of Abridged: {why}") from None
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise InputError(
            f"{directory / MANIFEST}: damaged at {where}: {first['msg']}; build the artifact again"
        ) from None
    if manifest.format != FORMAT:
        raise InputError(
            f"{directory}: artifact format {manifest.format}, but this Abridged reads {FORMAT}; build it again"
        )
    for name, file in manifest.files.items():
        _check_file(directory, name, file)
    if manifest != manifest.sealed():
        raise InputError(
            f"{directory / MANIFEST}: was altered since it was built (its signature or another field is not what its "
            "checksum says); build or copy the artifact again"
        )
    return manifest


def _check_file(directory: Path, name: str, file: File) -> None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise InputError(f"{directory}: {MANIFEST} names the file '{name}', which is outside the artifact")
    path = directory / name
    try:
        size = path.stat().st_size
        digest = files.sha256(path) if size == file.bytes else ""
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; build or copy the artifact again") from None
    if size != file.bytes:
        raise InputError(f"{path}: has {size} bytes, but was built with {file.bytes}; build or copy the artifact again")
    if digest != file.sha256:
        raise InputError(f"{path}: was altered since it was built (SHA-256 differs); build or copy the artifact again")
