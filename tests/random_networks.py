"""Networks drawn at random: every way in which values of a network share rows, views and kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

Draw = Callable[[st.SearchStrategy[Any]], Any]
Step = tuple[str, tuple[int, ...], Any, nn.Module | None]  # name, which values it reads, how, and its weights
MOST = 2_000  # elements of one value

ACTIVATIONS = {
    "relu": F.relu, "silu": F.silu, "hardswish": F.hardswish, "gelu": F.gelu, "relu6": F.relu6, "elu": F.elu,
    "sigmoid": torch.sigmoid, "leaky": lambda x: F.leaky_relu(x, 0.1), "tanh": torch.tanh, "mish": F.mish,
    "scaled": lambda x: x * 0.5 + 1, "clamp": lambda x: x.clamp(-0.7, None), "exp": lambda x: (-x.abs()).exp(),
}  # fmt: skip


def _sparse(weight: Tensor, zeros: str) -> None:
    """Zeros of every kind that a kernel is made for, and those that a pass removes."""
    flat = weight.flatten(1)
    if zeros == "scattered":
        weight *= torch.rand_like(weight) < 0.1
    elif zeros == "half":
        weight *= torch.rand_like(weight) < 0.5
    elif zeros == "rows":
        weight[: -(-len(weight) // 2)] = 0
    elif zeros == "inputs":
        weight[:, : -(-weight.shape[1] // 2)] = 0
    elif zeros == "all":
        weight *= 0
    elif zeros == "2:4" and flat.shape[1] % 4 == 0:
        keep = torch.rand_like(flat).view(-1, 4).argsort(1) < 2
        weight *= keep.view(weight.shape)
    elif zeros == "blocks" and len(weight) % 4 == 0:
        keep = (torch.rand(len(weight) // 4, flat.shape[1]) < 0.2).repeat_interleave(4, 0)
        weight *= keep.view(weight.shape)


ZEROS = st.sampled_from(["none", "scattered", "half", "rows", "inputs", "all", "2:4", "blocks"])


def _weighted(draw: Draw, layer: nn.Module) -> nn.Module:
    """Random weights with zeros of a kind; random statistics of norms."""
    zeros = draw(ZEROS)
    with torch.no_grad():
        for name, tensor in layer.state_dict(keep_vars=True).items():
            if name == "weight" and tensor.dim() > 1:
                tensor.normal_(0, tensor[0].numel() ** -0.5)
                _sparse(tensor, zeros)
            elif name == "running_var":
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.5)
                if zeros in ("rows", "all") and name == "bias":
                    tensor[: -(-len(tensor) // 2)] = 0
    return layer


def _conv(draw: Draw, x: Tensor) -> nn.Module:
    channels, sizes = x.shape[1], x.shape[2:]
    kernel = [draw(st.sampled_from([1, 2, 3, 5])) for _ in sizes]
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    kernel = [min(k, n + 2 * p) for k, n, p in zip(kernel, sizes, padding, strict=True)]
    dilation = [
        draw(st.integers(1, 2)) if 2 * (k - 1) < n + 2 * p else 1
        for k, n, p in zip(kernel, sizes, padding, strict=True)
    ]
    stride = [draw(st.sampled_from([1, 1, 2, 3])) for _ in sizes]
    groups = draw(st.sampled_from([n for n in range(1, channels + 1) if channels % n == 0]))
    out = groups * draw(st.integers(1, 20 // groups + 1))
    if draw(st.integers(0, 4)) == 0:
        return nn.ConvTranspose2d(channels, out, kernel, stride, dilation=dilation, groups=groups)
    return nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))


def _permuted(draw: Draw, x: Tensor) -> Any:
    """Channels last, a layer over them, and back."""
    layer: Any = nn.Linear(x.shape[1], x.shape[1]) if draw(st.booleans()) else nn.LayerNorm(x.shape[1])
    return layer


def _axes(draw: Draw, x: Tensor) -> Any:
    return sorted(draw(st.sets(st.integers(0, 3), min_size=1, max_size=3)))


# By name: how a step is drawn for what it reads (its details, or its layer), and what it computes.
STEPS: dict[str, tuple[Callable[[Draw, Tensor], Any], Callable[[Any, Tensor], Tensor]]] = {
    "conv": (_conv, lambda layer, x: layer(x)),
    "activation": (lambda draw, x: draw(st.sampled_from(list(ACTIVATIONS))), lambda name, x: ACTIVATIONS[name](x)),
    "batch norm": (lambda draw, x: nn.BatchNorm2d(x.shape[1]), lambda layer, x: layer(x)),
    "group norm": (
        lambda draw, x: nn.GroupNorm(1, x.shape[1]),
        lambda layer, x: layer(x) if x.numel() > x.shape[1] else x,  # PyTorch refuses one number per channel
    ),
    "max pool": (
        lambda draw, x: (draw(st.integers(1, min(3, *x.shape[2:]))), draw(st.integers(1, 2)), draw(st.booleans())),
        lambda how, x: F.max_pool2d(x, how[0], how[1], how[0] // 2, ceil_mode=how[2]),
    ),
    "avg pool": (
        lambda draw, x: (draw(st.integers(1, min(3, *x.shape[2:]))), draw(st.booleans()), draw(st.booleans())),
        lambda how, x: F.avg_pool2d(x, how[0], 1, how[0] // 2, ceil_mode=how[1], count_include_pad=how[2]),
    ),
    "adaptive": (
        lambda draw, x: (draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        lambda how, x: F.adaptive_avg_pool2d(x, how),
    ),
    "shuffle": (
        lambda draw, x: draw(st.sampled_from([n for n in range(1, x.shape[1] + 1) if x.shape[1] % n == 0])),
        lambda groups, x: F.channel_shuffle(x, groups),
    ),
    "part": (lambda draw, x: draw(st.integers(0, x.shape[1] - 1)), lambda first, x: x[:, first:]),
    "crop": (lambda draw, x: draw(st.integers(1, 2)), lambda step, x: x[:, :, ::step, x.shape[3] // 3 :]),
    "halves": (lambda draw, x: None, lambda _, x: torch.cat([x[:, 1:], x[:, :1]], 1)),
    "resize": (
        lambda draw, x: draw(st.sampled_from(["nearest", "bilinear"])),
        lambda mode, x: F.interpolate(x, scale_factor=2, mode=mode),
    ),
    "pad": (lambda draw, x: draw(st.integers(-1, 2)), lambda n, x: F.pad(x, (1, n if x.shape[2] > 1 else 0, 0, 2))),
    "gate": (
        lambda draw, x: nn.Linear(x.shape[1], x.shape[1]),
        lambda layer, x: x * layer(x.mean((2, 3))).sigmoid()[:, :, None, None],
    ),
    "linear": (_permuted, lambda layer, x: layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    "features": (lambda draw, x: nn.Linear(x.shape[3], draw(st.integers(1, 17))), lambda layer, x: layer(x)),
    "softmax": (lambda draw, x: draw(st.integers(0, 3)), lambda axis, x: x.softmax(axis)),
    "reduced": (_axes, lambda axes, x: x - x.mean(axes, keepdim=True)),
    "largest": (_axes, lambda axes, x: x.amax(axes, keepdim=True).expand(x.shape)),
    "repeat": (lambda draw, x: draw(st.integers(1, 2)), lambda n, x: x.repeat(1, n, 1, 1).repeat_interleave(2, 3)),
    "transposed": (lambda draw, x: None, lambda _, x: x.transpose(2, 3)),
    "reshaped": (lambda draw, x: None, lambda _, x: x.reshape(x.shape[0], -1, 1, x.shape[3])),
}  # fmt: skip


def _joined(x: Tensor, y: Tensor, how: str) -> Tensor:
    if how == "cat" and x.shape[0] == y.shape[0] and x.shape[2:] == y.shape[2:]:
        return torch.cat([x, y], 1)
    if how == "mul":
        return x * y.mean((1, 2, 3), keepdim=True)
    return x + (y if x.shape == y.shape else y.amax((1, 2, 3), keepdim=True))


class RandomNetwork(nn.Module):
    """Steps over a growing list of values, which begins with the inputs; the last ones come out, nested."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList([layer for *_, layer in steps if layer is not None])

    def extra_repr(self) -> str:
        return "\n".join(f"{name} of {reads} {layer or how}" for name, reads, how, layer in self.steps)

    def forward(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        for name, reads, how, layer in self.steps:
            x = values[reads[0]]
            values.append(_joined(x, values[reads[1]], how) if name == "join" else STEPS[name][1](layer or how, x))
        return {"last": values[-1], "others": (values[len(values) // 2], [values[-1].mean((2, 3)), values[0]])}


@st.composite
def networks(draw: Draw, most: int = 8) -> tuple[RandomNetwork, tuple[Tensor, ...]]:
    """A network and its inputs."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    batch, size = (
        draw(st.integers(1, 3)),
        (draw(st.integers(1, 13)), draw(st.sampled_from([1, 2, 5, 7, 15, 16, 17, 19]))),
    )
    inputs = tuple(torch.randn(batch, draw(st.integers(1, 7)), *size) for _ in range(draw(st.integers(1, 2))))
    values, steps = list(inputs), []
    for _ in range(draw(st.integers(1, most))):
        name = draw(st.sampled_from(["conv", "conv", "conv", "join", *STEPS]))
        last = len(values) - 1
        reads = (last - draw(st.integers(0, min(2, last))), last - draw(st.integers(0, min(3, last))))
        x = values[reads[0]]
        made = draw(st.sampled_from(["add", "mul", "cat"])) if name == "join" else STEPS[name][0](draw, x)
        layer = _weighted(draw, made).eval() if isinstance(made, nn.Module) else None
        step = (name, reads, None if layer else made, layer)
        with torch.no_grad():
            y = _joined(x, values[reads[1]], made) if name == "join" else STEPS[name][1](made, x)
        if 0 < math.prod(y.shape) <= MOST:
            steps.append(step)
            values.append(y)
    return RandomNetwork(steps).eval(), inputs
