"""Load an artifact in a fresh process, run it, and print what that took: `python -m abridged.measurement.probe DIR THREADS`.

Memory is the highest resident set while loading and running, above that of the process with the runtime imported."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from time import perf_counter

import psutil

from abridged.targets import TARGETS, load
from abridged.targets.artifact import read_manifest

RUNS = 3


def probe(path: Path, threads: int) -> dict[str, float]:
    """Milliseconds to load (checksums included) and bytes of memory at the peak."""
    TARGETS[read_manifest(path).target]()  # imports the runtime
    _forget_peak()
    idle = psutil.Process().memory_info().rss
    started = perf_counter()
    artifact = load(path, threads)
    load_ms = 1000 * (perf_counter() - started)
    for _ in range(RUNS):
        artifact(*artifact.random_inputs())
    peak = _peak()
    artifact.close()
    return {"load_ms": load_ms, "peak_memory": max(0, peak - idle)}


def _forget_peak() -> None:
    """Linux keeps the highest resident set since the start; what the imports took is not the network's."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    print(json.dumps(probe(Path(sys.argv[1]), int(sys.argv[2]))))
