"""The `loss` of a distillation, in whatever form it is given, as a list of weighted terms."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from abridged.distillation.courses import is_number
from abridged.distillation.losses import LOSSES
from abridged.distillation.table import Needs, needs
from abridged.errors import InputError, nearest
from abridged.training.options import whole

POSITIVE = ("temperature", "tau")  # hyperparameters that divide
Layers = str | Sequence[str] | Mapping[str, str]  # the student's module path, or paths → the teacher's


@dataclass(frozen=True)
class Term:
    """One loss of the sum: its name in LOSSES, its weight, the layers that it reads, the teacher (its number; None: each
    of them), and hyperparameters of its own."""

    name: str
    weight: float = 1.0
    layers: Layers | None = None
    teacher: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs(self) -> Needs:
        return needs(self.name)

    def hyper(self, temperature: float) -> dict[str, Any]:
        """What the function is called with, its own options before the common temperature."""
        common = {"temperature": temperature} if "temperature" in hyperparameters(self.name) else {}
        return {**common, **self.options}


def hyperparameters(name: str) -> dict[str, Any]:
    """A loss's hyperparameters and their defaults.

    >>> hyperparameters("rkd-distance")
    {'scale': 25.0}
    """
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def terms(loss: Any, layers: Layers | None = None) -> list[Term]:
    """From a name, {name: weight}, or a list of names, {name: weight} and {"name": …, "weight": …, "layers": …, option: …}.

    `layers` are those of every term that reads layers and names none. Raises `InputError` for unknown names and options,
    for weights that are not positive, for layers that are missing and for layers that nothing reads.

    >>> [(term.name, term.weight) for term in terms({"kd": 0.7, "attention": 0.3}, layers="layer3")]
    [('kd', 0.7), ('attention', 0.3)]
    """
    found = [term for item in (loss if isinstance(loss, (list, tuple)) else [loss]) for term in _parsed(item)]
    if not found:
        raise InputError("loss: an empty list names no loss: give one of " + ", ".join(LOSSES))
    if layers and not any(term.needs.layers for term in found):
        raise InputError(
            f"layers are given, but loss '{found[0].name}' reads none: add a loss on features, or leave them"
        )
    return [_complete(term, layers) for term in found]


def _parsed(item: Any) -> list[Term]:
    if isinstance(item, Term):
        return [item]
    if isinstance(item, str):
        return [Term(item)]
    if not isinstance(item, Mapping):
        raise InputError(f"loss must be a name, {{name: weight}} or a list of them, not {item!r}")
    if "name" not in item:
        return [Term(str(name), weight) for name, weight in item.items()]
    for key in item:
        if not isinstance(key, str):
            raise InputError(f"loss: an option's name is a string, not {key!r}")
    own = {key: item[key] for key in ("name", "weight", "layers", "teacher") if key in item}
    return [Term(**own, options={key: value for key, value in item.items() if key not in own})]


def _complete(term: Term, layers: Layers | None) -> Term:
    if not isinstance(term.name, str):
        raise InputError(f"loss: a loss is named by a string, not {term.name!r}")
    if term.teacher is not None and not whole(term.teacher):
        raise InputError(f"loss '{term.name}': teacher is the number of one, from 0, not {term.teacher!r}")
    known = hyperparameters(term.name)
    for key, value in term.options.items():
        if key not in known:
            raise InputError(f"loss '{term.name}' has no option '{key}'{nearest(key, known)}")
        if isinstance(known[key], (int, float)) and not finite(value):
            raise InputError(f"loss '{term.name}': {key} must be a number, not {value!r}")
        if key in POSITIVE and value <= 0:
            raise InputError(f"loss '{term.name}': {key} must be positive, not {value}")
        if isinstance(known[key], float) and value < 0:
            raise InputError(f"loss '{term.name}': {key} must be at least 0, not {value}")
    if not finite(term.weight) or term.weight <= 0:
        raise InputError(f"loss '{term.name}': its weight must be positive, not {term.weight!r}")
    if not term.needs.layers:
        if term.layers:
            raise InputError(f"loss '{term.name}' reads no layers: leave them out")
        return term
    chosen = term.layers or layers
    if not chosen:
        example = "layers='layer3'" if not term.needs.teacher else "layers={'student.path': 'teacher.path'}"
        raise InputError(f"loss '{term.name}' reads features of layers: name them, {example}")
    return Term(term.name, float(term.weight), chosen, term.teacher, term.options)


def finite(value: Any) -> bool:
    """Whether it is a plain number, neither NaN nor infinite."""
    return is_number(value) and math.isfinite(value)
