"""Real devices, emulated: what target `c` emits is cross-compiled, runs under qemu, and equals the oracle."""

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from abridged.compiler.build import ZIG, find_compiler
from abridged.compiler.cpus import flags_of
from abridged.errors import InputError
from abridged.graph.capture import capture
from abridged.graph.interpret import interpret
from abridged.targets.c import TARGET, sources


class Cnn(nn.Module):
    """A small residual CNN: strided, depthwise and pruned convolutions, a pool, a gate, a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.sparse = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 10)
        with torch.no_grad():
            self.sparse.weight *= torch.rand_like(self.sparse.weight) < 0.1

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.nn.functional.max_pool2d(self.sparse(torch.nn.functional.silu(self.depthwise(x))) + x, 2)
        return self.head(x.mean((2, 3))).softmax(1)


@dataclass(frozen=True)
class Device:
    """A CPU of the compiler's table, what emulates it, and what the linker needs."""

    cpu: str
    emulator: tuple[str, ...]
    link: str = "-static"
    zig: bool = False
    options: dict[str, int] = field(default_factory=dict)
    width: int = 24
    size: int = 33

    @property
    def compiler(self) -> tuple[str, ...]:
        if not self.zig:
            return find_compiler(None, self.cpu)
        if not importlib.util.find_spec("ziglang"):
            raise InputError("needs the package ziglang")
        return ZIG


BOARD = ("qemu-system-arm", "-machine", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none")
SEMIHOSTING = ("-semihosting-config", "enable=on,target=native", "-kernel")

DEVICES = {
    "aarch64": Device("aarch64", ("qemu-aarch64",)),
    "aarch64 without vectors": Device("aarch64", ("qemu-aarch64",), options={"vector": 0}),
    "riscv64": Device("riscv64", ("qemu-riscv64",)),
    "riscv64 with vectors": Device("riscv64-v", ("qemu-riscv64", "-cpu", "rv64,v=true,vlen=256"), zig=True),
    "cortex-m4": Device(
        "cortex-m4",
        (*BOARD, *SEMIHOSTING),
        "--specs=rdimon.specs -nostartfiles -T board.ld board.c",
        options={"vector": 0, "array": 1},
        width=8,
        size=12,
    ),
}

# The board's memory, and what runs before newlib's own start: the stack's top, the first instruction, the FPU.
BOARD_FILES = {
    "board.ld": """
ENTRY(reset)
MEMORY { code (rx) : ORIGIN = 0, LENGTH = 4M
         data (rwx) : ORIGIN = 0x20000000, LENGTH = 4M }
SECTIONS {
  .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) . = ALIGN(8); } > code
  .ARM.exidx : { *(.ARM.exidx*) } > code
  .data : { *(.data*) . = ALIGN(8); } > data AT > code
  .bss : { __bss_start__ = .; *(.bss*) *(COMMON) . = ALIGN(8); __bss_end__ = .; end = .; } > data
  data_from = LOADADDR(.data); data_to = ADDR(.data); data_size = SIZEOF(.data);
}
""",
    "board.c": """
#include <stdlib.h>
#include <string.h>
extern char data_from[], data_to[], data_size[], __bss_start__[], __bss_end__[];
extern int main(void);
extern void initialise_monitor_handles(void);
void reset(void) {
  *(volatile unsigned *)0xE000ED88 |= 0xfu << 20; /* coprocessors 10 and 11: the FPU */
  __asm__ volatile("dsb\\n isb");
  memcpy(data_to, data_from, (size_t)data_size);
  memset(__bss_start__, 0, (size_t)(__bss_end__ - __bss_start__));
  initialise_monitor_handles();
  exit(main());
}
void _init(void) {}
void _fini(void) {}
static void fault(void) { _Exit(3); }
__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))0x20400000, reset, fault, fault, fault, fault, fault};
""",
}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Device:
    found = DEVICES[request.param]
    try:
        command = found.compiler
    except InputError as absent:
        pytest.skip(f"no device: {absent}")
    for tool in (command[0], found.emulator[0], "make"):
        if not shutil.which(tool):
            pytest.skip(f"no device: {tool} is not installed")
    return found


def emitted(device: Device, out: Path) -> tuple[np.ndarray, float]:
    """The device's program as target `c` writes it; what it should print, and how far from that it may be."""
    shape = (1, 3, device.size, device.size)
    module = Cnn(device.width).eval()
    x = ((torch.arange(int(np.prod(shape))) % 17).float() / 8 - 1).reshape(shape)
    graph = capture(module, x)
    for name, content in sources(graph, {**TARGET.options, "cpu": device.cpu, **device.options}).items():
        (out / name).write_bytes(content)
    if device.cpu.startswith("cortex"):
        for name, text in BOARD_FILES.items():
            (out / name).write_text(text)
    exact, rounded = (interpret(graph, x, dtype=dtype).double().flatten() for dtype in (torch.float64, torch.float32))
    return exact.detach().numpy(), max(8 * float((exact - rounded).abs().max()), 4e-6 * float(exact.abs().max()))


def make(device: Device, folder: Path, goal: str) -> None:
    arguments = [goal, f"LDFLAGS={device.link}"]
    if device.zig:
        arguments += [
            f"CC={' '.join(device.compiler)}",
            "CFLAGS=" + " ".join(("-O3", *flags_of(device.compiler, device.cpu))),
        ]
    done = subprocess.run(["make", "-s", "-C", str(folder), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(device: Device, folder: Path, program: str) -> str:
    command = [*device.emulator, str(folder / program)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_emitted_runs_there_and_equals_the_oracle(device: Device, tmp_path: Path) -> None:
    exact, bound = emitted(device, tmp_path)
    make(device, tmp_path, "main")
    found = np.array([float(line) for line in run(device, tmp_path, "main").split()])
    assert found.shape == exact.shape
    assert np.abs(found - exact).max() <= bound


@pytest.mark.parametrize("device", ["riscv64 with vectors"], indirect=True)
def test_the_vector_extension_is_used(device: Device, tmp_path: Path) -> None:
    emitted(device, tmp_path)
    flags = ["-O3", "-std=c99", *flags_of(device.compiler, device.cpu), "-S", "model.c", "-o", "model.s"]
    subprocess.run([*device.compiler, *flags], cwd=tmp_path, check=True)
    assert (tmp_path / "model.s").read_text().count("vfmacc") + (tmp_path / "model.s").read_text().count("vfmadd") > 20


@pytest.mark.parametrize("device", ["aarch64", "riscv64"], indirect=True)
def test_an_emulated_bench_says_so_and_has_no_times(device: Device, tmp_path: Path) -> None:
    emitted(device, tmp_path)
    make(device, tmp_path, "timing")
    line = json.loads(run(device, tmp_path, "timing"))
    assert line["emulated"]
    assert "median_ms" not in line
    assert line["machine"].endswith(device.cpu.partition("-")[0])


def test_a_cross_compiler_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="gcc-riscv64-linux-gnu"):
        find_compiler(None, "riscv64")
    monkeypatch.undo()
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert find_compiler(None, "riscv64") == (sys.executable, "-m", "ziglang", "cc")
