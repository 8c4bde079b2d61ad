"""Modules that keep several matrices, or a transposed one, as parameters of their own: opened, each is a linear layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from torch import nn

from abridged.errors import UnsupportedError
from abridged.factorization.attention import attention
from abridged.factorization.layers import hooked, owners_of, paths_of, put
from abridged.factorization.recurrent import cell, linear, recurrent
from abridged.tables import Table

# "module.Class" of a module → one that computes the same, whose products are linear layers. A subclass may compute
# something else. Raises `UnsupportedError`, with the reason, for a module that has no such form.
OPENINGS: Table[Callable[[Any], nn.Module]] = Table("module that can be opened")
for _name in ("LSTM", "GRU", "RNN"):
    OPENINGS.entry(f"torch.nn.{_name}")(recurrent)
    OPENINGS.entry(f"torch.nn.{_name}Cell")(cell)
OPENINGS.entry("torch.nn.MultiheadAttention")(attention)


@OPENINGS.entry("transformers.pytorch_utils.Conv1D")
def _conv1d(layer: Any) -> nn.Module:
    """GPT-2's linear layer, whose weight is (I, O)."""
    weight = nn.Parameter(layer.weight.detach().T.contiguous(), layer.weight.requires_grad)
    return linear(weight, layer.bias)


BASES = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell, nn.MultiheadAttention)

Before = dict[tuple[str, ...], nn.Module]  # all paths of a module that was opened → the module


def opened(model: nn.Module) -> tuple[nn.Module, Before, dict[str, str]]:
    """The model with all that can be opened in its open form, what was there before, and by path the reason why something
    is left as it is. Changes the model."""
    owners = owners_of(model)
    before: Before = {}
    left: dict[str, str] = {}
    for module, paths in paths_of(model).items():
        opening = _opening(module)
        reason = _sealed(module, owners) if opening else _unknown(module)
        try:
            form = opening(module) if opening and not reason else None
        except UnsupportedError as error:
            form, reason = None, str(error)
        if form is not None:
            before[tuple(paths)] = module
            model = put(model, paths, form.train(module.training))
        elif reason:
            left[paths[0]] = reason
    return model, before, left


def closed(model: nn.Module, before: Before, used: Iterable[str]) -> nn.Module:
    """The model with what was there before put back, but where one of the paths in `used` lies inside."""
    used = list(used)
    for paths, module in before.items():
        if not any(inside(each, path) for each in used for path in paths):
            model = put(model, paths, module)
    return _unfused(model)


def inside(path: str, outer: str) -> bool:
    """
    >>> inside("rnn.layer0.input", "rnn"), inside("rnn2", "rnn"), inside("head", "head"), inside("layer0.input", "")
    (True, False, True, True)
    """
    return path == outer or path.startswith(f"{outer}." if outer else "")


def _opening(module: nn.Module) -> Callable[[Any], nn.Module] | None:
    kind = type(module)
    place = "torch.nn" if getattr(nn, kind.__name__, None) is kind else kind.__module__
    name = f"{place}.{kind.__name__}"
    if name not in OPENINGS:
        return None
    return OPENINGS[name]


def _sealed(module: nn.Module, owners: Mapping[int, Collection[nn.Module]]) -> str:
    """Why a module cannot be opened, or ''."""
    if hooked(module):
        return "hooks, which would be lost"
    own = [parameter for inner in module.modules() for parameter in inner.parameters(recurse=False)]
    return "weight shared with another layer" if any(len(owners[id(p)]) > 1 for p in own) else ""


def _unknown(module: nn.Module) -> str:
    """The reason for a module that is nearly one that can be opened, or ''."""
    base = next((base.__name__ for base in BASES if isinstance(module, base)), "")
    article = "an" if base.startswith(("LSTM", "RNN")) else "a"
    return f"{type(module).__name__}, {article} {base} that may compute something else" if base else ""


def _unfused(model: nn.Module) -> nn.Module:
    """Encoder layers of torch whose parts were replaced go the way of their modules, not of the fused kernel that reads
    `linear1.weight` and the like."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            parts = (module.self_attn, nn.MultiheadAttention), (module.linear1, nn.Linear), (module.linear2, nn.Linear)
            if not all(isinstance(part, kind) for part, kind in parts):
                module.activation_relu_or_gelu = 0
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and not all(_fused(layer) for layer in module.layers):
            module.use_nested_tensor = False
    return model


def _fused(layer: nn.Module) -> bool:
    return bool(getattr(layer, "activation_relu_or_gelu", 0))
