"""What to do, as data: a list of steps. YAML in, validated, every mistake named with its line and the nearest right word.

The options of each kind of step are in `options.py`, what it does in `steps.py`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, StrictBool, ValidationError, model_validator

from abridged import written
from abridged.errors import NOTHING, InputError, expect, nearest
from abridged.options import STEPS as STEPS
from abridged.options import Deploy as Deploy
from abridged.options import Distill as Distill
from abridged.options import Factorize as Factorize
from abridged.options import Finetune as Finetune
from abridged.options import Fraction, OneOrMore, Positive
from abridged.options import Prune as Prune
from abridged.options import Shrink as Shrink
from abridged.options import Step as Step
from abridged.options import Teaching as Teaching
from abridged.options import Train as Train
from abridged.options import Training as Training
from abridged.written import Written


class Stated(BaseModel):
    """A model that people make themselves: what is wrong is one line, an `InputError`."""

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise Written(given, type(self).__name__).refusal(type(self), error) from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # validation from data does not go through it


class Budget(Stated):
    """What the result must keep. A missed line is printed as missed and makes the exit status 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    latency_ratio: Positive | None = None  # compressed / dense, same target
    latency_ms: Positive | None = None
    bytes: OneOrMore | None = None
    accuracy_drop: Fraction | None = None  # in the target runtime, on the held-out split


class Recipe(Stated):
    """Steps in order, and whether the fair control (the dense model trained equally long) is run beside them."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    name: str = "recipe"
    control: StrictBool = True
    budget: Budget = Budget()
    steps: tuple[Step, ...]

    @model_validator(mode="after")
    def _order(self) -> Recipe:
        kinds = [step.kind for step in self.steps]
        if not set(kinds) - {"train", "deploy"}:
            raise ValueError("no step compresses anything: add one of prune, factorize, distill, finetune")
        if "deploy" in kinds[:-1]:
            raise ValueError("deploy must be the last step")
        if "train" in kinds[1:]:
            raise ValueError("train makes the dense model: it must be the first step")
        _keeps_zeros(self.steps)
        return self

    @property
    def train(self) -> Train | None:
        return self.steps[0] if isinstance(self.steps[0], Train) else None

    @property
    def compression(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.kind not in ("train", "deploy"))

    @property
    def deploy(self) -> Deploy:
        return self.steps[-1] if isinstance(self.steps[-1], Deploy) else Deploy()

    def replaced(
        self,
        *,
        budget: Budget | Mapping[str, Any] | None = None,
        target: str | None = None,
        threads: int | None = None,
        control: bool | None = None,
    ) -> Recipe:
        """The recipe with what the caller said in its place; None leaves it as it is."""
        expect(budget, (Budget, Mapping, NOTHING), "budget must be an ab.Budget")
        deploy = self.deploy.model_dump() | {
            k: v for k, v in (("target", target), ("threads", threads)) if v is not None
        }
        plain = self.plain()
        plain["steps"] = [step for step in plain["steps"] if "deploy" not in step] + [{"deploy": deploy}]
        if budget is not None:
            given = budget.model_dump(exclude_none=True) if isinstance(budget, Budget) else dict(budget)
            plain["budget"] |= given
        if control is not None:
            plain["control"] = control
        return load(plain)

    def plain(self) -> dict[str, Any]:
        """The recipe as JSON-able data that `from_data` reads back."""
        return {
            "name": self.name,
            "control": self.control,
            "budget": self.budget.model_dump(exclude_none=True),
            "steps": [{step.kind: step.model_dump(mode="json", exclude_none=True)} for step in self.steps],
        }


def _keeps_zeros(steps: tuple[Step, ...]) -> None:
    """Refuses a step that would bring back zeros made before it, or find none: only the latest masks are held."""
    zeros = ""  # which there are when a step starts
    for step in steps:
        if isinstance(step, Prune):
            made = "channels" if step.structured else "weights"
            if (zeros, made) == ("weights", "channels"):
                raise ValueError(
                    "pruning channels after weights would let the zeros of the weights go: prune channels first, shrink,"
                    " then prune weights"
                )
            if (zeros, made) == ("channels", "weights"):
                raise ValueError(
                    "pruning weights after channels would let the zero channels go: put shrink between the two"
                )
            zeros = made
        elif isinstance(step, Shrink):
            if zeros != "channels":
                raise ValueError(
                    "shrink removes channels that are zero: put a prune with pattern: channel or heads before it"
                )
            zeros = ""
        elif isinstance(step, Factorize):
            if zeros and not step.lose_zeros:
                raise ValueError(
                    "factorize after prune loses the zeros, since factors are dense: "
                    + ("put shrink between the two" if zeros == "channels" else "factorize first and prune the factors")
                    + ", or say lose_zeros: true"
                )
            zeros = ""


def load(source: str | Path | Recipe | Mapping[str, Any] | list[Any] | None) -> Recipe:
    """A recipe from its name ("default"), a YAML file, plain data or a list of steps."""
    if isinstance(source, Recipe):
        return source
    if isinstance(source, list):
        source = {"steps": source}
    if isinstance(source, Mapping):
        return _built(Written(dict(source), "recipe"))
    text = str(source or "default")
    if text in named():
        return from_yaml((resources.files("abridged") / "recipes" / f"{text}.yaml").read_text(), f"recipe '{text}'")
    path = Path(text)
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"unknown recipe '{text}'{nearest(text, named())}, or give a .yaml file")
    try:
        return from_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def named() -> dict[str, str]:
    """The recipes that come with Abridged: their names and what each says of itself in its first line."""
    files = sorted((resources.files("abridged") / "recipes").iterdir(), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text().splitlines()[0].lstrip("# ") for file in files}


def from_yaml(text: str, where: str) -> Recipe:
    """Parse and validate; an error is one line `WHERE, line N: …`."""
    return _built(written.from_yaml(text, where))


def _built(given: Written) -> Recipe:
    data = given.data
    if not isinstance(data, dict) or not isinstance(data.get("steps"), list) or not data["steps"]:
        raise given.error((), "a recipe is a mapping with a list `steps:`, such as `- prune: {sparsity: 0.9}`")
    steps = []
    for index, item in enumerate(data["steps"]):
        item = {item: {}} if isinstance(item, str) else item
        place = ("steps", index)
        if not isinstance(item, dict) or len(item) != 1:
            raise given.error(
                place, f"step {index + 1} must be one `name: {{options}}`, with a name of {', '.join(STEPS)}"
            )
        ((kind, options),) = item.items()
        if kind not in STEPS:
            raise given.error((*place, kind), f"unknown step '{kind}'{nearest(str(kind), STEPS)}")
        if options is not None and not isinstance(options, dict):
            raise given.error((*place, kind), f"{kind}: options must be a mapping, not {options!r}")
        steps.append(given.built(STEPS[kind], options or {}, (*place, kind)))
    return given.built(Recipe, {**data, "steps": tuple(steps)}, ())
