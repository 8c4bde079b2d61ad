"""Which layers of a model can be factorized, and why the others cannot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from abridged.data.batches import each
from abridged.data.data import forward
from abridged.data.evaluate import device_of
from abridged.errors import InputError, first_line
from abridged.factorization.chain import KINDS
from abridged.factorization.decomposition import Shape
from abridged.globs import check, matches

HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


@dataclass(eq=False)
class Layer:
    """A layer that can be factorized, under all its paths, and what the example showed of it."""

    paths: tuple[str, ...]
    module: Any
    calls: list[tuple[Shape, Shape]] = field(default_factory=list)  # shapes of input and output of each call
    example: Tensor | None = None  # of its first call

    @property
    def path(self) -> str:
        return self.paths[0]

    @property
    def weights(self) -> list[str]:
        """The names of its weight."""
        return [f"{path}.weight".lstrip(".") for path in self.paths]

    @property
    def parameters(self) -> int:
        """Elements of the weight; the bias stays as it is."""
        return int(self.module.weight.numel())

    @property
    def macs(self) -> int:
        """Of all calls that the example made."""
        kind = KINDS[type(self.module).__name__]
        shape = tuple(kind.weight(self.module).shape[1:])
        uses = (kind.uses(self.module, [shape], *call)[0] for call in self.calls)
        return self.parameters * sum(uses)


def find(model: nn.Module, include: tuple[str, ...], exclude: tuple[str, ...]) -> tuple[list[Layer], dict[str, str]]:
    """The layers to factorize, and the reason for each layer that is left although its type could be.

    Raises `InputError` for a glob that matches no module, and for weights without values or that are not finite."""
    check((name for name, _ in model.named_parameters()), (*include, *exclude), "module with parameters")
    owners = owners_of(model)
    found, left = [], {}
    for module, places in paths_of(model).items():
        if not isinstance(module, tuple(_types())):
            continue
        layer = Layer(tuple(places), module)
        reason = _chosen(layer, include, exclude) or _unfit(module, owners)
        if reason:
            left[layer.path] = reason
        else:
            _check_values(layer)
            found.append(layer)
    return found, left


def watch(model: nn.Module, layers: Sequence[Layer], example: object) -> tuple[list[Layer], dict[str, str]]:
    """Run the example once, in evaluation mode, and note what each layer gets and gives: the layers that are called, and
    the reason to leave those that are not.

    Raises `InputError` if the model does not run."""
    handles = [layer.module.register_forward_hook(_note(layer), with_kwargs=True) for layer in layers]
    try:
        if reason := failure(model, example):
            raise InputError(f"the model does not run on the example: {reason}")
    finally:
        for handle in handles:
            handle.remove()
    idle = {layer.path: "never called on the example: whoever uses the weight reads it itself" for layer in layers}
    called = [layer for layer in layers if layer.calls]
    for layer in called:
        del idle[layer.path]
    return called, idle


def failure(model: nn.Module, example: object) -> str:
    """How the model fails on the example in evaluation mode, in one line; '' where it runs."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), unfused(model):
            forward(model.eval(), each(example, lambda x: x.to(device_of(model))))
    except Exception as error:  # whatever the user's forward raises
        return first_line(error)
    finally:
        for module, training in modes.items():
            module.training = training
    return ""


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """torch's encoders and their layers call their parts for the block, in place of the fused kernel that reads weights
    itself."""
    flags = {nn.TransformerEncoderLayer: "activation_relu_or_gelu", nn.TransformerEncoder: "use_nested_tensor"}
    encoders = [(module, flags[type(module)]) for module in model.modules() if type(module) in flags]
    before = [getattr(module, flag, 0) for module, flag in encoders]
    for module, flag in encoders:
        setattr(module, flag, 0)
    try:
        yield
    finally:
        for (module, flag), value in zip(encoders, before, strict=True):
            setattr(module, flag, value)


def put(model: nn.Module, paths: Sequence[str], new: nn.Module) -> nn.Module:
    """Set a module under each of its paths; returns the model, which is `new` itself where the path is empty."""
    for path in paths:
        if not path:
            return new
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new)
    return model


def _types() -> list[type[nn.Module]]:
    return [getattr(nn, name) for name in KINDS] + [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


def _chosen(layer: Layer, include: tuple[str, ...], exclude: tuple[str, ...]) -> str:
    chosen = matches(layer.weights, include) and not matches(layer.weights, exclude)
    return "" if chosen else "left by include and exclude"


def paths_of(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Each module under all its paths."""
    paths: dict[nn.Module, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        paths[module].append(path)
    return paths


def owners_of(model: nn.Module) -> dict[int, set[nn.Module]]:
    """The modules that hold each parameter."""
    owners: dict[int, set[nn.Module]] = defaultdict(set)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)].add(module)
    return owners


def hooked(module: nn.Module) -> bool:
    """Whether something hangs on a module that would not hang on what replaces it."""
    return any(getattr(module, hooks) for hooks in HOOKS)


def _unfit(module: nn.Module, owners: dict[int, set[nn.Module]]) -> str:
    """Why a layer cannot be replaced by factors, or ''."""
    if "weight" not in module._parameters:
        return "weight that is computed (a parametrization)"
    name = type(module).__name__
    if name not in KINDS or type(module).__module__ != getattr(nn, name).__module__:
        known = next((kind for kind in KINDS if isinstance(module, getattr(nn, kind))), "")
        return f"{name}, a {known} that may compute something else" if known else f"{name}, which no method takes apart"
    if len(owners[id(module._parameters["weight"])]) > 1:
        return "weight shared with another layer"
    if hooked(module):
        return "hooks, which would be lost"
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.sparse):
        return "embedding with max_norm or sparse gradients"
    return ""


def _check_values(layer: Layer) -> None:
    weight = layer.module.weight
    if nn.parameter.is_lazy(weight):
        raise InputError(f"{layer.path}.weight has no values yet (lazy module): run the model once before")
    if weight.is_meta:
        raise InputError(f"{layer.path}.weight has no values (meta device): load the weights before")
    if not weight.is_floating_point():
        raise InputError(
            f"{layer.path}.weight is {weight.dtype}: only floating-point weights are factorized; exclude it"
        )
    if not torch.isfinite(weight).all():
        raise InputError(f"{layer.path}.weight has NaN or infinite values: mend them, or exclude it")


def _note(layer: Layer) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        x = args[0] if args else next(iter(named.values()))
        layer.calls.append((tuple(x.shape), tuple(output.shape)))
        if layer.example is None:
            layer.example = x.detach()

    return hook
