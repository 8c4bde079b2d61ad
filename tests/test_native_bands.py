"""Maps that lie in bands, one for each thread: whatever reads or writes them, and wherever bands meet."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from native_checks import agrees
from torch import Tensor, nn
from torch.nn import functional as F

import abridged as ab
from abridged.compiler import bands
from abridged.compiler.build import find_compiler
from abridged.compiler.emit import emit
from abridged.compiler.pipeline import plan
from abridged.compiler.plan import Machine, Plan
from abridged.graph.capture import capture


@pytest.fixture(autouse=True)
def _always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "worth_it", lambda *_: True)


def planned(module: nn.Module, x: Tensor, threads: int = 2) -> Plan:
    return plan(capture(module.eval(), x), machine=Machine(32, 16, True, threads))


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, zeros: float = 0.0, **more: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, **{"padding": kernel // 2, **more})
    if zeros:
        with torch.no_grad():
            layer.weight *= torch.rand(layer.weight.shape) >= zeros
    return layer


class Block(nn.Module):
    """Expanded, each channel alone, with or without a stride, and back; over its input where it can."""

    def __init__(self, channels: int, stride: int, zeros: float, kernel: int = 3) -> None:
        super().__init__()
        self.expand = conv(channels, 3 * channels, 1, zeros=zeros)
        self.depthwise = conv(3 * channels, 3 * channels, kernel, stride, groups=3 * channels)
        self.project = conv(3 * channels, channels, 1, zeros=zeros)
        self.over = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return x + y if self.over else y


class Branches(nn.Module):
    """Parts side by side, one of them by way of a pool, scaled by what their mean says."""

    def __init__(self, zeros: float) -> None:
        super().__init__()
        self.one, self.three = conv(8, 5, 1, zeros=zeros), conv(8, 6, 3, zeros=zeros)
        self.pooled, self.gate = conv(8, 5, 1), conv(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(F.avg_pool2d(x, 3, 1, 1))
        y = torch.cat([F.relu(self.one(x)), self.three(x).sigmoid(), pooled], 1)
        return y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()


class Shuffled(nn.Module):
    """Halves of the channels, one of them unchanged, then interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.right = nn.Sequential(conv(8, 8, 1), nn.ReLU(), conv(8, 8, 3, groups=8), conv(8, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        y = torch.cat([left, self.right(right)], 1)
        return y.unflatten(1, (2, 8)).transpose(1, 2).flatten(1, 2)


class Parts(nn.Module):
    """Windows on a part of a cat, or on a slice of it, before what lies beside it is written, and on the whole after."""

    def __init__(self, part: slice, whole_too: bool) -> None:
        super().__init__()
        self.part, self.whole_too = part, whole_too
        self.first, self.sliced, self.again = conv(3, 8), conv(4, 4), conv(4, 16)
        self.whole, self.joined = conv(8, 16), conv(12, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        before = self.sliced(x[:, self.part])
        y = self.joined(torch.cat([before, x], 1)) + self.again(x[:, self.part])
        return y + self.whole(x) if self.whole_too else y


class Lines(nn.Module):
    """Sums with constants that are as large, or broadcast along an axis or two."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.before, self.after = conv(3, 8), conv(8, 8, 1)
        self.beside = nn.ParameterList(torch.randn(shape) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        for number in self.beside:
            y = (y + number).tanh()
        return self.after(y)


NETWORKS = {
    "a chain": lambda z: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8, 5, zeros=z), nn.Tanh(), conv(8, 8, 1, zeros=z), conv(8, 4, zeros=z)),
    "dilation": lambda z: nn.Sequential(conv(3, 8), conv(8, 20, zeros=z, dilation=2, padding=2), conv(20, 4)),
    "unequal kernels": lambda z: nn.Sequential(conv(3, 8), nn.Conv2d(8, 9, (1, 3), padding=(0, 1)), nn.Conv2d(9, 8, (3, 1), padding=(1, 0))),
    "strides": lambda z: nn.Sequential(conv(3, 16), conv(16, 64, 3, 2, z), conv(64, 64, 3, 2, z), conv(64, 8, 1, 2, z), conv(8, 8)),
    "wide strides": lambda z: nn.Sequential(conv(3, 16), conv(16, 64, 5, 3, z), conv(64, 32, 2, 2, z, padding=0)),
    "blocks": lambda z: nn.Sequential(conv(3, 8), Block(8, 1, z), Block(8, 2, z, 5), Block(8, 1, z)),
    "large kernels": lambda z: nn.Sequential(conv(3, 8), Block(8, 1, z, 5), conv(8, 8, 7, 2, z)),
    "multiplied channels": lambda z: nn.Sequential(conv(3, 8), conv(8, 16, groups=8), conv(16, 32, 3, 2, groups=16), conv(32, 8, 1)),
    "groups": lambda z: nn.Sequential(conv(3, 8), conv(8, 12, 3, 1, z, groups=2), conv(12, 64, 3, 2, z, groups=2)),
    "pools": lambda z: nn.Sequential(conv(3, 8), nn.MaxPool2d(3, 2, 1), conv(8, 8), nn.AvgPool2d(2, ceil_mode=True), conv(8, 8, 1), nn.AdaptiveAvgPool2d(1)),
    "other pools": lambda z: nn.Sequential(conv(3, 8), nn.AvgPool2d(3, 1, 1), conv(8, 8), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    "branches": lambda z: nn.Sequential(conv(3, 8), Branches(z), conv(16, 8), Branches(z)),
    "parts": lambda z: nn.Sequential(Parts(slice(0, 4), False), conv(16, 3), Parts(slice(0, 8, 2), True), conv(16, 3), Parts(slice(2, 6), True)),
    "constants": lambda z: nn.Sequential(Lines((8, 1, 1), (1, 8, 1, 1), ()), conv(8, 3), Lines((1, 8, 1, 1))),
    "halves": lambda z: nn.Sequential(conv(3, 16), Shuffled(), Shuffled(), conv(16, 4)),
    "what knows no bands": lambda z: nn.Sequential(conv(3, 8), nn.GroupNorm(2, 8), conv(8, 8), nn.Upsample(scale_factor=2), conv(8, 8), nn.ConvTranspose2d(8, 4, 2, 2), conv(4, 4), nn.PixelShuffle(2)),
}  # fmt: skip


def fits(plan: Plan) -> None:
    """What is cleared before a step is within its buffer, and the buffer within the arena."""
    for step in plan.steps:
        assert step.write.buffer not in plan.offsets or step.write.buffer in plan.sizes
        for layout, count in step.clears:
            assert layout.origin >= 0
            assert layout.origin + count <= plan.sizes[layout.buffer]
    assert all(plan.offsets[buffer] + plan.sizes[buffer] <= plan.arena for buffer in plan.offsets)


@pytest.mark.parametrize("zeros", [0.0, 0.9], ids=["dense", "90 % zeros"])
@pytest.mark.parametrize(("size", "threads"), [((14, 14), 2), ((15, 13), 2), ((13, 20), 3), ((22, 9), 4)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree(name: str, size: tuple[int, int], threads: int, zeros: float, fast_builds: None) -> None:
    torch.manual_seed(0)
    net = NETWORKS[name](zeros).eval()
    x = torch.randn(1, 3, *size)
    found = planned(net, x, threads)
    fits(found)
    if name not in ("halves", "what knows no bands"):  # whose maps are seen along other axes, or by other ops
        assert any(step.bands > 1 for step in found.steps)
    agrees(net, x, threads=threads)


def test_whole_networks_are_in_bands() -> None:
    """From the first convolution on; lines are brought where a window sees them, once."""
    net = nn.Sequential(conv(3, 8), nn.ReLU(), Block(8, 1, 0), Block(8, 2, 0), nn.AdaptiveAvgPool2d(1))
    steps = planned(net, torch.randn(1, 3, 32, 32)).steps
    inner = [step for step in steps if step.node.op == "conv" and step.choice.call.family not in ("", "halo")]
    assert len(inner) == 7
    assert all(step.bands == 2 for step in inner)
    met = [step for step in steps if step.choice.call.family == "halo"]
    assert len(met) == 3  # of the input, and before each depthwise layer


def test_one_thread_and_batches_have_none() -> None:
    net = nn.Sequential(conv(3, 8), conv(8, 8))
    assert not any(step.bands > 1 for step in planned(net, torch.randn(1, 3, 16, 16), 1).steps)
    assert not any(step.bands > 1 for step in planned(net, torch.randn(2, 3, 16, 16), 2).steps)


def test_nothing_is_copied_where_bands_begin_and_end() -> None:
    """A strided layer whose outputs lie whole reads its input in bands."""
    for zeros in (0.0, 0.9):
        net = nn.Sequential(conv(3, 32), conv(32, 64, 3, 2, zeros), nn.GroupNorm(2, 64))
        steps = planned(net, torch.randn(1, 3, 28, 28)).steps
        assert [step.bands for step in steps if step.choice.call.family not in ("", "halo", "split")] == [2, 1, 1]


def test_pruned_networks_agree_with_bands_or_without(fast_builds: None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(conv(3, 16), nn.ReLU(), Block(16, 1, 0), conv(16, 32, 3, 2), nn.AdaptiveAvgPool2d(1))
    ab.prune(net, 0.8, say=None)
    agrees(net, torch.randn(1, 3, 29, 31))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(("size", "threads"), [((64, 64), 4), ((45, 45), 2), ((64, 32), 8), ((6, 6), 3)], ids=str)
def test_inputs_of_few_channels_fit(channels: int, size: tuple[int, int], threads: int) -> None:
    fits(planned(conv(channels, 16), torch.randn(1, channels, *size), threads))


@pytest.mark.parametrize(("height", "threads"), [(2, 2), (4, 4), (5, 4), (3, 8)])
def test_a_band_may_be_one_line(height: int, threads: int, fast_builds: None) -> None:
    for width in (1, 3):
        agrees(Lines((1, 8, height, width), (1, 1, height, 1)), torch.randn(1, 3, height, width), threads=threads)


def test_a_part_of_a_cat_may_be_read_before_what_lies_in_front_of_it_is_written(fast_builds: None) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(1, 6, 1), conv(6, 12, groups=6), conv(18, 18, groups=18)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.c(torch.cat([self.b(x), x], 1))

    for threads in (1, 2):
        agrees(Net(), torch.randn(1, 1, 8, 9), threads=threads)


MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "model.h"

int main(void) {
  FILE *file = fopen("weights.bin", "rb");
  char *weights = malloc(MODEL_WEIGHTS_BYTES);
  if (!file || !fread(weights, MODEL_WEIGHTS_BYTES, 1, file)) return 1;
  float *arena = malloc(MODEL_ARENA_BYTES), *x = malloc(4 * INPUT), *y = malloc(4 * OUTPUT);
  memset(arena, 0xff, MODEL_ARENA_BYTES);
  for (int i = 0; i < INPUT; i++) x[i] = (float)(i % 17) - 8;
  const float *inputs[] = {x};
  float *outputs[] = {y};
  model_prepare(arena);
  model_run(inputs, outputs, weights, arena, 0, 0);
  for (int i = 0; i < OUTPUT; i++) if (!(y[i] - y[i] == 0)) return 2;
  free(arena), free(x), free(y), free(weights), fclose(file);
}
"""


@pytest.mark.parametrize("name", ["a chain", "strides", "wide strides", "blocks", "pools", "branches", "parts"])
def test_sanitizers_find_nothing(name: str, tmp_path: Path) -> None:
    """In memory of the exact sizes, at bands of which the last has fewer lines."""
    torch.manual_seed(0)
    net, x = NETWORKS[name](0.9).eval(), torch.randn(1, 3, 17, 15)
    for file, content in emit(planned(net, x, 3)).files.items():
        (tmp_path / file).write_bytes(content)
    (tmp_path / "main.c").write_text(MAIN)
    sizes = [f"-DINPUT={x.numel()}", f"-DOUTPUT={net(x).numel()}"]
    checks = ["-O1", "-march=native", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(
        [*find_compiler(), *checks, *sizes, "main.c", "model.c", "-o", "main", "-lm"], cwd=tmp_path, check=True
    )
    done = subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
