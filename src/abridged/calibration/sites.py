"""A weight layer as one matrix product: the columns of its input, and its weight as a matrix.

Whatever the layer, output = columns · matrixᵀ + bias, group by group: columns (g, rows, K), matrix (g, O/g, K), where
a row is one sample at one position and K = (I/g) · taps input features, the same order as a weight's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abridged.errors import InputError, UnsupportedError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
KINDS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
EVERY = slice(None)
CHUNK = 1 << 23  # elements of the unfolded input that exist at once: 32 MiB in float32


@dataclass(frozen=True, eq=False)
class Site:
    """One weight and the layers that multiply by it: one, or several that share it."""

    name: str  # of the parameter
    modules: tuple[nn.Module, ...]
    strangers: tuple[str, ...] = ()  # other parameters' names for the same weight in layers of another kind

    @property
    def parameter(self) -> nn.Parameter:
        return self.modules[0].weight  # type: ignore[return-value]

    @property
    def groups(self) -> int:
        return int(getattr(self.modules[0], "groups", 1))

    @property
    def outputs(self) -> int:
        """Output channels or features, of all groups."""
        shape, transposed = self.parameter.shape, isinstance(self.modules[0], TRANSPOSED)
        return shape[1] * self.groups if transposed else shape[0]

    @property
    def features(self) -> int:
        """Input features of one group, K = (I/g) · taps."""
        return self.parameter.numel() // max(self.outputs, 1)

    def matrix(self, weight: Tensor) -> Tensor:
        """Elements of the weight's shape → (g, O/g, K); a view where one can be had.

        >>> site = sites(nn.Conv2d(4, 6, 3, groups=2))["weight"]
        >>> site.matrix(site.parameter).shape
        torch.Size([2, 3, 18])
        """
        if not isinstance(self.modules[0], TRANSPOSED):
            return weight.reshape(self.groups, -1, self.features)
        inputs, outputs = weight.shape[:2]
        return weight.reshape(self.groups, inputs // self.groups, outputs, -1).transpose(1, 2).flatten(2)

    def weight(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`: (g, O/g, K) → elements of the weight's shape."""
        shape = self.parameter.shape
        if not isinstance(self.modules[0], TRANSPOSED):
            return matrix.reshape(shape)
        parted = matrix.reshape(self.groups, self.outputs // self.groups, shape[0] // self.groups, -1)
        return parted.transpose(1, 2).reshape(shape)

    def spread(self, values: Tensor) -> Tensor:
        """One value per input feature (g, K) → elements of the weight's shape, equal for all outputs of a group."""
        groups, features = values.shape
        return self.weight(values[:, None].expand(groups, self.outputs // groups, features))


def sites(model: nn.Module) -> dict[str, Site]:
    """Every weight of a Linear, Conv1d-3d or ConvTranspose1d-3d, by its first parameter name."""
    uses: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{attribute}".lstrip(".")
            uses.setdefault(id(parameter), []).append((name, module))
    found = {}
    for shared in uses.values():
        fit = [module for name, module in shared if isinstance(module, KINDS) and _leaf(name) == "weight"]
        others = tuple(name for name, module in shared if module not in fit)
        if fit and not nn.parameter.is_lazy(fit[0].weight):
            found[shared[0][0]] = Site(shared[0][0], tuple(fit), others)
    return found


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def chosen(model: nn.Module, names: Iterable[str] | None) -> dict[str, Site]:
    """The sites of these weights, or all. Raises `InputError` for a name without a parameter, `UnsupportedError` for a
    parameter that no Linear or convolution multiplies by."""
    every = sites(model)
    if names is None:
        return every
    parameters = dict(model.named_parameters(remove_duplicate=False))
    picked = {}
    for name in names:
        if name not in parameters:
            raise InputError(f"the model has no parameter {name}")
        if name not in every:
            raise UnsupportedError(f"{name} is not the weight of a Linear or convolution: its inputs are not caught")
        picked[name] = every[name]
    return picked


def columns(module: nn.Module, x: Tensor, chunk: int = CHUNK, only: slice = EVERY) -> Iterator[Tensor]:
    """A layer's input as (g, rows, K), in chunks of about `chunk` elements; rows are samples times output positions.

    `only` selects some of them: rows of a linear layer, lines (along the first axis) of a convolution's positions.
    The input may lack the batch axis, as the layer itself allows."""
    if isinstance(module, nn.Linear):
        rows = x.reshape(1, -1, x.shape[-1])[:, only]
        yield from torch.split(rows, max(1, chunk // max(1, x.shape[-1])), dim=1)
        return
    groups, windows = int(module.groups), _windows(module, x)[:, :, only]  # type: ignore[arg-type]
    spatial = (windows.ndim - 2) // 2
    per_row = math.prod(windows.shape[1:]) // max(1, windows.shape[2])  # elements of one sample's one line of positions
    for lines in torch.split(windows, max(1, chunk // max(1, per_row * windows.shape[2])), dim=0):
        for part in torch.split(lines, max(1, chunk // max(1, per_row * lines.shape[0])), dim=2):
            yield _rows(part, groups, spatial)


def _rows(windows: Tensor, groups: int, spatial: int) -> Tensor:
    """(N, I, positions…, taps…) → (g, rows, K)."""
    n, inputs, *rest = windows.shape
    parted = windows.reshape(n, groups, inputs // groups, *rest)
    positions, taps = range(3, 3 + spatial), range(3 + spatial, 3 + 2 * spatial)
    ordered = parted.permute(1, 0, *positions, 2, *taps)
    return ordered.reshape(groups, n * math.prod(rest[:spatial]), -1)


def _windows(module: nn.Module, x: Tensor) -> Tensor:
    """A convolution's padded input as a view (N, I, positions…, taps…) of what each output position sees."""
    taps, stride, dilation = (_ints(getattr(module, key)) for key in ("kernel_size", "stride", "dilation"))
    x = x if x.ndim == len(taps) + 2 else x[None]
    if isinstance(module, TRANSPOSED):
        x, stride = _stuffed(module, x, taps, stride, dilation), (1,) * len(taps)
    else:
        x = _padded(module, x, taps, dilation)
    for axis, (k, s, d) in enumerate(zip(taps, stride, dilation, strict=True), start=2):
        x = x.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
    # A transposed convolution reads its taps backwards.
    return x.flip(tuple(range(-len(taps), 0))) if isinstance(module, TRANSPOSED) else x


def _padded(module: nn.Module, x: Tensor, taps: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    padding = module.padding
    if isinstance(padding, str):
        totals = [d * (k - 1) if padding == "same" else 0 for k, d in zip(taps, dilation, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        pairs = [(p, p) for p in _ints(padding)]
    mode = str(module.padding_mode)
    return F.pad(x, [p for pair in reversed(pairs) for p in pair], mode="constant" if mode == "zeros" else mode)


def _stuffed(
    module: nn.Module, x: Tensor, taps: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    """A transposed convolution's input as an ordinary one of stride 1 sees it: zeros between, and padded."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    wide = x.new_zeros(*x.shape[:2], *sizes)
    wide[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
    pads = []
    for k, d, p, extra in zip(
        taps, dilation, *(_ints(getattr(module, key)) for key in ("padding", "output_padding")), strict=True
    ):
        pads.append((d * (k - 1) - p, d * (k - 1) - p + extra))
    return F.pad(wide, [p for pair in reversed(pads) for p in pair])


def _ints(value: object) -> tuple[int, ...]:
    return tuple(int(item) for item in value)  # type: ignore[attr-defined]
