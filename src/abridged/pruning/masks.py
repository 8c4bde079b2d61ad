"""Masks: which weights stay. The one object with a life: it holds a user's training loop to its zeros."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from abridged.errors import InputError, expect, nearest
from abridged.pruning.collect import Collector
from abridged.pruning.plan import Plan
from abridged.pruning.regrow import Evidence, Regrowth

State = dict[str, Tensor | int | float | str]


class Masks(Mapping[str, Tensor]):
    """Boolean masks by parameter name (True = kept), bound to a module.

    >>> import abridged.pruning.prune as p
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> masks = p.prune(model, 0.75)
    >>> masks.sparsity, sorted(masks), masks["0.weight"].shape
    (0.75, ['0.weight', '2.weight'], torch.Size([4, 8]))
    """

    def __init__(
        self,
        module: nn.Module,
        masks: Mapping[str, Tensor],
        plan: Plan,
        *,
        what: str = "",
        left: tuple[str, ...] = (),
        collector: Collector | None = None,
    ) -> None:
        self.plan = plan
        self._module = module
        self._masks = dict(masks)
        self._what = what  # "3 of 3 convolutions, 1 of 1 linear layers"
        self._left = left  # lines: what was not touched, and why
        self._collector = collector or Collector()  # gathers what the criterion needs, when it needs it
        self._step = 0
        self._optimizer: Optimizer | None = None
        self._handle: RemovableHandle | None = None
        self._watch: RemovableHandle | None = None
        self._bits: dict[str, tuple[Tensor, int, Tensor]] = {}

    @classmethod
    def rebuild(cls, module: nn.Module, masks: Mapping[str, Tensor]) -> Masks:
        """Masks that are final, from boolean tensors by parameter name (such as a file of them), applied.

        Raises `InputError`, changing nothing, when they do not fit the module."""
        _check_fit(masks, module)
        rebuilt = cls(module, masks, Plan(), what=f"{len(masks)} parameters")
        rebuilt.plan = dataclasses.replace(rebuilt.plan, density=rebuilt.density)
        rebuilt.apply()
        return rebuilt

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    @property
    def density(self) -> float:
        """The fraction of the masked weights that stays."""
        return sum(int(mask.count_nonzero()) for mask in self.values()) / sum(mask.numel() for mask in self.values())

    @property
    def sparsity(self) -> float:
        """The fraction of the masked weights that is removed: 1 − density."""
        return 1 - self.density

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines on what a person should know: what was left and why, layers without a single weight."""
        empty = [name for name, mask in self.items() if not mask.any()]
        collapse = f"no weight is left in {', '.join(empty)}: nothing passes there" if empty else ""
        return self._left + ((collapse,) if collapse else ())

    @property
    def summary(self) -> tuple[str, ...]:
        """Lines that say what was touched and what was not."""
        total = sum(mask.numel() for mask in self.values())
        removed = total - sum(int(mask.count_nonzero()) for mask in self.values())
        how = self.plan.allocation if self.plan.threshold is None else f"threshold {self.plan.threshold}"
        how += " of MACs" if self.plan.of == "macs" else ""
        rule = f"{self.plan.criterion}, {self.plan.pattern}, {how}"
        if self.plan.regrow:
            rule += f"; step {min(self._step, self.plan.steps)} of {self.plan.steps}, regrowth: {self.plan.regrow}"
        elif self._step < self.plan.steps:
            rule += f"; step {self._step} of {self.plan.steps}, {self.plan.schedule}"
        return (f"{self._what}: {removed:,} of {total:,} weights removed ({removed / total:.2%}; {rule})", *self.notes)

    def __str__(self) -> str:
        return "\n".join(self.summary)

    __repr__ = __str__

    def remark(self, line: str) -> None:
        """Add a line to the notes."""
        self._left = (*self._left, line)

    def apply(self) -> None:
        """Write +0 wherever a mask says removed, in place; the parameter objects stay."""
        for name in self._masks:
            parameter = self._module.get_parameter(name).detach()
            self._masks[name] = mask = self._masks[name].to(parameter.device)
            keep(parameter, bits(mask, parameter) if self._optimizer is None else self._remembered(name, parameter))

    def hold(self, optimizer: Optimizer) -> RemovableHandle:
        """Keep zeros zero in any training loop: after each `optimizer.step()` the masks advance and are applied.

        Gradients and the optimizer's own state stay as they are: what these hold for removed weights never reaches one.
        Only where a regrowth exchanges weights does the state (momenta …) of those that go and come become zero.
        A step that a GradScaler skips does not count. The latest call is the one that holds, so that calling twice
        never steps twice. Returns a handle with `.remove()`. Raises `InputError` when the optimizer does not train
        these parameters (those with `requires_grad` off it need not), or has no momentum and the regrowth needs one.

        `copy.deepcopy((model, masks, optimizer))` is held as these are; masks that were pickled are not: hold them again.
        """
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate and others wrap the one that steps
        expect(inner, Optimizer, "hold takes the optimizer that trains the model")
        trained = {id(parameter) for group in inner.param_groups for parameter in group["params"]}
        for name in self:
            parameter = self._module.get_parameter(name)
            if parameter.requires_grad and id(parameter) not in trained:
                raise InputError(f"the optimizer does not train {name}: build it from the pruned model's parameters()")
        if self.plan.regrow and self.plan.regrow.needs_momentum and not _has_momentum(inner):
            raise InputError(
                f"regrowth by momentum, but {type(inner).__name__} has none: use SGD with momentum, Adam or AdamW, "
                "or regrow='rigl', which looks at the gradient"
            )
        self._release()
        self._optimizer = inner
        if "movement" in self.plan.needs:
            self._watch = inner.register_step_pre_hook(lambda *_: self._collector.watch(self._module, self))
        self._handle = inner.register_step_post_hook(lambda *_: None if _skipped(inner) else self.step())
        self.apply()
        return self._handle

    @property
    def held(self) -> bool:
        """Whether the steps of an optimizer keep the zeros: `hold` was called, and its handle not removed."""
        return self._handle is not None and self._handle.id in (self._handle.hooks_dict_ref() or {})

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: all but the optimizer, so that a copy is not held until `hold` is called on it."""
        apart: dict[str, Any] = {
            "_masks": dict(self._masks),
            "_bits": {},
            "_optimizer": None,
            "_handle": None,
            "_watch": None,
        }
        if not (self.plan.gradual and self.plan.needs):
            apart["_collector"] = Collector()  # nothing is left to be measured
        return {**vars(self), **apart}

    def __deepcopy__(self, memo: dict[int, Any]) -> Masks:
        """Bound to a copy of the module, and held by a copy of the optimizer where this one is held."""
        memo[id(self)] = copied = type(self).__new__(type(self))
        vars(copied).update(copy.deepcopy(self.__getstate__(), memo))
        if self.held and self._optimizer is not None:
            copied.hold(copy.deepcopy(self._optimizer, memo))
        return copied

    def step(self) -> None:
        """Advance the schedule by one optimizer step and apply the masks; `hold` calls this.

        Without regrowth a weight once removed stays removed (Zhu & Gupta 2017). Raises `InputError` when weights have
        become NaN, and where a regrowth finds no gradients."""
        self._step += 1
        due = self.plan.due(self._step)
        if self.plan.regrow or not due:
            self.apply()  # before an exchange: what comes starts from zero
        if due and self.plan.regrow:
            self._exchange()
        elif due:
            self._masks = self.plan.masks(self._module, self, self._masks, self._step, self._collector)
        if due:
            self.apply()

    def _exchange(self) -> None:
        """New masks from the gradients of the step just taken; layers that it did not train stay as they are."""
        layers = {}
        for name, held in self.items():
            parameter = self._module.get_parameter(name)
            if parameter.requires_grad and parameter.grad is not None:
                moving = momentum(self._state(parameter))
                weight, gradient = parameter.detach(), parameter.grad.detach()
                layers[name] = Evidence(name, weight, held, gradient, moving, self.plan.seed, self._step)
        if not layers:
            raise InputError(
                "regrowth needs the gradients of an optimizer step: masks.hold(optimizer), and let it step"
            )
        kept = self.plan.kept
        if kept is not None:
            kept -= sum(int(mask.count_nonzero()) for name, mask in self.items() if name not in layers)
        for name, mask in self.plan.exchanged(self._module, layers, self._step, kept).items():
            reset(self._state(self._module.get_parameter(name)), mask ^ self._masks[name])
            self._masks[name] = mask

    def _remembered(self, name: str, parameter: Tensor) -> Tensor:
        """The bits of a mask, computed once for the many steps between two changes of it."""
        mask, wide = self._masks[name], parameter.element_size()
        version = 0 if mask.is_inference() else mask._version  # counts what was written to it since
        known = self._bits.get(name)
        if known is None or known[0] is not mask or (known[1], known[2].element_size()) != (version, wide):
            known = self._bits[name] = (mask, version, bits(mask, parameter))
        return known[2]

    def _state(self, parameter: nn.Parameter) -> dict[str, Any]:
        return {} if self._optimizer is None else self._optimizer.state.get(parameter, {})

    def to(self, module: nn.Module) -> Masks:
        """Bind to another module whose parameters have the same names and shapes, apply there, and return self.

        An optimizer held so far is released, since it trains the former module. Raises `InputError`, changing
        nothing, when a parameter is missing or its shape differs."""
        _check_fit(self, module)
        self._release()
        self._module = module
        self.apply()
        return self

    def state_dict(self) -> State:
        """Everything a resumed run needs, flat: tensors "mask.NAME", the number of steps taken, and the plan."""
        plan = {f"plan.{key}": value for key, value in _flat(dataclasses.asdict(self.plan)).items()}
        masks = {f"mask.{name}": mask for name, mask in self.items()}
        learnt = {f"movement.{name}": value for name, value in self._collector.state_dict().items()}
        return {**masks, **learnt, "step": self._step, **plan}

    def load_state_dict(self, state: Mapping[str, Tensor | int | float | str]) -> None:
        """Continue exactly where `state_dict` was taken: masks, steps and plan are replaced, and applied.

        Raises `InputError`, changing nothing, when the state does not fit the module or is not one of ours."""
        masks = _under("mask.", state)
        learnt = {name: value for name, value in _under("movement.", state).items() if isinstance(value, Tensor)}
        _check_fit(masks, self._module)
        plan = _plan_of({key: value for key, value in state.items() if not key.startswith(("mask.", "movement."))})
        self._collector.check(plan.criterion, plan.needs)
        self._collector.load_state_dict(learnt)
        self._masks, self.plan, self._step = {**masks}, plan, int(state["step"])
        self.apply()

    def _release(self) -> None:
        for handle in (self._handle, self._watch):
            if handle is not None:
                handle.remove()
        self._handle = self._watch = self._optimizer = None
        self._bits.clear()


# --- zeros --------------------------------------------------------------------------------------------------------------

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def bits(mask: Tensor, values: Tensor) -> Tensor:
    """All ones where a mask keeps, all zeros where not, in an integer type as wide as the values."""
    return mask.to(INTEGERS[values.element_size()]).neg_()


def keep(values: Tensor, kept: Tensor) -> None:
    """Write +0, all bits zero, wherever `kept` (from `bits`) does not keep; NaN goes too, and what stays keeps every bit.

    Some fifty times faster on a CPU than `masked_fill_`, which branches on each element.

    >>> values = torch.tensor([-1.5, float("nan"), -0.0])
    >>> keep(values, bits(torch.tensor([True, False, False]), values))
    >>> values
    tensor([-1.5000,  0.0000,  0.0000])
    """
    values.view(kept.dtype).bitwise_and_(kept)


def _under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


# --- the optimizer's state --------------------------------------------------------------------------------------------


def momentum(state: Mapping[str, Any]) -> Tensor | None:
    """What an optimizer remembers of a parameter's gradients: SGD's buffer, Adam's m / (√v + ε); None where nothing."""
    if "exp_avg" in state:
        first: Tensor = state["exp_avg"]
        second: Tensor | None = state.get("exp_avg_sq")
        return first if second is None else first / (second.sqrt() + 1e-8)
    buffer: Tensor | None = state.get("momentum_buffer")
    return buffer


def reset(state: Mapping[str, Any], changed: Tensor) -> None:
    """Write zero into every tensor of an optimizer's state of one parameter, wherever a weight went or came."""
    for value in state.values():
        if isinstance(value, Tensor) and value.shape == changed.shape:
            value.masked_fill_(changed.to(value.device), 0)


def _has_momentum(optimizer: Optimizer) -> bool:
    return any(group.get("momentum") or "betas" in group for group in optimizer.param_groups)


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer, told by a GradScaler of infinite gradients, has just done nothing."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


# --- states to resume from ----------------------------------------------------------------------------------------------


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """
    >>> _flat({"every": 1, "regrow": {"grow": "random"}, "threshold": None})
    {'every': 1, 'regrow.grow': 'random'}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = _flat(value) if isinstance(value, Mapping) else None
        if nested is not None:
            flat |= {f"{key}.{inner}": item for inner, item in nested.items()}
        elif value is not None:
            flat[key] = value
    return flat


def _check_fit(masks: Mapping[str, Any], module: nn.Module) -> None:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    if not masks:
        raise InputError("this state holds no masks: it was not made by Masks.state_dict()")
    for name, mask in masks.items():
        if name not in parameters:
            raise InputError(f"masks: the module has no parameter {name}{nearest(name, parameters)}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise InputError(f"masks: {name} is no boolean tensor")
        if mask.shape != parameters[name].shape:
            shapes = f"{tuple(mask.shape)}, the module's parameter {tuple(parameters[name].shape)}"
            raise InputError(f"masks: {name} has shape {shapes}")


def _plan_of(scalars: Mapping[str, Any]) -> Plan:
    options = {key.removeprefix("plan."): value for key, value in scalars.items() if key != "step"}
    kinds = {"density": float, "threshold": float, "steps": int, "every": int, "seed": int, "kept": int}
    kinds |= {"regrow.fraction": float, "regrow.until": float}
    known = {field.name for field in dataclasses.fields(Plan)} - {"regrow"}
    known |= {f"regrow.{field.name}" for field in dataclasses.fields(Regrowth)}
    sound = type(scalars.get("step")) is int and all(
        key in known and isinstance(value, kinds.get(key, str)) for key, value in options.items()
    )
    if not sound or options.get("every", 1) < 1 or ("density" in options) == ("threshold" in options):
        raise InputError("this state was not made by Masks.state_dict() of this version: its plan cannot be read")
    way = {key.removeprefix("regrow."): options.pop(key) for key in list(options) if key.startswith("regrow.")}
    return Plan(**options, regrow=Regrowth(**way) if way else None)
