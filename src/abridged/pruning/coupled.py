"""The coupling of a model, found once for the calls that follow each other: `prune`, then `shrink`."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from abridged.errors import UnsupportedError
from abridged.graph.capture import Example, capture
from abridged.graph.structure import flatten
from abridged.pruning.coupling.groups import Coupling, couple

_LAST: WeakKeyDictionary[nn.Module, tuple[Hashable, Coupling]] = WeakKeyDictionary()


def coupled(model: nn.Module, example: Example, *, exact: bool) -> Coupling:
    """The coupling of a model's channels.

    The last one found is kept as long as the model lives. It is taken again where the example is alike and the model
    consists of the same modules with the same attributes and tensors, whose values may be others: exporting a large network
    takes longer than cutting it. What that overlooks, the trial of every cut finds."""
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedError("a scripted module cannot be followed or cut: give the nn.Module that it was made from")
    key = exact, _alike(example), _made_of(model)
    kept = _LAST.get(model)
    if kept is None or kept[0] != key:
        kept = key, couple(capture(model, example), exact=exact)
        _LAST[model] = kept
    return kept[1]


def _alike(example: Any) -> Hashable:
    return tuple((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else repr(x) for x in flatten(example)[0])


def _made_of(model: nn.Module) -> Hashable:
    """Its modules, what each holds beside tensors with a key, and where these lie. Values count of tensors without one."""
    keyed = model.state_dict(keep_vars=True)
    tensors = [(name, id(t), t.data_ptr(), t.shape, t.dtype) for name, t in keyed.items()]
    tensors += [(name, *_said(t)) for name, t in model.named_buffers() if name not in keyed]
    modules = (
        (path, id(module), type(module), *((name, _said(value)) for name, value in vars(module).items()))
        for path, module in model.named_modules()
    )
    return *tensors, *modules


def _said(value: Any) -> Any:
    """An attribute as it has to be found again."""
    if isinstance(value, Tensor):
        return id(value), value.data_ptr(), value._version
    if isinstance(value, int | float | str | bool | type(None)):
        return value
    if isinstance(value, list | tuple):
        return tuple(map(_said, value))
    return len(value) if isinstance(value, dict) else id(value)
