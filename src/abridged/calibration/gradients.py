"""What the loss says of weights: gradients, their squares, curvature; and the synaptic flow, which needs no data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from abridged.calibration.samples import run
from abridged.data import Batch, Data
from abridged.data.batches import each, mix
from abridged.data.evaluate import device_of, judging
from abridged.errors import InputError, UnsupportedError

KINDS = ("gradient", "gradient_squared", "hessian_gradient", "hessian_diagonal")
BATCH = 64  # samples in one gradient
NORMS = (nn.modules.batchnorm._NormBase,)

ByName = dict[str, Tensor]
Loss = Callable[[ByName, Batch], Tensor]


def calibration_batches(data: Data, samples: int, seed: int = 0, size: int = BATCH) -> Iterator[Batch]:
    """The first `samples` training samples in an order that the seed shuffles, not augmented; fewer where there are fewer.

    Raises `InputError` for an empty split."""
    left = samples
    for batch in data.batches("train", size, shuffle=True, seed=seed):
        if left <= 0:
            break
        yield batch if batch.size <= left else batch.rows(slice(0, left))
        left -= batch.size
    if left == samples:
        raise InputError("train: the split is empty")


def gradients(
    model: nn.Module,
    data: Data,
    kinds: Iterable[str],
    names: Iterable[str],
    *,
    masks: Mapping[str, Tensor] | None = None,
    samples: int = 1024,
    seed: int = 0,
) -> dict[str, ByName]:
    """Statistics of the loss L of `data`, its mean over calibration samples, by kind and parameter name, of the parameters' shapes.

    "gradient": g = ∂L/∂w. "gradient_squared": the mean of g² over single samples. "hessian_gradient": H g, exact (one
    product with H, Pearlmutter 1994). "hessian_diagonal": |mean of v ⊙ H v| over batches, v = ±1 at random, seeded
    (Bekas et al. 2007). They are taken with `masks` applied, in eval mode; but a batch norm that has never been updated
    normalizes by the batch, where there is one. Gradients, buffers, modes and the global generator stay as they were.

    Raises `InputError` for data without labels and for a loss that is not finite.
    """
    wanted = frozenset(kinds)
    weights = _leaves(model, names, masks or {})
    batches = list(calibration_batches(data, samples, seed))
    found: dict[str, ByName] = {}
    if "gradient_squared" in wanted:
        single = [batch.rows(slice(i, i + 1)) for batch in batches for i in range(batch.size)]
        with _measuring(model) as call, torch.enable_grad():
            loss = _loss_of(call, data, device_of(model))
            found["gradient_squared"] = _mean(
                weights, single, lambda one: _squares(_gradient(loss(weights, one), weights))
            )
    # Of attention's kernels only the plain one can be derived twice.
    twice = wanted & {"hessian_gradient", "hessian_diagonal"}
    plain = sdpa_kernel(SDPBackend.MATH) if twice else nullcontext()
    with _measuring(model, by_batch=True) as call, torch.enable_grad(), plain:
        loss = _loss_of(call, data, device_of(model))
        if wanted & {"gradient", "hessian_gradient"}:
            found["gradient"] = _mean(weights, batches, lambda batch: _gradient(loss(weights, batch), weights))
        if "hessian_gradient" in wanted:
            along = found["gradient"]
            found["hessian_gradient"] = _mean(
                weights, batches, lambda batch: _product(loss(weights, batch), weights, along)
            )
        if "hessian_diagonal" in wanted:
            found["hessian_diagonal"] = _diagonal(loss, weights, batches, seed)
    return {kind: found[kind] for kind in wanted}


def synaptic_flow(
    model: nn.Module, example: Any, names: Iterable[str], masks: Mapping[str, Tensor] | None = None
) -> ByName:
    """∂R/∂w of R = Σ outputs of the network of absolute weights for an input of ones, in float64 (Tanaka et al. 2020).

    Batch norms scale by their running variance, and shift by |β| alone. Raises `UnsupportedError` where R leaves the
    range of float64."""
    leaves = _leaves(model, names, masks or {})
    with _measuring(model) as call, torch.no_grad():
        state = {name: v.abs().double() if v.is_floating_point() else v for name, v in call.state.items()}
        state |= {name: torch.zeros_like(v) for name, v in state.items() if name.endswith("running_mean")}
        weights = {name: leaf.abs().double().requires_grad_() for name, leaf in leaves.items()}
        ones = each(example, lambda x: torch.ones_like(x, dtype=torch.float64 if x.is_floating_point() else None))
        ones = each(ones, lambda x: x.to(device_of(model)))
        with torch.enable_grad():
            outputs: list[Tensor] = []
            given = run(lambda *x: call(weights, x, state), ones, "example, with ones in place of its values")
            each(given, lambda out: outputs.append(out) or out)  # type: ignore[func-returns-value]
            flow = torch.stack([out.sum() for out in outputs if out.requires_grad]).sum()
            found = _gradient(flow, weights)
    if not all(bool(torch.isfinite(part).all()) for part in found.values()):
        raise UnsupportedError("the synaptic flow of this network exceeds float64: use another criterion")
    return found


class _Call:
    """The model as a function of some of its parameters; what it does to its buffers, it does to copies."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self.buffers = buffers
        self.state = {**{name: p.detach() for name, p in model.named_parameters()}, **buffers}
        # A parameter's names in other modules; torch's own tying breaks a module that stands at two places.
        first = {id(p): name for name, p in model.named_parameters()}
        owned = (
            (f"{path}.{key}".lstrip("."), p) for path, m in model.named_modules() for key, p in m._parameters.items()
        )
        self.twins = {name: first[id(p)] for name, p in owned if p is not None and first[id(p)] != name}

    def __call__(self, weights: ByName, x: Any, state: ByName | None = None) -> Any:
        given = {**(self.buffers if state is None else state), **weights}
        given |= {twin: given[name] for twin, name in self.twins.items() if name in given}
        return functional_call(self.model, given, x if isinstance(x, tuple) else (x,), tie_weights=False)


@contextmanager
def _measuring(model: nn.Module, by_batch: bool = False) -> Iterator[_Call]:
    """Eval mode for the block; with `by_batch`, batch norms that have never been updated normalize by the batch."""
    with judging(model):
        for module in model.modules():
            if by_batch and isinstance(module, NORMS) and _fresh(module):
                module.train()
        yield _Call(model)


def _fresh(norm: nn.Module) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    return isinstance(mean, Tensor) and isinstance(variance, Tensor) and not mean.any() and bool((variance == 1).all())


def _leaves(model: nn.Module, names: Iterable[str], masks: Mapping[str, Tensor]) -> ByName:
    """The weights as they are with the masks applied, as variables of their own."""

    def leaf(name: str) -> Tensor:
        weight = model.get_parameter(name).detach()
        return (weight * masks[name].to(weight.device) if name in masks else weight.clone()).requires_grad_()

    return {name: leaf(name) for name in names}


def _loss_of(call: _Call, data: Data, device: torch.device) -> Loss:
    def loss(weights: ByName, batch: Batch) -> Tensor:
        if batch.y is None:
            raise InputError("train: there are no labels: gradients of the loss need them")
        x, y = batch.to(device)
        value = data.loss_function(run(lambda *x: call(weights, x), x, "training samples"), y)
        if not torch.isfinite(value):
            raise InputError(f"the loss on the training samples is {value.item()}: no gradient can be taken")
        return value

    return loss


def _mean(weights: ByName, batches: list[Batch], of: Callable[[Batch], ByName]) -> ByName:
    """Mean over the batches, each weighted by its samples."""
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    total = sum(batch.size for batch in batches)
    for batch in batches:
        for name, part in of(batch).items():
            sums[name].add_(part.detach(), alpha=batch.size / total)
    return {name: part.detach() for name, part in sums.items()}


def _gradient(value: Tensor, weights: ByName, *, graph: bool = False) -> ByName:
    parts = torch.autograd.grad(value, list(weights.values()), create_graph=graph, materialize_grads=True)
    return dict(zip(weights, parts, strict=True))


def _squares(parts: ByName) -> ByName:
    return {name: part.square() for name, part in parts.items()}


def _product(loss: Tensor, weights: ByName, along: ByName) -> ByName:
    """H v: the gradient of gᵀ v."""
    gradient = _gradient(loss, weights, graph=True)
    inner = torch.stack([(gradient[name] * along[name]).sum() for name in weights]).sum()
    return _gradient(inner, weights) if inner.requires_grad else {n: torch.zeros_like(w) for n, w in weights.items()}


def _diagonal(loss: Loss, weights: ByName, batches: list[Batch], seed: int) -> ByName:
    generator = torch.Generator().manual_seed(mix(seed, 3))

    def probe(batch: Batch) -> ByName:
        signs = {
            name: (torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1).to(weight)
            for name, weight in weights.items()
        }
        return {name: signs[name] * part for name, part in _product(loss(weights, batch), weights, signs).items()}

    return {name: part.abs() for name, part in _mean(weights, batches, probe).items()}
