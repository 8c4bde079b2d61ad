"""Cutting: a copy of a module without some of its channels, of the same classes, its attributes put right."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from abridged.graph.graph import Node
from abridged.pruning.coupling.groups import Coupling, Units
from abridged.pruning.coupling.labels import covered
from abridged.tables import Table

_LAYERS = {"linear": -1, "conv": 1, "conv_transpose": 1}  # the axis of channels
Gone = npt.NDArray[np.bool_]  # (count,): the units that go


@dataclass(frozen=True, eq=False)
class Fold:
    """What channels that go still gave to a layer: added to its bias."""

    node: Node
    shift: Tensor  # (O,)


class Number(NamedTuple):
    """An attribute of a class of the user's modules."""

    kind: type
    name: str


def cut(
    model: nn.Module,
    coupling: Coupling,
    gone: Gone,
    folds: tuple[Fold, ...] = (),
    dtype: torch.dtype | None = None,
    left: Collection[Number] = (),
) -> nn.Module:
    """A copy without the units that go; what stays is a copy, too. With `dtype`, every floating tensor is of it.

    Whole numbers that modules of the user keep and that were a size are brought up to date, but for those of `left`."""
    tensors = model.state_dict(keep_vars=True)
    biases = {str(fold.node.inputs[2]): fold.shift for fold in folds if fold.node.inputs[2] is not None}
    kept = _kept(coupling, gone)
    replaced: dict[int, Any] = {}
    for name in {*kept, *biases}:
        key, *others = coupling.graph.constants[name].keys
        part = _part(tensors[key], kept.get(name, {}), biases.get(name), dtype)
        replaced |= {id(tensors[key]): part for key in (key, *others)}
    for tensor in tensors.values() if dtype else ():
        if tensor.is_floating_point() and id(tensor) not in replaced:
            replaced[id(tensor)] = _part(tensor, {}, None, dtype)
    small: nn.Module = copy.deepcopy(model, dict(replaced))
    if dtype:
        small = small.to(dtype)  # buffers that are not saved
        _keep_eps(small, next((t.dtype for t in tensors.values() if t.is_floating_point()), dtype))
    for fold in folds:
        if fold.node.inputs[2] is None:
            rows = next(iter(kept.get(str(fold.node.inputs[1]), {0: None}).items()))
            _new_bias(small.get_submodule(fold.node.path), fold.shift, rows[1] if rows[0] == 0 else None)
    _put_right(model, small, coupling, gone, left)
    return small


def _keep_eps(module: nn.Module, dtype: torch.dtype) -> None:
    """What is added in a norm that derives it from the dtype stays as it was in this one."""
    for norm in module.modules():
        if isinstance(norm, nn.RMSNorm) and norm.eps is None:
            norm.eps = torch.finfo(dtype).eps


def _kept(coupling: Coupling, gone: Gone) -> dict[str, dict[int, Tensor]]:
    """By constant and axis: the positions that stay, where not all do."""
    kept: defaultdict[str, dict[int, Tensor]] = defaultdict(dict)
    for axis in coupling.axes:
        stays = staying(axis.units, gone)
        if not stays.all():
            kept[axis.constant][axis.axis] = torch.from_numpy(np.flatnonzero(stays))
    return kept


def staying(units: Units, gone: Gone) -> npt.NDArray[np.bool_]:
    """Where what is fixed, or does not go, lies."""
    stays: npt.NDArray[np.bool_] = ~np.append(gone, False)[units]
    return stays


def _part(tensor: Tensor, kept: Mapping[int, Tensor], shift: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    part = tensor.detach()
    for axis, positions in kept.items():
        part = part.index_select(axis, positions.to(part.device))
    part = part.to(dtype or part.dtype)
    if shift is not None:
        part = part + (shift[kept[0]] if 0 in kept else shift).to(part)
    part = part.clone() if part.data_ptr() == tensor.data_ptr() else part
    return nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part


def _new_bias(module: nn.Module, shift: Tensor, rows: Tensor | None) -> None:
    weight = module.get_parameter("weight")
    module.bias = nn.Parameter((shift if rows is None else shift[rows]).to(weight), weight.requires_grad)


def _put_right(model: nn.Module, small: nn.Module, coupling: Coupling, gone: Gone, left: Collection[Number]) -> None:
    changed, groups = sizes(coupling, gone), _groups_left(coupling, gone)
    before = dict(model.named_modules(remove_duplicate=False))
    for path, module in small.named_modules(remove_duplicate=False):
        known = next((fix for kind, fix in ATTRIBUTES.items() if isinstance(module, _CLASSES[kind])), None)
        if known is not None:
            known(before[path], module, Changed(changed.get(path, {}), groups.get(path)))
        for number in numbers(module, changed.get(path, {})) - set(left):
            setattr(module, number.name, changed[path][getattr(module, number.name)])


def sizes(coupling: Coupling, gone: Gone) -> dict[str, dict[int, int]]:
    """By module path: sizes of axes that its nodes read or write, and what becomes of them.

    Where a layer with weights reads and writes the same size, what becomes of the output counts."""
    found: defaultdict[str, dict[int, int]] = defaultdict(dict)
    for node in coupling.graph:
        for name in (*node.inputs, *node.outputs):
            before, after = coupling.graph.values[name].shape if name else (), size_left(coupling, name, gone)
            weighs = name in node.outputs and any(n in coupling.graph.constants for n in node.inputs)
            changed = [(old, new) for old, new in zip(before, after, strict=True) if weighs or old != new]
            found[node.path].update(sorted(changed, key=lambda pair: pair[0] != pair[1]))
    return found


def size_left(coupling: Coupling, name: str | None, gone: Gone) -> tuple[int, ...]:
    """The shape of a value when the units that go have gone; () for an input that is absent."""
    size = list(coupling.graph.values[name].shape) if name else []
    for units in coupling.fields.get(str(name), []):
        stays = staying(units, gone)
        for axis in () if stays.all() else covered(units):
            size[axis] = int(np.moveaxis(stays, axis, 0).reshape(units.shape[axis], -1).any(1).sum())
    return tuple(size)


def widths(coupling: Coupling) -> Iterator[Units]:
    """(count,) for every width that a layer with weights reads or writes: how many of its channels each unit is."""
    nodes = [node for node in coupling.graph if node.op in _LAYERS]
    for name, op in {str(name): node.op for node in nodes for name in (node.inputs[0], *node.outputs)}.items():
        for units in coupling.fields.get(name, []):
            if covered(units) == (_LAYERS[op] % units.ndim,):
                yield np.bincount(units[units >= 0], minlength=coupling.count)


def channels_of(coupling: Coupling) -> Units:
    """(count,): how many channels each unit of the groups is, in the narrowest width that it has a place in."""
    most = np.iinfo(np.int64).max
    least = np.full(coupling.count, most)
    for counts in widths(coupling):
        least = np.where(counts > 0, np.minimum(least, counts), least)
    found = np.zeros(coupling.count, np.int64)
    for group in coupling.groups:
        found[group.units] = np.where(least[group.units] < most, least[group.units], 1)
    return found


def numbers(module: nn.Module, changed: Mapping[int, int]) -> set[Number]:
    """Whole numbers that a module of the user keeps beside its layers and that were a size that changed."""
    if type(module).__module__.split(".")[0] == "torch":
        return set()
    return {
        Number(type(module), name)
        for name, value in vars(module).items()
        if type(value) is int and value in changed and not name.startswith("_") and name != "training"
    }


@dataclass(frozen=True)
class Changed:
    """What happened at a module: sizes that are others now, and how many groups of channels are left."""

    sizes: Mapping[int, int]
    groups: int | None

    def __call__(self, size: int) -> int:
        return self.sizes.get(size, size)


def _groups_left(coupling: Coupling, gone: Gone) -> dict[str, int]:
    """By module path: the groups of a grouped layer, or of a group norm, in which a channel stays."""
    found = {}
    for node in coupling.graph:
        groups = int(node.attrs.get("groups", 1))  # type: ignore[arg-type]
        for units in coupling.fields.get(str(node.inputs[0]), []) if groups > 1 else []:
            if covered(units) == (1,):
                found[node.path] = int(staying(units, gone).reshape(groups, -1).any(1).sum())
    return found


# (module before, module after whose tensors are cut already, what changed) → None: attributes put right.
ATTRIBUTES: Table[Callable[[Any, Any, Changed], None]] = Table("module")
_CLASSES: dict[str, Any] = {
    "convolution": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "transposed convolution": (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    "linear": nn.Linear,
    "batch norm": nn.modules.batchnorm._NormBase,
    "layer norm": (nn.LayerNorm, nn.RMSNorm),
    "group norm": nn.GroupNorm,
    "embedding": (nn.Embedding, nn.EmbeddingBag),
    "prelu": nn.PReLU,
    "multi-head attention": nn.MultiheadAttention,
}


@ATTRIBUTES.entry("convolution")
def _conv(before: Any, after: Any, changed: Changed) -> None:
    after.out_channels = after.weight.shape[0]
    after.groups = changed.groups or before.groups
    after.in_channels = after.weight.shape[1] * after.groups


@ATTRIBUTES.entry("transposed convolution")
def _conv_transpose(before: Any, after: Any, changed: Changed) -> None:
    after.in_channels = after.weight.shape[0]
    after.groups = changed.groups or before.groups
    after.out_channels = after.weight.shape[1] * after.groups


@ATTRIBUTES.entry("linear")
def _linear(before: Any, after: Any, changed: Changed) -> None:
    after.out_features, after.in_features = after.weight.shape


@ATTRIBUTES.entry("batch norm")
def _batch_norm(before: Any, after: Any, changed: Changed) -> None:
    first = next((t for t in (after.weight, after.running_mean) if t is not None), None)
    after.num_features = len(first) if first is not None else changed(before.num_features)


@ATTRIBUTES.entry("layer norm")
def _layer_norm(before: Any, after: Any, changed: Changed) -> None:
    if after.weight is not None:
        after.normalized_shape = tuple(after.weight.shape)
    else:
        after.normalized_shape = tuple(changed(n) for n in before.normalized_shape)


@ATTRIBUTES.entry("group norm")
def _group_norm(before: Any, after: Any, changed: Changed) -> None:
    after.num_channels = len(after.weight) if after.weight is not None else changed(before.num_channels)
    after.num_groups = changed.groups or before.num_groups


@ATTRIBUTES.entry("embedding")
def _embedding(before: Any, after: Any, changed: Changed) -> None:
    after.num_embeddings, after.embedding_dim = after.weight.shape


@ATTRIBUTES.entry("prelu")
def _prelu(before: Any, after: Any, changed: Changed) -> None:
    after.num_parameters = after.weight.numel()


@ATTRIBUTES.entry("multi-head attention")
def _attention(before: Any, after: Any, changed: Changed) -> None:
    after.num_heads = changed(before.num_heads)
    after.embed_dim = after.out_proj.weight.shape[0]
    if after.in_proj_weight is not None:
        after.kdim = after.vdim = after.embed_dim
    else:
        after.kdim, after.vdim = after.k_proj_weight.shape[1], after.v_proj_weight.shape[1]
    after.head_dim = after.embed_dim // after.num_heads
