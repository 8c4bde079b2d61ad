"""What each kind of step can be told: one class of options per kind, in STEPS. Imports torch only to look a name up."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal, SupportsIndex

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

from abridged.distillation import courses
from abridged.errors import InputError, UnsupportedError
from abridged.tables import Table


def _index(given: Any) -> Any:
    """Whole numbers of any library as Python's; all else as it is."""
    whole = isinstance(given, SupportsIndex) and not isinstance(given, bool)
    return operator.index(given) if whole else given


# Strict: a truth value or a text is no number. A whole number is one wherever a number is asked for.
Number = Annotated[float, Field(strict=True)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Positive = Annotated[Number, Field(gt=0)]
Whole = Annotated[StrictInt, BeforeValidator(_index)]
OneOrMore = Annotated[Whole, Field(ge=1)]
ONE_OR_MORE = BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)
Names = Annotated[tuple[str, ...], ONE_OR_MORE]  # one name or glob, or a list of them
STEPS_TO_COME = 100  # of a training whose length is not known yet
AMOUNTS = ("sparsity", "threshold", "keep", "macs", "parameters")


def _known(module: str, table: str) -> AfterValidator:
    """Validates that a name, or each of several, stands in a table; the table's module (and torch with it) is imported only then."""

    def check(given: Any) -> Any:
        for name in (given,) if isinstance(given, str) else given:
            _entry(module, table)[name]
        return given

    return AfterValidator(check)


def _entry(module: str, name: str) -> Any:
    """Something of a module that is imported only now, and torch with it."""
    return getattr(importlib.import_module(f"abridged.{module}"), name)


def _pattern(name: str) -> str:
    if name not in _entry("pruning.patterns", "STRUCTURED"):
        _entry("pruning.patterns", "PATTERNS")[name]
    return name


def _allocation(given: Any) -> Any:
    if not isinstance(given, str | dict):
        raise ValueError(f"must be a name, or a mapping of globs to sparsities, not {given!r}")
    for glob, sparsity in given.items() if isinstance(given, dict) else ():
        if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity <= 1:
            raise ValueError(f"'{glob}' must have a sparsity from 0 to 1, not {sparsity!r}")
    if isinstance(given, str) and given != "sensitivity" and given not in _entry("pruning.agents", "AGENTS"):
        _entry("pruning.allocation", "ALLOCATIONS")[given]
    return given


def _regrow(given: Any) -> Any:
    _entry("pruning.regrow", "regrowth")(given)
    return given


def _course(check: Callable[[Any], Any]) -> AfterValidator:
    """Validates a number or its course in time."""

    def sound(value: Any) -> Any:
        check(value)
        return value

    return AfterValidator(sound)


class Step(BaseModel):
    """Options of one step. A new kind of step is a subclass in STEPS and a function in `steps.RUNNERS`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    kind: ClassVar[str]

    @property
    def title(self) -> str:
        """The step in a few words, for people."""
        return self.kind.capitalize()


STEPS: Table[type[Step]] = Table("step")


class Training(Step):
    """Options of every step that trains."""

    epochs: OneOrMore = 10
    lr: Positive = 1e-3
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: Annotated[Number, Field(ge=0)] = 1e-4
    momentum: Fraction = 0.9  # sgd only
    batch_size: OneOrMore = 64
    clip: Positive | None = 1.0  # largest gradient norm
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


@STEPS.entry("train")
class Train(Training):
    """Train the dense model from scratch, before anything is compressed."""

    kind = "train"

    @property
    def title(self) -> str:
        return f"Train from scratch ({self.epochs} epochs)"


class Teaching(Training):
    """Training with or without the uncompressed network as the teacher."""

    teacher: Literal["dense", "none"] = "dense"
    temperature: Annotated[Any, _course(courses.temperature)] = 4.0  # or {linear: [from, to]}, {cosine: [from, to]}
    alpha: Annotated[Any, _course(courses.alpha)] = 0.7  # weight of the teacher's part; a course too
    loss: Any = "kd"  # a name, {name: weight}, or a list of them
    layers: str | list[str] | dict[str, str] | None = (
        None  # of losses on features: the student's, or student's: teacher's
    )

    @model_validator(mode="after")
    def _terms(self) -> Teaching:
        _entry("distillation.terms", "terms")(self.loss, self.layers)
        return self


@STEPS.entry("prune")
class Prune(Teaching):
    """Set weights to zero, by exactly one amount. With a schedule or regrow, while training `epochs` epochs."""

    kind = "prune"
    epochs: Annotated[Whole, Field(ge=0)] = 10
    sparsity: Fraction | None = None
    threshold: Annotated[Number, Field(ge=0)] | None = None
    keep: Annotated[Whole, Field(ge=0)] | None = None
    macs: Fraction | None = None  # share left; of the patterns channel and heads, as `parameters` is
    parameters: Fraction | None = None
    of: Literal["weights", "macs"] = "weights"  # what the sparsity is a fraction of
    criterion: Annotated[str, _known("pruning.criteria", "CRITERIA")] = "magnitude"
    pattern: Annotated[str, AfterValidator(_pattern)] = "unstructured"
    allocation: Annotated[Any, AfterValidator(_allocation)] = "global"  # or {glob: sparsity}, or an agent
    schedule: Annotated[str, _known("pruning.schedules", "SCHEDULES")] = "cubic"
    regrow: Annotated[Any, AfterValidator(_regrow)] = None  # a name, or the four choices
    every: OneOrMore | None = None  # training updates between two choices
    solver: Annotated[str, _known("pruning.solvers", "SOLVERS")] = "none"  # repairs the weights that stay
    reestimate: StrictBool = False  # the statistics of batch norms, too
    exact: StrictBool = True  # of channels: False narrows what norms read
    round_to: OneOrMore = 1  # channels of each group
    ramp: Annotated[Number, Field(gt=0, le=1)] = 0.7  # share of the training until the final sparsity is reached
    include: Names = ("*",)
    exclude: Names = ()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        """Channels come at once, and regrowth starts with all zeros; N:M says itself how much goes."""
        if not isinstance(given, dict):
            return given
        filled, pattern = dict(given), given.get("pattern")
        if isinstance(pattern, int):  # YAML 1.1 reads 2:4 as a number of base 60
            raise ValueError("write the pattern in quotes, such as pattern: '2:4'")
        channels = isinstance(pattern, str) and pattern in _entry("pruning.patterns", "STRUCTURED")
        if channels or given.get("regrow") is not None:
            filled.setdefault("schedule", "one-shot")
        density = _entry("pruning.patterns", "density")(pattern) if isinstance(pattern, str) else None
        if channels or density is not None:
            filled.setdefault("allocation", "uniform")
        if density is not None and not any(filled.get(name) is not None for name in AMOUNTS):
            filled["sparsity"] = 1 - density
        return filled

    @model_validator(mode="after")
    def _one_amount(self) -> Prune:
        amounts = sum(getattr(self, name) is not None for name in AMOUNTS)
        if isinstance(self.allocation, dict):
            if amounts:
                raise ValueError("an allocation by globs says how much goes: leave sparsity and the other amounts out")
        elif amounts != 1:
            raise ValueError("give exactly one of sparsity, threshold, keep (of channels also macs, parameters)")
        if self.threshold is not None and self.schedule != "one-shot":
            raise ValueError("a threshold has no course in time: add schedule: one-shot")
        if self.keep is not None and self.allocation not in ("global", "sensitivity"):
            raise ValueError("keep counts over all layers: leave allocation at global")
        return self

    @model_validator(mode="after")
    def _time(self) -> Prune:
        if self.schedule != "one-shot" and (self.solver != "none" or self.reestimate):
            raise ValueError("a solver repairs what is pruned at once: add schedule: one-shot")
        if self.schedule != "one-shot" and self.regrow is not None:
            raise ValueError("regrow keeps the sparsity constant: leave schedule out")
        if self.schedule != "one-shot" and self.epochs == 0:
            raise ValueError(
                f"schedule '{self.schedule}' prunes while training: give epochs ≥ 1, or schedule: one-shot"
            )
        if self.regrow is not None and self.epochs == 0:
            raise ValueError("regrow exchanges weights while training: give epochs ≥ 1")
        return self

    @model_validator(mode="after")
    def _together(self) -> Prune:
        """What `prune` refuses by its options alone is refused before anything is trained."""
        asked = _entry("pruning.asked", "Asked")
        options = {field.name: getattr(self, field.name, None) for field in fields(asked)}
        options["steps"] = STEPS_TO_COME if self.regrow is not None or self.schedule != "one-shot" else None
        try:
            asked(**options).check()
        except UnsupportedError as error:
            raise InputError(str(error)) from None
        return self

    @property
    def structured(self) -> bool:
        """Whether whole channels go, which `shrink` removes."""
        return self.pattern != "unstructured" and self.pattern in _entry("pruning.patterns", "STRUCTURED")

    @property
    def title(self) -> str:
        how = [self.criterion] + ([] if self.pattern == "unstructured" else [self.pattern])
        how += ["per layer" if isinstance(self.allocation, dict) else self.allocation]
        how += [
            self.schedule if self.regrow is None else f"regrow {self.regrow if isinstance(self.regrow, str) else ''}"
        ]
        how += [] if self.solver == "none" else [self.solver]
        how += ["distilled"] if self.epochs and self.teacher == "dense" else []
        return f"Prune {self._amount} ({', '.join(part.strip() for part in how)})"

    @property
    def _amount(self) -> str:
        if self.sparsity is not None:
            return f"{100 * self.sparsity:.4g} %{' of the MACs' if self.of == 'macs' else ''}"
        if self.threshold is not None:
            return f"|w| < {self.threshold:g}"
        if self.keep is not None:
            return f"all but {self.keep:,} weights"
        if self.macs is not None:
            return f"to {100 * self.macs:.4g} % of the MACs"
        return "layer by layer" if self.parameters is None else f"to {100 * self.parameters:.4g} % of the parameters"


@STEPS.entry("shrink")
class Shrink(Step):
    """Remove for good the channels that a prune step before made zero; the network is a smaller one then."""

    kind = "shrink"
    exact: StrictBool = True  # False narrows what norms read, as the prune step before does with exact: false

    @property
    def title(self) -> str:
        return "Shrink: remove the channels that are zero"


def _rank(given: Any) -> Any:
    if given is not None:
        _entry("factorization.amount", "Amount")(given)
    return given


Rank = StrictInt | StrictStr | tuple[StrictInt, ...]


@STEPS.entry("factorize")
class Factorize(Step):
    """Replace layers by products of smaller ones: exactly one of rank, energy, ratio. `measured`: only where the target gains."""

    kind = "factorize"
    method: Annotated[str | tuple[str, ...], _known("factorization.methods", "METHODS")] = "svd"
    rank: Annotated[Rank | dict[str, Rank] | None, BeforeValidator(_rank)] = None
    energy: Annotated[Number, Field(gt=0, le=1)] | None = None
    ratio: Annotated[Number, Field(gt=0, lt=1)] | None = None
    of: Literal["parameters", "macs", "seconds"] = "parameters"
    measured: StrictBool = False  # a layer whose factors are not faster on the recipe's target stays dense
    calibrate: StrictBool = False  # the last factors are fitted to what the layers see of the training data
    lose_zeros: StrictBool = False  # allows factors of weights that were pruned: they are dense again
    include: Names = ("*",)
    exclude: Names = ()

    @model_validator(mode="after")
    def _one_amount(self) -> Factorize:
        timed = (lambda graph: 0.0) if self.of == "seconds" else None  # the recipe's target, later
        amount = _entry("factorization.amount", "Amount")(self.rank, self.energy, self.ratio, self.of, timed)
        _entry("factorization.methods", "chosen")(self.method, amount)
        return self

    @property
    def title(self) -> str:
        amount = f"rank {self.rank}" if self.energy is None else f"{100 * self.energy:.4g} % of the energy"
        if self.ratio is not None:
            amount = f"{100 * self.ratio:.4g} % of the {'MACs' if self.of == 'macs' else self.of} left"
        return f"Factorize ({', '.join(self.methods)}, {amount})"

    @property
    def methods(self) -> tuple[str, ...]:
        """One method, or several that compete."""
        return (self.method,) if isinstance(self.method, str) else self.method


@STEPS.entry("distill")
class Distill(Teaching):
    """Train the compressed network on the labels and on the soft labels of the uncompressed one."""

    kind = "distill"
    teacher: Literal["dense"] = "dense"

    @property
    def title(self) -> str:
        return f"Distil from the dense network ({self.epochs} epochs, T = {courses.told(self.temperature)})"


@STEPS.entry("finetune")
class Finetune(Training):
    """Train the compressed network on the labels alone."""

    kind = "finetune"

    @property
    def title(self) -> str:
        return f"Fine-tune ({self.epochs} epochs)"


@STEPS.entry("deploy")
class Deploy(Step):
    """Build the artifact for a target. Last; `--target` on the command line replaces it.

    `beside`: targets on which every row's network is also built and measured, in the same interleaved run."""

    kind = "deploy"
    target: Annotated[str, _known("targets", "TARGETS")] = "onnxruntime"
    threads: OneOrMore | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    beside: Annotated[tuple[Annotated[str, _known("targets", "TARGETS")], ...], ONE_OR_MORE] = ()

    @property
    def title(self) -> str:
        return f"Deploy to {self.target}"
