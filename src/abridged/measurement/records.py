"""What a measurement says, as frozen records that go to JSON and come back: theory is counted, practice is timed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="strings")


class LayerTheory(Record):
    """Counts of one module path. MACs are multiply-accumulates of one whole input batch as captured."""

    path: str
    ops: tuple[str, ...]  # graph ops that run under this path, in order
    shape: tuple[int, ...]  # of the last output
    parameters: int = 0
    nonzeros: int = 0
    macs: int = 0
    effective_macs: int = 0  # MACs left when zero weights are skipped
    bytes_dense: int = 0
    bytes_packed: int = 0  # as abridged.weights stores it
    milliseconds: float | None = None  # measured in the target runtime, where it can say


class Theory(Record):
    """Counts of a whole network; the sums of its layers (a shared weight counts once)."""

    parameters: int
    nonzeros: int
    macs: int
    effective_macs: int
    bytes_dense: int
    bytes_packed: int
    batch: int
    layers: tuple[LayerTheory, ...] = ()

    @property
    def sparsity(self) -> float:
        return 1 - self.nonzeros / self.parameters if self.parameters else 0.0


class Latency(Record):
    """Milliseconds of one call. `spread` is the interquartile range as a fraction of the median."""

    median_ms: float
    p95_ms: float
    spread: float
    runs: int
    threads: int


class Accuracy(Record):
    """A metric on held-out samples with its 95 % confidence interval (Wilson score for a fraction)."""

    metric: str
    value: float
    low: float
    high: float
    samples: int
    split: str  # "val" | "test"


class Deviation(Record):
    """The largest |artifact − PyTorch| over all outputs on the reference inputs, the bound it must keep
    (DESIGN §6: 8 × the error of PyTorch's own fp32 against float64), and where it begins when it does not."""

    largest: float
    bound: float
    layer: str | None = None

    @property
    def kept(self) -> bool:
        return self.largest <= self.bound


class Practice(Record):
    """What one artifact delivered in its own runtime on this machine."""

    target: str  # "onnxruntime", "openvino", "pytorch" …
    bytes: int
    files: dict[str, int]
    latency: Latency | None = None
    throughput: float | None = None  # samples per second, from the median
    peak_memory: int | None = None  # bytes above the idle process, while loading and running
    load_ms: float | None = None
    accuracy: Accuracy | None = None
    deviation: Deviation | None = None


class Device(Record):
    """What `make bench` of target `c` printed on a device; an emulator's line has no times."""

    weights: str  # how the SHA-256 of weights.bin begins
    machine: str
    compiler: str
    flags: str
    weights_bytes: int
    arena_bytes: int
    threads: int
    runs: int
    emulated: bool
    median_ms: float | None = None
    p95_ms: float | None = None
    spread: float | None = None


class Contender(Record):
    """One column of a Measurement: a model in a runtime."""

    name: str
    practice: Practice
    theory: Theory | None = None


class Environment(Record):
    """Where the numbers were taken."""

    cpu: str
    cores: int
    threads: int
    memory: int  # bytes
    platform: str
    python: str
    versions: dict[str, str]
    date: str  # ISO 8601, UTC
