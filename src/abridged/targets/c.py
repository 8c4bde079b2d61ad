"""Target `c`: the sources and weights that target `native` is built from, for a compiler and a machine of the user's own.

Loaded here, they are compiled for this machine and run on one thread, so that what is shipped can be checked and measured."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from abridged import files
from abridged.compiler import threads
from abridged.compiler.build import build_library, find_compiler, machine_flags
from abridged.compiler.library import Library
from abridged.compiler.pipeline import compile_graph
from abridged.graph.graph import Graph
from abridged.targets import Target
from abridged.targets.artifact import Array, Manifest

_MAIN = """/* Runs the network once on zeros and prints the first numbers of each output; `bench` times it. */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "model.h"

static _Alignas(64) unsigned char weights[MODEL_WEIGHTS_BYTES], arena[MODEL_ARENA_BYTES];
{buffers}

static void serial(void *pool, model_task task, const void *args, long count) {{ (void)pool; task(args, 0, count); }}

int main(int argc, char **argv) {{
  const float *inputs[] = {{{inputs}}};
  float *outputs[] = {{{outputs}}};
  FILE *file = fopen("weights.bin", "rb");
  if (!file || fread(weights, 1, sizeof weights, file) != sizeof weights) return 1;
  fclose(file);
  model_prepare(arena);
  model_run(inputs, outputs, weights, arena, serial, NULL);
  if (argc > 1 && !strcmp(argv[1], "bench")) {{
    double best = 1e30;
    for (int i = 0; i < 20; i++) {{
      struct timespec a, b;
      clock_gettime(CLOCK_MONOTONIC, &a);
      model_run(inputs, outputs, weights, arena, serial, NULL);
      clock_gettime(CLOCK_MONOTONIC, &b);
      double ms = 1e3 * (double)(b.tv_sec - a.tv_sec) + 1e-6 * (double)(b.tv_nsec - a.tv_nsec);
      best = ms < best ? ms : best;
    }}
    printf("{{\\"target\\": \\"c\\", \\"threads\\": 1, \\"runs\\": 20, \\"least_ms\\": %.4f}}\\n", best);
    return 0;
  }}
{prints}
  return 0;
}}
"""

_MAKEFILE = """CFLAGS ?= -O3 -march=native
main: main.c model.c model.h
\t$(CC) $(CFLAGS) -std=gnu11 -ffp-contract=fast -fno-math-errno -fno-trapping-math -o $@ main.c model.c -lm
bench: main
\t@./main bench
.PHONY: bench
"""


class CEngine:
    """The sources, compiled into a folder that goes with this object."""

    def __init__(self, directory: Path, manifest: Manifest, count: int) -> None:
        self._outputs = [(port.shape, np.dtype(port.dtype)) for port in manifest.signature.outputs]
        self._folder = Path(tempfile.mkdtemp(prefix="abridged-c-"))
        shutil.copytree(directory, self._folder, dirs_exist_ok=True)
        (self._folder / "threads.c").write_bytes(threads.source())
        build_library(
            {"model.c": 1, "threads.c": 1},
            self._folder,
            self._folder / "model.so",
            compiler=find_compiler(),
            flags=machine_flags(),
        )
        self._library = Library(self._folder, 1)

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        outputs = [np.empty(shape, dtype) for shape, dtype in self._outputs]
        self._library.run(inputs, outputs)
        return outputs

    def layer_times(self, directory: Path, inputs: Sequence[Array], runs: int) -> None:
        """None: the times that matter are those of the device."""

    def close(self) -> None:
        self._library.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def write(graph: Graph, directory: Path, options: Mapping[str, Any]) -> None:
    sources = compile_graph(graph)
    for name, content in sources.files.items():
        files.write_atomic(directory / name, content)
    sizes = {
        kind: [int(np.prod(graph.values[name].shape)) for name in names]
        for kind, names in (("input", graph.inputs), ("output", graph.outputs))
    }
    names = {kind: [f"{kind}{i}" for i in range(len(numbers))] for kind, numbers in sizes.items()}
    buffers = [f"static float {n}[{size}];" for kind in sizes for n, size in zip(names[kind], sizes[kind], strict=True)]
    prints = [
        f'  for (int i = 0; i < {min(size, 8)}; i++) printf("%s%g", i ? " " : "", (double){name}[i]);\n  puts("");'
        for name, size in zip(names["output"], sizes["output"], strict=True)
    ]
    main = _MAIN.format(
        buffers="\n".join(buffers),
        inputs=", ".join(names["input"]),
        outputs=", ".join(names["output"]),
        prints="\n".join(prints),
    )
    files.write_atomic(directory / "main.c", main.encode())
    files.write_atomic(directory / "Makefile", _MAKEFILE.encode())


TARGET = Target(write=write, start=CEngine, packages=("torch",), options={})
