"""What data tells about each layer: statistics of inputs and outputs, in one streaming pass, and the one input catcher.

A statistic is a monoid, one entry in `STATISTICS`: what a chunk of rows gives (`part`), how two parts become one
(`merge`), and what is told in the end (`finish`). Since merging is associative, how rows fall into chunks and batches
does not matter. Nothing of the model changes: eval mode without gradients, and both are restored.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from abridged.calibration.samples import Samples, run
from abridged.calibration.sites import CHUNK, Site, chosen, columns
from abridged.data.evaluate import judging
from abridged.errors import InputError
from abridged.tables import Table

MEMORY = 2 << 30  # bytes of statistics held at once


@dataclass(frozen=True)
class Statistic:
    """Numbers per layer, gathered from the rows of one view of it.

    Views: "columns", the unfolded input (g, rows, K) (see `sites`); "input" (1, rows, input channels), without padding;
    "output" (1, rows, output channels)."""

    says: str  # what it is, and its shape
    view: Literal["columns", "input", "output"]
    part: Callable[[Tensor], Tensor]  # (g, rows, features) → state
    merge: Callable[[Tensor, Tensor], Tensor] = operator.add
    finish: Callable[[Tensor], Tensor] = lambda state: state
    square: bool = False  # whether the state is features × features


STATISTICS: Table[Statistic] = Table("statistic")


def _moments(x: Tensor) -> Tensor:
    """(3, g, features): how many rows, their mean, and the sum of squared deviations from it."""
    mean = x.mean(1)
    return torch.stack([torch.full_like(mean, x.shape[1]), mean, (x - mean[:, None]).square().sum(1)])


def _joined(a: Tensor, b: Tensor) -> Tensor:
    """Moments of two sets of rows together (Chan, Golub & LeVeque 1979): no difference of large sums is taken."""
    (n, mean, squares), (m, other, more) = a, b
    gap, total = other - mean, n + m
    return torch.stack([total, mean + gap * (m / total), squares + more + gap.square() * (n * m / total)])


def _count(x: Tensor) -> Tensor:
    return torch.tensor(float(x.shape[1]), dtype=torch.float64)


def _zeros(x: Tensor) -> Tensor:
    return _moments((x == 0).to(x.dtype))


def _flat(state: Tensor) -> Tensor:
    return state[0]


def _mean(state: Tensor) -> Tensor:
    return state[1]


def _flat_mean(state: Tensor) -> Tensor:
    return state[1, 0]


def _flat_variance(state: Tensor) -> Tensor:
    return state[2, 0] / state[0, 0]


for name, statistic in {
    "count": Statistic("rows, samples × positions: ()", "columns", _count),
    "input_norm": Statistic(
        "‖x_j‖₂ = √Σ_r x_rj² per input feature: (g, K)", "columns", lambda x: x.square().sum(1), finish=torch.sqrt
    ),
    "input_mean": Statistic("E[x_j] per input feature: (g, K)", "columns", _moments, _joined, _mean),
    "gram": Statistic("XᵀX = Σ_r x_r x_rᵀ: (g, K, K)", "columns", lambda x: x.mT @ x, square=True),
    "input_zeros": Statistic("fraction of zeros per input channel: (I,)", "input", _zeros, _joined, _flat_mean),
    "output_mean": Statistic("E[y_o] per output channel: (O,)", "output", _moments, _joined, _flat_mean),
    "output_variance": Statistic(
        "E[(y_o − E[y_o])²] per output channel: (O,)", "output", _moments, _joined, _flat_variance
    ),
    "input_min": Statistic("least value per input channel: (I,)", "input", lambda x: x.amin(1), torch.minimum, _flat),
    "input_max": Statistic("largest value per input channel: (I,)", "input", lambda x: x.amax(1), torch.maximum, _flat),
    "output_min": Statistic(
        "least value per output channel: (O,)", "output", lambda x: x.amin(1), torch.minimum, _flat
    ),
    "output_max": Statistic(
        "largest value per output channel: (O,)", "output", lambda x: x.amax(1), torch.maximum, _flat
    ),
}.items():
    STATISTICS.entry(name)(statistic)


def collect(
    model: nn.Module,
    data: Any,
    statistics: Sequence[str],
    *,
    names: Iterable[str] | None = None,
    samples: int = 1024,
    batch_size: int = 128,
    seed: int = 0,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float32,
) -> dict[str, dict[str, Tensor]]:
    """Statistics of every layer: by parameter name, then by statistic; see `stream` for everything else.

    >>> layer = nn.Linear(2, 1)
    >>> found = collect(layer, torch.tensor([[3.0, 1.0], [4.0, 0.0]]), ["input_norm", "count"])
    >>> {key: value.tolist() for key, value in found["weight"].items()}
    {'input_norm': [[5.0, 1.0]], 'count': 2.0}
    """
    source = Samples(data, samples, batch_size, seed)
    return dict(stream(model, source, statistics, names=names, memory=memory, dtype=dtype))


def stream(
    model: nn.Module,
    data: Samples,
    statistics: Sequence[str],
    *,
    names: Iterable[str] | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(parameter name, its statistics) one after the other, gathered in one pass over the data for as many layers as
    fit in `memory` bytes, so that a caller who lets go of them never holds more.

    `names` are of weights of Linear and convolution layers (None: all). Rows are summed in `dtype`; where layers share
    a weight, over the rows of all. Raises `InputError` for unknown names, a layer that the model never calls, NaN or
    infinity on the way, and one layer that alone is above `memory`; `UnsupportedError` for weights of other kinds.
    """
    wanted = {name: STATISTICS[name] for name in statistics}
    for wave in _waves(chosen(model, names), wanted, memory, dtype):
        states = _gather(model, data, wave, wanted, dtype)
        for site in wave:
            yield site.name, {name: wanted[name].finish(state) for name, state in states.pop(site.name).items()}


def _waves(
    picked: Mapping[str, Site], wanted: Mapping[str, Statistic], memory: int, dtype: torch.dtype
) -> Iterator[list[Site]]:
    """Layers whose statistics fit in memory together."""
    wave: list[Site] = []
    held = 0
    for site in picked.values():
        width = sum(site.features if statistic.square else 3 for statistic in wanted.values())
        size = width * site.groups * max(site.features, site.outputs) * dtype.itemsize
        if size > memory:
            raise InputError(f"{site.name}: its statistics need {size:,} bytes, above memory={memory:,}")
        if wave and held + size > memory:
            yield wave
            wave, held = [], 0
        wave.append(site)
        held += size
    if wave:
        yield wave


def _gather(
    model: nn.Module, data: Samples, wave: Sequence[Site], wanted: Mapping[str, Statistic], dtype: torch.dtype
) -> dict[str, dict[str, Tensor]]:
    """One pass over the data: the states of these layers."""
    states: dict[str, dict[str, Tensor]] = {site.name: {} for site in wave}

    def see(site: Site, module: nn.Module, view: str, x: Tensor) -> None:
        of_view = {name: statistic for name, statistic in wanted.items() if statistic.view == view}
        held = states[site.name]
        for rows in _rows(module, view, x) if of_view else ():
            for name, statistic in of_view.items():
                part = statistic.part(rows.to(dtype))
                held[name] = statistic.merge(held[name], part) if name in held else part

    with judging(model), catching(wave, see):
        for x in data.on(model):
            run(model, x)
    for site in wave:
        _check(site, states[site.name])
    return states


def _rows(module: nn.Module, view: str, x: Tensor) -> Iterator[Tensor]:
    """The chunks of rows of a view; channels come last for Linear, and second (or first, without batch) elsewhere."""
    if view == "columns":
        yield from columns(module, x)
        return
    if not isinstance(module, nn.Linear):
        taps: tuple[int, ...] = module.kernel_size  # type: ignore[assignment]
        x = x.movedim(x.ndim - len(taps) - 1, -1)
    yield from torch.split(x.reshape(1, -1, x.shape[-1]), max(1, CHUNK // max(1, x.shape[-1])), dim=1)


def _check(site: Site, states: Mapping[str, Tensor]) -> None:
    if not states:
        raise InputError(
            f"{site.name}: the model never calls its layer on this data, so nothing is known of its inputs"
        )
    if not all(bool(state.isfinite().all()) for state in states.values()):
        raise InputError(f"{site.name}: NaN or infinity reaches its layer; check the weights before it and the data")


See = Callable[[Site, nn.Module, str, Tensor], None]  # (site, module, view, tensor); views "columns", "input", "output"


@contextmanager
def catching(caught: Iterable[Site], see: See) -> Iterator[None]:
    """Show each call's input and output of these layers to `see`; the hooks go at the end, whatever happens."""

    def before(site: Site, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        see(site, module, "columns", x)
        see(site, module, "input", x)

    def after(site: Site, module: nn.Module, args: object, output: Tensor) -> None:
        see(site, module, "output", output)

    with ExitStack() as stack:
        for site in caught:
            for module in site.modules:
                stack.callback(module.register_forward_pre_hook(partial(before, site), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(partial(after, site)).remove)
        yield
