"""Target `c`: plain sources that any C compiler builds, and that a sanitizer, a guard page and strict ISO C find nothing in."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_native_ops import COMPUTED, EVERY, graph_of
from torch import Tensor, nn

import abridged as ab
from abridged import targets
from abridged.errors import InputError
from abridged.files import sha256
from abridged.graph.capture import capture
from abridged.graph.interpret import interpret
from abridged.measurement.measure import measure
from abridged.targets.c import TARGET, sources

OPTIONS = [{}, {"vector": 0}, {"vector": 0, "array": 1}]
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
SANITIZE = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"


class Net(nn.Module):
    """Dense, sparse, depthwise and strided convolutions, pools, a residual, a cat and a matrix times a vector."""

    def __init__(self, channels: int = 9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, channels, 3, 2, 1)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.sparse = nn.Conv2d(channels, channels, 3, padding=1)
        self.narrow = nn.Conv2d(2 * channels, 5, 1)
        self.head = nn.Linear(5, 7)
        with torch.no_grad():
            for weight in (self.sparse.weight, self.head.weight):
                weight *= torch.rand_like(weight) < 0.1
                weight[0] = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.stem(x))
        y = torch.nn.functional.silu(self.depthwise(x)) + x
        z = torch.cat([y, self.sparse(y)], 1)
        z = torch.nn.functional.max_pool2d(self.narrow(z), 3, 2, 1)
        return self.head(z.mean((2, 3))).softmax(1), z


class Direct(nn.Module):
    """Steps that read the input and write the output where they lie: no room is behind those."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        pooled = torch.nn.functional.max_pool2d(x, 3, 2, 1)
        return x * 2 + 1, x.sum(1), x.flatten(1).softmax(1), pooled, x.mean((2, 3)), x.permute(0, 2, 3, 1).contiguous()


class Residual(nn.Module):
    """The input itself is a residual and an operand of rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv2d(5, 5, 1)
        self.linear = nn.Linear(11, 11)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.mix(x * 2) + x
        return y, self.linear(x[0, 0]) + x[0, 0] + y[0, 1]


NETWORKS = {
    "net": (Net(), (1, 3, 21, 19)),
    "batch": (Net(16), (3, 3, 16, 16)),
    "direct": (Direct(), (1, 3, 7, 5)),
    "residual": (Residual(), (1, 5, 3, 11)),
    "vector": (nn.Sequential(nn.Linear(13, 17), nn.ReLU(), nn.Linear(17, 3)), (1, 13)),
    "line": (nn.Sequential(nn.Conv1d(2, 3, 5, 2, 2), nn.Tanh(), nn.AvgPool1d(3, 2, 1)), (2, 2, 31)),
}


def ramp(shape: tuple[int, ...]) -> Tensor:
    """What main.c fills its inputs with."""
    return ((torch.arange(int(np.prod(shape))) % 17).float() / 8 - 1).reshape(shape)


def emit(name: str, out: Path, **options: object) -> tuple[np.ndarray, float]:
    """Write the network as target `c` does; what it should print, and how far from that it may be."""
    module, shape = NETWORKS[name]
    x = ramp(shape)
    graph = capture(module.eval(), x)
    out.mkdir()
    for file, content in sources(graph, {**TARGET.options, **options}).items():
        (out / file).write_bytes(content)
    exact, rounded = (interpret(graph, x, dtype=dtype) for dtype in (torch.float64, torch.float32))
    exact, rounded = (
        torch.cat([y.double().flatten() for y in (found if isinstance(found, tuple) else (found,))])
        for found in (exact, rounded)
    )
    bound = max(8 * (exact - rounded).abs().max().item(), 4e-6 * exact.abs().max().item())
    return exact.detach().numpy(), bound


def make(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["make", "-s", "-C", str(folder), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "the compiler has something to say"
    return done.stdout


def prints(command: list[str], folder: Path) -> np.ndarray:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.array([float(line) for line in done.stdout.split()])


def agree(found: np.ndarray, wanted: tuple[np.ndarray, float]) -> None:
    exact, bound = wanted
    assert found.shape == exact.shape
    assert np.abs(found - exact).max() <= bound


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if not COMPILERS or not shutil.which("make"):
        pytest.skip("needs gcc or clang, and make")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_example_builds_and_runs_without_a_warning(options: dict[str, int], tmp_path: Path) -> None:
    wanted = emit("net", tmp_path / "net", **options)
    for compiler in COMPILERS:
        make(tmp_path / "net", "-B", "main", f"CC={compiler}", "CFLAGS=-O2")
        agree(prints(["./main"], tmp_path / "net"), wanted)
    source = (tmp_path / "net" / "model.c").read_text()
    assert not re.search(r"\b(malloc|free|printf|stdio|pthread)\b", source)
    assert ("vector_size" in source) == ("vector_size" in make_preprocessed(tmp_path / "net")) or not options["vector"]
    assert len((tmp_path / "net" / "main.c").read_text().partition("int main")[2].splitlines()) <= 14


@pytest.mark.parametrize("program", ["main", "timing"])
def test_without_its_weights_a_program_says_so(program: str, tmp_path: Path) -> None:
    emit("vector", tmp_path / "net", vector=0)
    make(tmp_path / "net", program, "CFLAGS=-O1")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "weights.bin").write_bytes((tmp_path / "net" / "weights.bin").read_bytes()[:-1])
    for folder in (tmp_path, tmp_path / "cut"):
        done = subprocess.run([tmp_path / "net" / program], cwd=folder, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "weights.bin is not here, or not whole; run the program in the folder of weights.bin\n"


def make_preprocessed(folder: Path) -> str:
    command = [COMPILERS[0], "-E", "-std=c99", "model.c"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_the_artifact_runs_here_as_it_is(tmp_path: Path) -> None:
    module, shape = NETWORKS["line"]
    x = torch.randn(shape)
    graph = capture(module.eval(), x)
    exact = interpret(graph, x, dtype=torch.float64)
    for options in OPTIONS:
        with targets.build(graph, "c", tmp_path / "net", force=True, **options) as artifact:
            assert (artifact(x) - exact).abs().max() < 1e-6
            assert "compiled for this machine" in measure(artifact, seconds=0.01, fresh=False).notes[0]


def test_what_was_compiled_to_run_it_here_goes_with_the_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets.build(capture(nn.ReLU(), torch.zeros(3)), "c", tmp_path / "net").close()
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(there))
    artifact = targets.load(tmp_path / "net")
    assert list(there.iterdir())
    del artifact
    assert not list(there.iterdir())
    at_the_end = f"from abridged import targets; artifact = targets.load({str(tmp_path / 'net')!r})"
    subprocess.run([sys.executable, "-c", at_the_end], env={**os.environ, "TMPDIR": str(there)}, check=True)
    assert not list(there.iterdir())


def test_numbers_of_every_size_and_type_are_plain_iso_c(tmp_path: Path) -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4, eps=1e-60)  # less than any float

        def forward(self, x: Tensor, keep: Tensor) -> Tensor:
            return torch.where(keep, self.norm(x), x.clamp(-1e30, 0.1))

    x, keep = (torch.arange(12) % 17 / 8 - 1).view(3, 4), (torch.arange(12) % 2 > 0).view(3, 4)  # what main.c gives it
    module = Chosen().eval()
    ab.deploy(module, (x, keep), target="c", out=tmp_path / "net", vector=0).close()
    make(tmp_path / "net", "main", f"CC={COMPILERS[0]}", "CFLAGS=-std=c99 -pedantic-errors -Wall -Wextra -Werror")
    found = prints(["./main"], tmp_path / "net")
    torch.testing.assert_close(torch.from_numpy(found).float().view(3, 4), module(x, keep).detach())


def test_without_vectors_it_is_plain_iso_c(tmp_path: Path) -> None:
    emit("net", tmp_path / "net", vector=0)
    strict = ["-std=c99", "-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-c", "model.c", "-o", "model.o"]
    for compiler in COMPILERS:
        subprocess.run([compiler, *strict], cwd=tmp_path / "net", check=True)
    assert "vector_size" not in make_preprocessed(tmp_path / "net")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("options", [{}, {"vector": 0, "array": 1}], ids=["vectors", "plain"])
def test_sanitizers_find_nothing(name: str, options: dict[str, int], tmp_path: Path) -> None:
    wanted = emit(name, tmp_path / "net", **options)
    compiler = "clang" if options and "clang" in COMPILERS else COMPILERS[0]
    wide = "" if options else " -march=native"
    make(tmp_path / "net", "main", f"CC={compiler}", f"CFLAGS={SANITIZE}{wide}")
    agree(prints(["./main"], tmp_path / "net"), wanted)


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_sanitizers_find_nothing_in_any_op(every: int, tmp_path: Path) -> None:
    """The cases of every op's law side by side: the eighth of them, or all."""
    graph, _ = graph_of({name: EVERY[name] for name in COMPUTED[::every]})
    for file, content in sources(graph, TARGET.options).items():
        (tmp_path / file).write_bytes(content)
    make(tmp_path, "main", f"CC={COMPILERS[0]}", f"CFLAGS={SANITIZE.replace('-g ', '')}")
    done = subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


GUARDED = """
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include "model.h"

/* `size` bytes of 0xff (NaN) that no page lies after, or none before. */
static void *guarded(size_t size, int at_end) {
  size_t page = 4096, room = (size + page - 1) / page * page;
  char *all = mmap(0, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(all + page, room, PROT_READ | PROT_WRITE);
  memset(all + page, 0xff, room);
  return all + page + (at_end ? room - size : 0);
}
static void sealed(const void *data, size_t size) {
  mprotect((void *)((size_t)data / 4096 * 4096), (size + 4095) / 4096 * 4096, PROT_READ);
}

int main(void) {
  static const long in_sizes[] = {IN_SIZES}, out_sizes[] = {OUT_SIZES};
  for (int at_end = 0; at_end < 2; at_end++) {
    float *inputs[MODEL_INPUTS], *outputs[MODEL_OUTPUTS];
    void *weights = guarded(MODEL_WEIGHTS_BYTES, at_end), *arena = guarded(MODEL_ARENA_BYTES, at_end);
    FILE *file = fopen("weights.bin", "rb");
    if (!file || fread(weights, 1, MODEL_WEIGHTS_BYTES, file) != MODEL_WEIGHTS_BYTES) return 1;
    fclose(file);
    sealed(weights, MODEL_WEIGHTS_BYTES);
    for (int k = 0; k < MODEL_INPUTS; k++) {
      inputs[k] = guarded(4 * in_sizes[k], at_end);
      for (long i = 0; i < in_sizes[k]; i++) inputs[k][i] = (float)(i % 17) / 8 - 1;
      sealed(inputs[k], 4 * in_sizes[k]);
    }
    for (int k = 0; k < MODEL_OUTPUTS; k++) outputs[k] = guarded(4 * out_sizes[k], at_end);
    model_prepare(arena);
    for (int again = 0; again < 2; again++) model_run((const float *const *)inputs, outputs, weights, arena, 0, 0);
    for (int k = 0; k < MODEL_OUTPUTS; k++)
      for (long i = 0; i < out_sizes[k]; i++) printf("%.9g\\n", (double)outputs[k][i]);
  }
  return 0;
}
"""


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("flags", ["-march=native", "-DLANES=4", "-DLANES=1"])
def test_nothing_outside_a_buffer_is_touched_and_nothing_unset_is_used(name: str, flags: str, tmp_path: Path) -> None:
    exact, bound = emit(name, tmp_path / "net")
    declared = re.findall(r"static float (input|output)\d+\[(\d+)\]", (tmp_path / "net" / "main.c").read_text())
    sizes = {side: ", ".join(size for kind, size in declared if kind == side) for side in ("input", "output")}
    text = GUARDED.replace("IN_SIZES", sizes["input"]).replace("OUT_SIZES", sizes["output"])
    (tmp_path / "net" / "main.c").write_text(text)
    make(tmp_path / "net", "main", f"CC={COMPILERS[0]}", f"CFLAGS=-O2 {flags}")
    agree(prints(["./main"], tmp_path / "net"), (np.concatenate([exact, exact]), bound))


def test_bench_prints_one_line_and_no_times_under_an_emulator(tmp_path: Path) -> None:
    emit("vector", tmp_path / "net")
    line = json.loads(make(tmp_path / "net", "bench", "CFLAGS=-O2"))
    assert line["runs"] >= 10
    assert 0 < line["median_ms"] <= line["p95_ms"]
    assert line["flags"] == "-O2"
    assert not line["emulated"]
    assert sha256(tmp_path / "net" / "weights.bin").startswith(line["weights"])
    told = subprocess.run(["./timing"], cwd=tmp_path / "net", env={"EMULATED": "1"}, capture_output=True, check=True)
    line = json.loads(told.stdout)
    assert line["emulated"]
    assert not {"median_ms", "p95_ms"} & line.keys()


@pytest.mark.parametrize(
    ("options", "cc", "flags"),
    [
        ({}, "cc", "-O3 -march=native"),
        ({"cpu": "aarch64"}, "aarch64-linux-gnu-gcc", "-O3 -march=armv8-a"),
        ({"cpu": "cortex-m4", "vector": 0}, "arm-none-eabi-gcc", "-mcpu=cortex-m4 -mthumb"),
        ({"cc": "zig cc", "cpu": "riscv64-v"}, "zig cc", "-target riscv64-linux-musl"),
    ],
    ids=str,
)
def test_the_makefile_is_for_the_cpu(options: dict[str, object], cc: str, flags: str, tmp_path: Path) -> None:
    emit("vector", tmp_path / "net", **options)
    makefile = (tmp_path / "net" / "Makefile").read_text()
    assert f"\nCC = {cc}\n" in makefile
    assert flags in makefile


def test_the_makefile_keeps_its_compiler_whatever_the_shell_exports(tmp_path: Path) -> None:
    emit("vector", tmp_path / "net", cpu="aarch64")
    folder, shell = tmp_path / "net", {**os.environ, "CC": "gcc", "CFLAGS": "-O0"}

    def said(*more: str) -> str:
        return subprocess.run(["make", "-n", *more], cwd=folder, env=shell, capture_output=True, text=True).stdout

    assert said().startswith("aarch64-linux-gnu-gcc ")
    assert "-O3 -march=armv8-a" in said()
    assert said("CC=clang", "CFLAGS=-O1").startswith("clang ")
    assert " -O1 " in said("CC=clang", "CFLAGS=-O1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpu": "z80"}, r"cpu 'z80': .*z80.*; name native, generic, .*riscv64.*, or a CPU that the compiler knows"),
        (
            {"cpu": "z80", "cc": "sdcc"},
            r"cpu 'z80' is not one of ours, and 'sdcc', which might know it, is not here; name",
        ),
    ],
)
def test_a_cpu_that_nobody_knows_is_refused_before_make(options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        targets.build(capture(nn.ReLU(), torch.zeros(3)), "c", tmp_path / "net", **options)
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(("target", "name"), [("c", "vector"), ("c", "array"), ("native", "tune")])
def test_an_option_that_is_no_switch_is_refused(target: str, name: str, tmp_path: Path) -> None:
    graph = capture(nn.ReLU(), torch.zeros(3))
    with pytest.raises(InputError, match=rf"target '{target}': {name} is 1 \(yes\) or 0 \(no\), not 'maybe'"):
        targets.build(graph, target, tmp_path / "net", **{name: "maybe"})
