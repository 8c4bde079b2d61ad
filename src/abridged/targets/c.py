"""Target `c`: the network as C99 sources and weights, for a compiler and a machine of the user's own.

No malloc, no stdio, no threads; the sizes of arena and weights are constants of the header. Loaded here, the sources are
compiled for this machine and run on one thread, so that what is shipped can be checked and measured."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files as resources
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from abridged import files
from abridged.compiler import threads
from abridged.compiler.build import build_library, command_of, find_compiler, machine_flags, require_cpu_named
from abridged.compiler.cpus import CPUS, cpu_named, flags_of
from abridged.compiler.library import Library
from abridged.compiler.pipeline import compile_graph
from abridged.compiler.plan import C_TYPES
from abridged.graph.graph import Graph
from abridged.targets import Target
from abridged.targets.artifact import Array, Manifest, delete_with, refusing

_READ = """  FILE *file = fopen("weights.bin", "rb");
  if (!file || fread(weights, 1, sizeof weights, file) != sizeof weights)
    return fputs("weights.bin is not here, or not whole; run the program in the folder of weights.bin\\n", stderr), 1;
  fclose(file);"""
_RAMPS = {"uint8_t": "i % 2"}  # which may be truth values; other types take fractions and negative numbers
_STRICT = "-std=c99 -pedantic -Wall -Wextra -Werror"
_VECTORS = "-std=c99 -Wall -Wextra -Wno-psabi"


class CEngine:
    """The sources, compiled into a folder that goes with this object."""

    stands_in = True

    def __init__(self, directory: Path, manifest: Manifest, count: int) -> None:
        self._outputs = [(port.shape, np.dtype(port.dtype)) for port in manifest.signature.outputs]
        folder = Path(tempfile.mkdtemp(prefix="abridged-c-"))
        self._delete = delete_with(self, folder)
        try:
            shutil.copytree(directory, folder, dirs_exist_ok=True)
            (folder / "threads.c").write_bytes(threads.source())
            compiler, parts = find_compiler(), {"model.c": 1, "threads.c": 1}
            flags = machine_flags(compiler)
            build_library(parts, folder, folder / "model.so", compiler=compiler, flags=flags)
            with refusing(directory):
                self._library = Library(folder, 1)
        except BaseException:
            self._delete()
            raise

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        outputs = [np.empty(shape, dtype) for shape, dtype in self._outputs]
        self._library.run(inputs, outputs)
        return outputs

    def layer_times(self, directory: Path, inputs: Sequence[Array], runs: int) -> None:
        """None: the times that matter are those of the device."""

    def close(self) -> None:
        self._library.close()
        self._delete()


def write(graph: Graph, directory: Path, options: Mapping[str, Any]) -> None:
    for name, content in sources(graph, options).items():
        files.write_atomic(directory / name, content)


def sources(graph: Graph, options: Mapping[str, Any]) -> dict[str, bytes]:
    """Every file of the artifact by name."""
    command = _command(options)
    if options["cpu"] not in CPUS:
        require_cpu_named(options["cpu"], command, flags_of(command, options["cpu"]))
    made = dict(compile_graph(graph).files)
    if not options["vector"]:
        made["model.c"] = b"#define LANES 1 /* plain ISO C99 */\n" + made["model.c"]
    if options["array"]:
        made["weights.c"] = _array(made["weights.bin"])
    fields = _buffers(graph, bool(options["array"])) | _build(options, command)
    for name in ("main.c", "bench.c", "Makefile"):
        made[name] = _filled(resources(__package__).joinpath("project", name).read_text(encoding="utf-8"), fields)
    return made


def _filled(text: str, fields: Mapping[str, str]) -> bytes:
    for name, value in fields.items():
        text = text.replace(f"@{name}@", value)
    return text.encode()


def _array(weights: bytes) -> bytes:
    """weights.bin as a constant, in little-endian words: where there is no file system."""
    words = [f"0x{word:08x}u" for word in np.frombuffer(weights, "<u4")]
    lines = [", ".join(words[i : i + 8]) for i in range(0, len(words), 8)]
    head = '/* weights.bin as words of a little-endian machine. */\n#include "model.h"\n'
    declared = "extern const unsigned int model_weights[];\n"
    defined = "MODEL_ALIGNED const unsigned int model_weights[MODEL_WEIGHTS_BYTES / 4] = {\n"
    return (head + declared + defined + ",\n".join(lines) + "};\n").encode()


def _buffers(graph: Graph, array: bool) -> dict[str, str]:
    """What main.c and bench.c say of inputs, outputs and weights."""

    def ports(kind: str, names: Sequence[str]) -> list[tuple[str, int, str, str]]:
        shapes = [graph.values[name].shape for name in names]
        said = (f"{name}: {'x'.join(map(str, shape)) or 'a number'}" for name, shape in zip(names, shapes, strict=True))
        types = [C_TYPES[graph.values[name].dtype] for name in names]
        return [(f"{kind}{i}", prod(shapes[i]), text, types[i]) for i, text in enumerate(said)]

    def listed(ports: Sequence[tuple[str, int, str, str]]) -> str:
        return ", ".join(name if kind == "float" else f"(void *){name}" for name, _, _, kind in ports)

    inputs, outputs = ports("input", graph.inputs), ports("output", graph.outputs)
    arena = "static MODEL_ALIGNED float arena[MODEL_ARENA_BYTES / 4]"
    weights = ";\nextern const unsigned int weights[];" if array else ", weights[MODEL_WEIGHTS_BYTES / 4];"
    return {
        "BUFFERS": "\n".join(
            [
                "#define weights model_weights /* of weights.c */" if array else "",
                "#include <stdint.h>" if any(kind != "float" for *_, kind in (*inputs, *outputs)) else "",
                arena + weights,
                *(f"static {kind} {name}[{size}]; /* {said} */" for name, size, said, kind in (*inputs, *outputs)),
            ]
        ).strip(),
        "INPUTS": listed(inputs),
        "OUTPUTS": listed(outputs),
        "WEIGHTS": "" if array else _READ,
        "RAMPS": "\n".join(
            f"  for (long i = 0; i < {n}; i++) {name}[i] = ({kind})({_RAMPS.get(kind, '(float)(i % 17) / 8 - 1')});"
            for name, n, _, kind in inputs
        ),
        "PRINTS": "\n".join(
            f'  for (long i = 0; i < {n}; i++) printf("%.9g\\n", (double){name}[i]);' for name, n, _, _ in outputs
        ),
    }


def _command(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The compiler that the Makefile names; it may be on another machine."""
    cpu = cpu_named(options["cpu"])
    return command_of(options["cc"] or (f"{cpu.prefix}gcc" if cpu.foreign else "cc"))


def _build(options: Mapping[str, Any], command: Sequence[str]) -> dict[str, str]:
    """What the Makefile says of the compiler."""
    cpu = options["cpu"]
    return {
        "CPU": "the machine that it is called on" if cpu == "native" else cpu,
        "CC": shlex.join(command),
        "CFLAGS": " ".join(("-O3", *flags_of(command, cpu))),
        "STANDARD": _VECTORS if options["vector"] else _STRICT,
        "SOURCES": "model.c weights.c" if options["array"] else "model.c",
    }


TARGET = Target(
    write=write,
    start=CEngine,
    packages=("torch",),
    options={"cc": None, "cpu": "native", "vector": True, "array": False},
    usage="make -s -C {0} bench",
)
