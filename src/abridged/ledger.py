"""The ledger: for every step, what theory promised and what practice delivered. Append-only; the report only reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from abridged.measurement.records import Accuracy, Device, Environment, Practice, Record, Theory

FORMAT = 1


class Curve(Record):
    """One line of a training history: a value per epoch."""

    name: str  # "loss", "val accuracy", "density" …
    values: tuple[float, ...]


class Row(Record):
    """One step. "dense" is the untouched model, "control" the dense model fine-tuned equally long."""

    name: str  # unique: "dense", "1-prune", "2-distill", "control"
    kind: Literal["dense", "step", "control"]
    title: str  # for people: "Prune 90 % (magnitude, global, cubic)"
    options: dict[str, Any] = Field(default_factory=dict)  # the recipe's step, as validated
    seconds: float = 0.0  # spent on the step itself
    theory: Theory
    accuracy: Accuracy | None = None  # of the PyTorch module on the selection split
    test_accuracy: Accuracy | None = None  # of the PyTorch module on the held-out split, never selected on
    practice: tuple[Practice, ...] = ()  # per target; interleaved with each other within one Ledger
    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()  # "53 of 53 convolutions, 1 linear left: output layer"


class Check(Record):
    """One line of the budget: what was asked, what came, whether it was met."""

    name: str
    asked: str
    got: str
    met: bool


class Ledger(Record):
    """Everything a report shows."""

    format: int = FORMAT
    title: str
    model: str  # as the user named it
    data: str
    recipe: dict[str, Any]
    seed: int
    target: str  # of the compressed artifact
    artifact: str | None = None  # path relative to the run directory
    rows: tuple[Row, ...] = ()
    devices: tuple[Device, ...] = ()  # the delivered artifact where it lives, by `abridged measure --from`
    checks: tuple[Check, ...] = ()
    warnings: tuple[str, ...] = ()
    environment: Environment

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)

    @property
    def dense(self) -> Row | None:
        return next((row for row in self.rows if row.kind == "dense"), None)

    @property
    def final(self) -> Row | None:
        """The last compression step: the one whose artifact is delivered."""
        return next((row for row in reversed(self.rows) if row.kind == "step"), None)

    def save(self, path: Path) -> None:
        from abridged.files import write_atomic

        write_atomic(path, self.model_dump_json(indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> Ledger:
        from abridged.errors import InputError

        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not a ledger of Abridged: {str(error).splitlines()[0]}") from None
