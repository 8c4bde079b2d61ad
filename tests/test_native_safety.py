"""Target `native`, loaded: another machine, altered files, forks, threads that end and park; and what it promises of size."""

import gc
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from models import network
from native_checks import agrees
from torch import nn

import abridged as ab
from abridged import targets
from abridged.compiler import library, memory, threads
from abridged.compiler.build import ZIG, CompilerError, find_compiler, machine_flags, needed_cpu
from abridged.compiler.pipeline import plan
from abridged.compiler.plan import ANY_MACHINE, Machine, Plan
from abridged.errors import InputError
from abridged.files import sha256
from abridged.graph.capture import capture
from abridged.graph.graph import Graph

X = torch.randn(1, 3, 33, 29, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.AdaptiveAvgPool2d(1)]
    return capture(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10)).eval(), X)


@pytest.fixture(scope="module")
def built(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("native") / "net"
    targets.build(graph, "native", out, tune=False).close()
    return out


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "net"))


def run_py(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As a service would: a Python that sees neither torch nor abridged, only numpy."""
    np.save(folder.parent / "x.npy", X.numpy())
    bare = folder.parent / "bare"
    bare.mkdir(exist_ok=True)
    for name in ("numpy", "numpy.libs"):
        place = Path(np.__file__).parents[1] / name
        if place.exists() and not (bare / name).exists():
            (bare / name).symlink_to(place)
    command = [sys.executable, "-S", str(folder / "run.py"), *(arguments or ("x.npy",))]
    return subprocess.run(
        command, cwd=folder.parent, env={"PYTHONPATH": str(bare)}, capture_output=True, text=True, check=False
    )


# ---- another machine ----


def test_the_macros_say_what_a_cpu_must_have() -> None:
    compiler = find_compiler()
    if library.platform.machine() != "x86_64":
        pytest.skip("levels of x86-64")
    assert needed_cpu(compiler, machine_flags(compiler, "generic")) == ["x86_64"]
    assert {"avx2", "fma", "bmi2"} <= set(needed_cpu(compiler, machine_flags(compiler, "x86-64-v3")))
    assert "avx512f" in needed_cpu(compiler, machine_flags(compiler, "x86-64-v4"))
    assert set(needed_cpu(compiler, machine_flags(compiler))) <= {"x86_64", *library.cpu_flags()}


def test_a_cpu_that_lacks_an_instruction_set_is_told_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if len((folder / "cpu.txt").read_text().split()) < 2:
        pytest.skip("this CPU has no more than its kind must have")
    monkeypatch.setattr(library, "cpu_flags", lambda: frozenset({"fpu"}))
    with pytest.raises(InputError, match=r"was built for a CPU that has \w+, which this one lacks"):
        targets.load(folder)


@pytest.mark.parametrize(
    ("cpu", "compiler"), [("aarch64", None), ("x86-64-v4", None), ("aarch64", ZIG), ("riscv64-v", ZIG)]
)
def test_what_is_built_for_elsewhere_is_checked_here_and_loads_only_there(
    cpu: str, compiler: tuple[str, ...] | None, graph: Graph, tmp_path: Path
) -> None:
    if compiler and not find_spec("ziglang"):
        pytest.skip("no device: needs the package ziglang")
    cc = shlex.join(compiler) if compiler else None
    try:
        find_compiler(cc, cpu)
    except InputError as absent:
        pytest.skip(f"no device: {absent}")
    if cpu == "x86-64-v4" and (library.platform.machine() != "x86_64" or "avx512f" in library.cpu_flags()):
        pytest.skip("this machine is one")
    with targets.build(graph, "native", tmp_path / "net", cpu=cpu, cc=cc) as artifact:
        assert artifact(X).shape == (1, 10)
    with pytest.raises(InputError, match="was built for"):
        targets.load(tmp_path / "net")
    said = run_py(tmp_path / "net")
    assert said.returncode == 1
    assert said.stderr.startswith("run.py: was built for")


def test_a_cpu_that_nobody_knows(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cpu 'z80': .*z80.*; name native, generic, .*riscv64.*, or a CPU that"):
        targets.build(graph, "native", tmp_path / "net", cpu="z80")
    for target in ("native", "c"):
        for cpu in ("", " "):
            with pytest.raises(InputError, match=rf"cpu '{cpu}': is no name; name native, generic, .*riscv64"):
                targets.build(graph, target, tmp_path / "net", cpu=cpu)


def test_a_bare_device_gets_sources(graph: Graph) -> None:
    with pytest.raises(InputError, match="'cortex-m4' has no system that loads a library; deploy to target 'c'"):
        targets.build(graph, "native", cpu="cortex-m4")


# ---- files ----


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.so", "weights.bin", "cpu.txt", "abridged.json"])
@pytest.mark.parametrize("attack", [flip, lambda file: file.write_bytes(file.read_bytes()[:-1])], ids=["flip", "cut"])
def test_altered_files_are_refused(folder: Path, name: str, attack) -> None:
    attack(folder / name)
    with pytest.raises(InputError, match="altered|damaged|has .* bytes, but was built" if "json" in name else name):
        targets.load(folder)
    assert "is not the file that was built" in run_py(folder).stderr


def test_another_network_built_in_the_place_of_a_loaded_one_is_another(tmp_path: Path) -> None:
    def build(factor: float) -> None:
        net = nn.Linear(7, 5, bias=False)
        net.weight.data.fill_(factor)
        graph = capture(nn.Sequential(net, nn.ReLU() if factor > 1 else nn.Sigmoid()), torch.zeros(1, 7))
        targets.build(graph, "native", tmp_path / "net", tune=False, force=True).close()

    x, answers = torch.ones(1, 7), []
    with ExitStack() as stack:
        for factor in (1.0, 2.0, 1.0):  # the first stays open while its folder is replaced
            build(factor)
            answers.append(stack.enter_context(targets.load(tmp_path / "net"))(x)[0, 0].item())
    assert answers == [answers[0], pytest.approx(14, abs=0.5), answers[0]]
    assert answers[0] < 1.01


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_loads_leave_nothing_behind_closed_or_not(built: Path) -> None:
    def cost() -> tuple[int, int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text()
        return tasks(), len(os.listdir("/proc/self/fd")), maps.count(str(built))

    def load(count: int) -> None:
        for i in range(count):
            artifact = targets.load(built, threads=3)
            artifact(X)
            if i % 2:
                artifact.close()
                artifact.close()

    before = cost()
    load(20)
    settled = resident()
    load(200)
    assert cost() == before
    assert resident() - settled < 20e6  # one load has 0.4 MB


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_what_is_loaded_outlives_its_folder(folder: Path) -> None:
    with targets.load(folder, threads=1) as artifact:
        shutil.rmtree(folder)
        assert artifact(X).shape == (1, 10)
        assert artifact.layer_times().keys() == {"0", "2", "3", "5"}


def test_run_py_needs_numpy_alone(folder: Path) -> None:
    done = run_py(folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "output0.npy: float32[1, 10]\n", "")
    with targets.load(folder) as artifact:
        np.testing.assert_array_equal(np.load(folder.parent / "output0.npy"), artifact(X).numpy())
    np.save(folder.parent / "x.npy", X.numpy().astype(np.float64))
    wrong = subprocess.run([sys.executable, str(folder / "run.py"), "x.npy"], cwd=folder.parent, capture_output=True)
    assert wrong.stderr.startswith(b"run.py: the network takes")
    bare = subprocess.run([sys.executable, str(folder / "run.py")], capture_output=True, text=True, check=False)
    asked = run_py(folder, "--help")
    assert (bare.returncode, bare.stdout, asked.returncode, asked.stderr) == (2, "", 0, "")
    assert (
        bare.stderr
        == asked.stdout
        == f"usage: python {folder / 'run.py'} INPUT.npy ..., which writes output0.npy ...\n"
    )
    (folder / "abridged.json").unlink()
    said = run_py(folder).stderr
    assert said == f"run.py: {folder}: is no artifact of Abridged: abridged.json: No such file or directory\n"


def test_a_service_opens_a_network_by_its_path(folder: Path, graph: Graph) -> None:
    network = library.Network(str(folder), threads=1)
    assert network(X.numpy())[0].shape == (1, 10)
    network.close()
    for count in (-1, 0, 1.5):
        with pytest.raises(ValueError, match=f"threads must be a whole number of at least 1, not {count}"):
            library.Network(folder, threads=count)
    targets.build(graph, "onnxruntime", folder.parent / "other").close()
    with pytest.raises(
        library.LibraryError, match="other: is an artifact of target onnxruntime; this runs target native"
    ):
        library.Network(folder.parent / "other")
    with pytest.raises(library.LibraryError, match=r"is no artifact of Abridged: abridged\.json: Not a directory"):
        library.Network(folder / "run.py")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (X.double(), "dtype"),
        (X[..., 1:], "shape"),
        (X.to("meta"), "meta"),
        (X.to_sparse(), "expected a dense tensor"),
        ([1.0], "expected"),
        (X.numpy().astype(">f4"), "dtype"),
    ],
)
def test_wrong_inputs_never_reach_c(built: Path, wrong: object, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.Library, "run", lambda *_: pytest.fail("C ran"))
    with targets.load(built) as artifact, pytest.raises(InputError, match=message):
        artifact(wrong)


def test_a_compilers_failure_shows_its_first_error_and_the_sources(graph: Graph, tmp_path: Path) -> None:
    broken = tmp_path / "broken-cc"
    real = find_compiler()[0]
    broken.write_text(
        f'#!/bin/sh\ncase "$*" in *" -c "*) echo "model.c:7: error: boom" >&2; exit 1;; esac\n{real} "$@"\n'
    )
    broken.chmod(0o755)
    with pytest.raises(CompilerError, match=r"error: boom; the sources are in (\S+)$") as caught:
        targets.build(graph, "native", tmp_path / "net", cc=str(broken), tune=False)
    kept = Path(str(caught.value).rpartition(" ")[2])
    assert {"model.c", "model.h", "weights.bin", "threads.c"} <= set(os.listdir(kept))
    shutil.rmtree(kept)
    assert not (tmp_path / "net").exists()


def test_a_linkers_failure_shows_its_own_words(graph: Graph, tmp_path: Path) -> None:
    broken = tmp_path / "broken-cc"
    broken.write_text(f'#!/bin/sh\nexec {find_compiler()[0]} "$@" -lnowhere\n')
    broken.chmod(0o755)
    with pytest.raises(CompilerError, match=r"nowhere.*; the sources are in (\S+)$") as caught:
        targets.build(graph, "native", tmp_path / "net", cc=str(broken), tune=False)
    shutil.rmtree(str(caught.value).rpartition(" ")[2])


# ---- threads ----


def test_a_forked_process_is_told_to_load_again(built: Path) -> None:
    program = f"""
import os, torch
from abridged import targets
from abridged.errors import InputError
artifact = targets.load({str(built)!r}, threads=2)
x = torch.zeros(1, 3, 33, 29)
artifact(x)
child = os.fork()
if not child:
    try:
        artifact(x)
    except InputError as error:
        artifact.close()
        os._exit(7 if "forked; load it again" in str(error) else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
artifact(x)
artifact.close()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)


def tasks() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_close_ends_the_threads_and_idle_ones_park(built: Path) -> None:
    before = tasks()
    with targets.load(built, threads=4) as artifact:
        assert tasks() == before + 3
        artifact(X)
        time.sleep(0.05)
        start = time.process_time()
        time.sleep(0.4)
        assert time.process_time() - start < 0.04, "idle threads burn the CPU"
    assert tasks() == before


def test_the_gil_is_free_while_it_runs(built: Path) -> None:
    with targets.load(built, threads=1) as artifact:
        engine = artifact._engine
        inside, seen = threading.Event(), threading.Event()

        def wait(pool: int, task: int, args: int, count: int) -> None:
            inside.set()
            seen.wait(20)

        outputs = [np.empty((1, 10), np.float32)]
        caller = threading.Thread(target=engine._library.run, args=([X.numpy()], outputs, library._Task(wait)))
        caller.start()
        assert inside.wait(20)
        seen.set()  # this thread goes on while the other is inside the library
        caller.join(20)
        assert not caller.is_alive()


STRESS = """
#include <stdio.h>
#include <pthread.h>
struct pool;
struct pool *pool_open(int);
void pool_close(struct pool *);
void pool_run(struct pool *, void (*)(const void *, long, long), const void *, long);
static void mark(const void *args, long begin, long end) { for (long i = begin; i < end; i++) ((long *)args)[i]++; }
static void *many(void *arg) {
  long counts[97] = {0}, wrong = 0;
  struct pool *pool = pool_open(4);
  for (int i = 0; i < 2000; i++) pool_run(pool, mark, counts, 1 + i % 97);
  for (int i = 0; i < 97; i++) wrong += counts[i] != 2000 - 2000 / 97 * i - (2000 % 97 < i ? 2000 % 97 : i);
  pool_close(pool);
  return (void *)wrong;
}
int main(void) {
  pthread_t other;
  void *wrong;
  pthread_create(&other, 0, many, 0);
  long mine = (long)many(0);
  pthread_join(other, &wrong);
  return mine + (long)wrong != 0;
}
"""


def test_the_pool_has_no_race(tmp_path: Path) -> None:
    (tmp_path / "stress.c").write_text(STRESS)
    (tmp_path / "threads.c").write_bytes(threads.source())
    compiler = next((name for name in ("gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        pytest.skip("needs gcc or clang")
    command = [compiler, "-O1", "-g", "-fsanitize=thread", "stress.c", "threads.c", "-o", "stress", "-lpthread"]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run(["./stress"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


# ---- what it promises of size and time ----


class Sums(nn.Module):
    """A chain of residual blocks; `again`: the first one's input is wanted once more at the end."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again = again
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, size, padding=size // 2) for size in (3, 1, 3, 1, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = y = self.layers[0](x).relu()
        for layer in (self.layers[1], self.layers[3]):
            y = (y + self.layers[2](layer(y).relu())).relu()
        y = y + self.layers[4](y)  # the convolution reads its neighbours
        return y + start if self.again else y


@pytest.mark.parametrize(("again", "wanted"), [(False, [True, True, False]), (True, [False, True, False])])
def test_sums_are_written_over_residuals_that_nobody_reads_again(again: bool, wanted: list[bool]) -> None:
    module, x = Sums(again).eval(), torch.randn(2, 8, 9, 7)
    agrees(module, x)
    found = plan(capture(module, x))
    over = [
        found.offsets.get(step.write.buffer) == found.offsets[step.residual.buffer]
        for step in found.steps
        if step.residual is not None
    ]
    assert over == wanted


def live(graph: Graph, chosen: Plan) -> int:
    """The largest sum of bytes of a plan's values that are alive at the same step, without any padding."""
    spans = memory._lives(chosen, reuse=True)
    shapes = {name: 4 * int(np.prod(value.shape)) for name, value in graph.values.items()}
    return max(
        sum(shapes.get(each.buffer, 0) for each in spans if each.first <= i <= each.last)
        for i in range(len(chosen.steps))
    )


def sections(library_file: Path) -> int:
    """Bytes of code and constants of a shared library."""
    said = subprocess.run(["size", str(library_file)], capture_output=True, text=True, check=True).stdout
    return int(said.splitlines()[1].split()[0])


@pytest.mark.parametrize(
    ("name", "code"),
    [("resnet18", 300_000), pytest.param("resnet50", 300_000, marks=pytest.mark.slow)],
)
def test_a_pruned_resnet_keeps_the_promises(torchvision_models, name: str, code: int, tmp_path: Path) -> None:
    model = network(torchvision_models, name)
    ab.prune(model, 0.9, allocation="uniform")  # every layer is a sparse one
    x = torch.randn(1, 3, 224, 224)
    graph = capture(model, x)
    targets.build(graph, "native", tmp_path / "net", threads=2, tune=False).close()
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    sparse = sum(6 * int((w != 0).sum()) + 4 * len(w) for w in weights)
    assert (tmp_path / "net" / "weights.bin").stat().st_size <= 1.05 * sparse
    assert sections(tmp_path / "net" / "model.so") < code
    start = time.process_time()  # others may be at work on this machine
    for file in sorted((tmp_path / "net").iterdir()):
        sha256(file)
    hashing = time.process_time() - start
    took = []
    for _ in range(3):
        start = time.process_time()
        artifact = targets.load(tmp_path / "net", threads=2)
        took.append(time.process_time() - start - hashing)
        artifact.close()
    assert min(took) < 0.05


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50", "densenet121", "efficientnet_b0", "googlenet"))],
)  # fmt: skip
def test_the_arena_is_little_more_than_what_is_alive_at_once(torchvision_models, name: str) -> None:
    graph = capture(network(torchvision_models, name), torch.randn(1, 3, 224, 224))
    # Strided inputs moved into phases, and read as they lie.
    for machine in (ANY_MACHINE, Machine(32, 16, hosted=True), Machine(32, 16, hosted=True, threads=2)):
        chosen = plan(graph, machine=machine)
        assert 4 * chosen.arena <= 1.15 * live(graph, chosen)
