"""Abridged: neural networks, abridged: shorter, and they still say the same.

    import abridged as ab

Every public name is here and nowhere else. They are imported when first used, so that `import abridged` is instant."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abridged.data import Data as Data
    from abridged.data import evaluate as evaluate
    from abridged.delivery import deploy as deploy
    from abridged.delivery import load as load
    from abridged.distillation.distill import distill as distill
    from abridged.errors import AbridgedError as AbridgedError
    from abridged.errors import GateError as GateError
    from abridged.errors import InputError as InputError
    from abridged.errors import UnsupportedError as UnsupportedError
    from abridged.factorization.factorize import factorize as factorize
    from abridged.factorization.saved import load_factorized as load_factorized
    from abridged.graph.capture import capture as capture
    from abridged.ledger import Ledger as Ledger
    from abridged.measurement.measure import Measurement as Measurement
    from abridged.measurement.measure import measure as measure
    from abridged.pruning.agent import Search as Search
    from abridged.pruning.agent import search_sparsities as search_sparsities
    from abridged.pruning.masks import Masks as Masks
    from abridged.pruning.prune import prune as prune
    from abridged.pruning.regrow import Regrowth as Regrowth
    from abridged.pruning.rewind import Ticket as Ticket
    from abridged.pruning.rewind import find_ticket as find_ticket
    from abridged.pruning.sensitivity import Sensitivity as Sensitivity
    from abridged.pruning.sensitivity import sensitivity as sensitivity
    from abridged.pruning.shrink import shrink as shrink
    from abridged.pruning.solvers import reestimate as reestimate
    from abridged.recipe import Budget as Budget
    from abridged.recipe import Recipe as Recipe
    from abridged.run import Compressed as Compressed
    from abridged.run import compress as compress
    from abridged.training import fit as fit
    from abridged.weights import load_into as load_into
    from abridged.weights import save as save

__version__ = "0.1.0"

_HOME = {
    "AbridgedError": "errors",
    "Budget": "recipe",
    "Compressed": "run",
    "Data": "data",
    "GateError": "errors",
    "InputError": "errors",
    "Ledger": "ledger",
    "Masks": "pruning.masks",
    "Measurement": "measurement.measure",
    "Recipe": "recipe",
    "Regrowth": "pruning.regrow",
    "Search": "pruning.agent",
    "Ticket": "pruning.rewind",
    "Sensitivity": "pruning.sensitivity",
    "UnsupportedError": "errors",
    "capture": "graph.capture",
    "compress": "run",
    "deploy": "delivery",
    "distill": "distillation.distill",
    "evaluate": "data",
    "factorize": "factorization.factorize",
    "find_ticket": "pruning.rewind",
    "fit": "training",
    "load": "delivery",
    "load_factorized": "factorization.saved",
    "load_into": "weights",
    "measure": "measurement.measure",
    "prune": "pruning.prune",
    "reestimate": "pruning.solvers",
    "save": "weights",
    "search_sparsities": "pruning.agent",
    "sensitivity": "pruning.sensitivity",
    "shrink": "pruning.shrink",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'abridged' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"abridged.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
