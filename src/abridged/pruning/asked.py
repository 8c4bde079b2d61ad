"""What is asked of `prune`, checked by the options alone: before a model is looked at, and when a recipe is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, SupportsIndex

from abridged.errors import InputError, UnsupportedError, expect
from abridged.pruning.agents import AGENTS
from abridged.pruning.channels import Goal, check_goal, refuse, refuse_learnt
from abridged.pruning.patterns import PATTERNS, STRUCTURED
from abridged.pruning.plan import Plan
from abridged.pruning.regrow import Regrowth, regrowth
from abridged.pruning.schedules import SCHEDULES
from abridged.pruning.sensitivity import Sensitivity
from abridged.pruning.solvers import SOLVERS

Allocation = str | Mapping[str, float] | Sensitivity | None


@dataclass(frozen=True)
class Amount:
    """How much goes: exactly one of the three is set, or none where an allocation says it layer by layer."""

    sparsity: float | None = None
    threshold: float | None = None
    keep: int | None = None

    @property
    def given(self) -> list[str]:
        return [name for name in ("sparsity", "threshold", "keep") if getattr(self, name) is not None]

    def check(self) -> None:
        """Raises `InputError` for several, for none and for what is out of range."""
        if len(self.given) != 1:
            raise InputError(
                f"give exactly one of sparsity, threshold and keep, not {' and '.join(self.given) or 'none'}"
            )
        ((name, high),) = ((n, 1.0 if n == "sparsity" else math.inf) for n in self.given)
        value = getattr(self, name)
        if name == "keep":
            whole("keep", value, 0)
        elif isinstance(value, bool) or not isinstance(value, Real):
            raise InputError(f"{name} must be a number, not {value!r}")
        elif not 0 <= float(value) <= high or math.isinf(value):
            raise InputError(f"{name} must be {'in [0, 1]' if high == 1 else 'finite and not negative'}, not {value!r}")
        if name == "sparsity" and value == 0:
            raise InputError("sparsity=0 removes nothing: ask for more")

    def fixed(self, pattern: str, sparsity: float) -> Amount:
        """The same with the sparsity that a pattern fixes."""
        other = self.sparsity is not None and not math.isclose(self.sparsity, sparsity)
        if self.keep is not None or other:
            raise InputError(
                f"pattern '{pattern}' removes {sparsity:.4g} of the weights: leave the amount out, or say so"
            )
        return self if self.given else replace(self, sparsity=sparsity)

    def density(self, total: int) -> float | None:
        """The density to reach; None where a threshold decides."""
        if self.keep is None:
            return None if self.sparsity is None else 1 - float(self.sparsity)
        if self.keep > total:
            raise InputError(f"keep={self.keep} is more than the {total} weights that can be pruned")
        if self.keep == total:
            raise InputError(f"keep={self.keep} removes nothing, these are all the weights: ask for more")
        return int(self.keep) / total


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of `prune` that need no model to be understood."""

    sparsity: float | None = None
    threshold: float | None = None
    keep: int | None = None
    macs: float | None = None
    parameters: float | None = None
    of: str = "weights"
    criterion: str = "magnitude"
    pattern: str = "unstructured"
    allocation: Allocation = None
    schedule: str = "one-shot"
    regrow: str | Mapping[str, Any] | Regrowth | None = None
    steps: int | None = None
    every: int | None = None
    solver: str = "none"
    reestimate: bool = False
    exact: bool = True
    round_to: int = 1
    include: tuple[str, ...] = ("*",)

    def check(self) -> None:
        """Raises `InputError` or `UnsupportedError` for what does not go together, whatever the model."""
        if self.structured:
            self.goal()
        else:
            self.plan()

    @property
    def structured(self) -> bool:
        """Whether whole channels go."""
        return self.pattern in STRUCTURED

    @property
    def label(self) -> str:
        """The name of the allocation."""
        if isinstance(self.allocation, Mapping):
            return "per layer"
        if isinstance(self.allocation, Sensitivity):
            return "sensitivity"
        free = not self.structured and PATTERNS[self.pattern].density is None
        return self.allocation or ("global" if free else "uniform")

    def amount(self) -> Amount:
        """How many weights go. Raises `InputError` for what is out of range."""
        amount = Amount(self.sparsity, self.threshold, self.keep)
        if isinstance(self.allocation, Mapping):
            _check_globs(self.allocation, amount, self.include)
            return amount
        fixed = PATTERNS[self.pattern].density
        amount = amount if fixed is None else amount.fixed(self.pattern, 1 - fixed)
        amount.check()
        return amount

    def plan(self) -> Plan:
        """The rules by which weights go, without the density, which may depend on the model."""
        given = {"macs": self.macs, "parameters": self.parameters}
        given |= {"round_to": None if self.round_to == 1 else self.round_to, "exact": None if self.exact else False}
        refuse(f"'{self.pattern}' (only 'channel' and 'heads' do)", given)
        if self.of not in ("weights", "macs"):
            raise InputError(f"of must be 'weights' or 'macs', not {self.of!r}: what the sparsity is a fraction of")
        amount, way = self.amount(), regrowth(self.regrow)
        length, interval = _length(self.schedule, self.steps, self.every, self.threshold, way)
        plan = Plan(
            threshold=None if amount.threshold is None else float(amount.threshold), criterion=self.criterion,
            pattern=self.pattern, allocation=self.label, schedule=self.schedule, steps=length, every=interval,
            regrow=way, of=self.of,
        )  # fmt: skip
        plan.check()
        self._check_layers(amount)
        SOLVERS[self.solver]
        if (self.solver != "none" or self.reestimate) and (plan.gradual or plan.regrow):
            raise InputError("a solver repairs what is pruned at once: leave schedule at 'one-shot' and regrow out")
        return plan

    def _check_layers(self, amount: Amount) -> None:
        """Raises `InputError` where the amount cannot be divided among layers so."""
        if amount.keep is not None and self.of != "weights":
            raise InputError("keep counts weights: give sparsity with of='macs'")
        if amount.keep is not None and self.label not in ("global", "sensitivity"):
            raise InputError(f"keep counts over all layers: use allocation='global', or sparsity with '{self.label}'")
        if amount.threshold is not None and self.label == "sensitivity":
            raise InputError("a threshold leaves nothing to allocate: give sparsity with allocation='sensitivity'")
        if self.label in AGENTS and (self.of != "macs" or amount.sparsity is None):
            raise InputError(f"allocation '{self.label}' searches under a budget of MACs: give sparsity and of='macs'")

    def goal(self) -> Goal:
        """How many channels go, or how much is left of what."""
        given: dict[str, Any] = {"schedule": None if self.schedule == "one-shot" else self.schedule}
        given |= {"of": None if self.of == "weights" else self.of}
        given |= {name: getattr(self, name) for name in ("threshold", "keep", "regrow", "steps", "every")}
        refuse(self.pattern, given)
        SOLVERS[self.solver]
        refuse_learnt(self.criterion)
        goal = Goal(self.sparsity, self.macs, self.parameters)
        if isinstance(self.allocation, Mapping):
            check_goal(goal, self.allocation)
            _check_globs(self.allocation, Amount(), self.include)
        elif self.label == "sensitivity":
            raise UnsupportedError(
                "sensitivity curves are of single layers, channels are coupled: use 'uniform', 'global', an agent such as"
                " 'ddpg', or a mapping of globs to sparsities"
            )
        elif self.label in AGENTS:
            if self.macs is None or self.sparsity is not None or self.parameters is not None:
                raise InputError(f"allocation '{self.label}' searches under a budget of MACs: give macs= alone")
        else:
            check_goal(goal, self.label)
            for name, all_stay in (("sparsity", 0), ("macs", 1), ("parameters", 1)):
                if getattr(goal, name) == all_stay:
                    mend = "more" if name == "sparsity" else "a smaller share"
                    raise InputError(f"{name}={getattr(goal, name)} removes nothing: ask for {mend}")
        return goal


def _check_globs(allocation: Mapping[str, Any], amount: Amount, include: tuple[str, ...]) -> None:
    """Raises `InputError` for globs that do not say the sparsity of each layer, and nothing beside them."""
    if given := amount.given:
        raise InputError(f"allocation says what to prune and how much: leave out {given[0]}")
    if include not in (("*",), ()):
        raise InputError("allocation says what to prune and how much: leave out include")
    if not allocation:
        raise InputError("allocation names no layer: name some, or give exactly one of sparsity, threshold and keep")
    for key, value in allocation.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
            raise InputError(f"allocation['{key}'] must be a sparsity in [0, 1], not {value!r}")
    if not any(allocation.values()):
        raise InputError("allocation removes nothing, since every sparsity in it is 0: ask for more")


def kinds(allocation: Any, seed: Any, exact: Any, reestimate: Any, say: Any) -> None:
    """Raises `InputError` for arguments of the wrong kind that nothing else looks at."""
    expect(
        allocation, (str, Mapping, Sensitivity, type(None)),
        "allocation must be a name, a mapping of globs to sparsities, or what ab.sensitivity gave",
    )  # fmt: skip
    whole("seed", seed, 0)
    expect(exact, bool, "exact must be True or False")
    expect(reestimate, bool, "reestimate must be True or False")
    if say is not None and not callable(say):
        raise InputError(f"say must be a function of a line, or None for silence, not {say!r}")


def whole(name: str, value: Any, low: int) -> int:
    """A whole number. Raises `InputError` for what is none, and for one that is too small."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or int(value) < low:
        raise InputError(f"{name} must be a whole number from {low}, not {value!r}")
    return int(value)


def _length(
    schedule: str, steps: int | None, every: int | None, threshold: float | None, way: Regrowth | None
) -> tuple[int, int]:
    """Optimizer steps until the end and between two choices."""
    at_once = SCHEDULES[schedule](0.0) == 1
    if way and not at_once:
        raise InputError(f"regrow keeps the sparsity constant: leave schedule at 'one-shot', not '{schedule}'")
    if way and steps is None:
        raise InputError("regrow needs steps: how many optimizer steps the training takes")
    if at_once and not way:
        if steps is not None or every is not None:
            raise InputError(f"schedule '{schedule}' is done at once: leave out steps and every, or choose 'cubic'")
        return 0, 1
    if steps is None:
        raise InputError(f"schedule '{schedule}' needs steps: how many optimizer steps until the whole sparsity")
    if threshold is not None and not way:
        raise InputError(f"a threshold has no course in time: give sparsity or keep with schedule '{schedule}'")
    length = whole("steps", steps, 1)
    return length, max(1, length // 100) if every is None else whole("every", every, 1)
