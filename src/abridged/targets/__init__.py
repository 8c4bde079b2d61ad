"""Where a network runs: one file per runtime, each of which builds an artifact from a Graph and loads it again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abridged import files
from abridged.errors import NOTHING, PATH, InputError, expect, nearest
from abridged.tables import Table

if TYPE_CHECKING:
    from abridged.graph.graph import Graph
    from abridged.targets.artifact import Artifact, Engine, Manifest


@dataclass(frozen=True)
class Target:
    """How one runtime's files are written and run. `options` names every option of `write` with its default; beside them
    `write` gets "threads", for how many the artifact is built."""

    write: Callable[[Graph, Path, Mapping[str, Any]], None]  # the files, into an empty directory
    start: Callable[[Path, Manifest, int], Engine]  # directory, verified manifest, threads
    packages: tuple[str, ...]  # whose versions matter
    options: Mapping[str, Any]
    rehearse: Callable[[Path, Manifest, int], Engine] | None = None  # `start` for files that were built for elsewhere
    usage: str = ""  # a command that runs an artifact without Abridged; {0} is its folder


# An entry is a function, so that listing the table imports no runtime.
TARGETS: Table[Callable[[], Target]] = Table("target")


@TARGETS.entry("onnxruntime")
def onnxruntime() -> Target:
    """One standard .onnx file, run by ONNX Runtime on the CPU."""
    from abridged.targets.onnxruntime import TARGET

    return TARGET


@TARGETS.entry("openvino")
def openvino() -> Target:
    """OpenVINO IR (.xml and .bin), run by OpenVINO on the CPU."""
    from abridged.targets.openvino import TARGET

    return TARGET


@TARGETS.entry("native")
def native() -> Target:
    """C compiled for this machine: our own kernels, sparse ones among them."""
    from abridged.targets.native import TARGET

    return TARGET


@TARGETS.entry("c")
def c() -> Target:
    """C sources and weights alone, for a cross compiler: no threads, no allocation, one arena."""
    from abridged.targets.c import TARGET

    return TARGET


def build(
    graph: Graph,
    target: str = "onnxruntime",
    out: str | Path | None = None,
    *,
    force: bool = False,
    threads: int | None = None,
    check: Callable[[Artifact], object] = lambda artifact: None,
    **options: Any,
) -> Artifact:
    """Write a Graph as an artifact of a target into the folder `out`, and load it.

    Without `out` the folder is a temporary one that goes with the artifact. `threads` is None for every core that
    this process may use. `check` sees the running artifact before it becomes `out`: when it raises, nothing is left.

    Raises `InputError` for an unknown target or option and for a folder that is not empty
    (`force=True` replaces an earlier artifact, nothing else), `UnsupportedError` for an op the target does not have.
    """
    from abridged.targets.artifact import Artifact, delete_with, thread_count, write_manifest

    expect(out, (*PATH, NOTHING), "out must be a directory")
    entry = TARGETS[target]()
    for name in options.keys() - entry.options.keys():
        raise InputError(f"target '{target}' has no option '{name}'{nearest(name, entry.options)}")
    for name, value in options.items():
        if isinstance(entry.options[name], bool) and value not in (0, 1):  # True and False are
            raise InputError(f"target '{target}': {name} is 1 (yes) or 0 (no), not {value!r}")
    chosen, count = {**entry.options, **options}, thread_count(threads)
    own = Path(tempfile.mkdtemp(prefix="abridged-")) if out is None else None
    folder = own / target if own else vacant(Path(out or "."), force)
    try:
        with files.directory_atomic(folder) as fresh:
            entry.write(graph, fresh, {**chosen, "threads": count})
            manifest = write_manifest(fresh, target, graph, chosen, entry.packages)
            artifact = Artifact(fresh, manifest, (entry.rehearse or entry.start)(fresh, manifest, count), count)
            with artifact.closed_on_error():
                check(artifact)
    except BaseException:
        if own:
            shutil.rmtree(own)
        raise
    artifact.path = folder
    if own:
        delete_with(artifact, own)
    return artifact


def load(path: str | Path, threads: int | None = None) -> Artifact:
    """Load an artifact. Raises `InputError` when a file is missing, truncated or altered, or the runtime is missing."""
    from abridged.targets.artifact import read_manifest, thread_count

    expect(path, PATH, "an artifact is loaded from a directory")
    directory, count = Path(path), thread_count(threads)
    return start(directory, read_manifest(directory), count)


def start(directory: Path, manifest: Manifest, threads: int) -> Artifact:
    """Run a folder whose manifest was verified."""
    from abridged.targets.artifact import Artifact

    return Artifact(directory, manifest, TARGETS[manifest.target]().start(directory, manifest, threads), threads)


def vacant(out: Path, force: bool) -> Path:
    """A folder that may be written: absent, empty, or with `force` an earlier artifact. Raises `InputError`."""
    from abridged.targets.artifact import MANIFEST

    out = out.resolve()
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder for the artifact")
    if not out.exists() or not any(out.iterdir()):
        return out
    if not force:
        raise InputError(
            f"{out}: is not empty and was kept as it is; name another folder, or replace it with --force (force=True)"
        )
    if not (out / MANIFEST).exists():
        raise InputError(
            f"{out}: holds other files than an artifact, which --force does not delete; name another folder"
        )
    return out
