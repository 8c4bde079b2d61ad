"""Every table by its name, for `abridged list`: the tables themselves stand with the code they extend."""

from importlib import import_module

TABLES = {
    "criteria": ("pruning.criteria", "CRITERIA"),
    "patterns": ("pruning.patterns", "PATTERNS"),
    "allocations": ("pruning.allocation", "ALLOCATIONS"),
    "agents": ("pruning.agents", "AGENTS"),
    "rewards": ("pruning.agent", "REWARDS"),
    "schedules": ("pruning.schedules", "SCHEDULES"),
    "factorizations": ("factorization.methods", "METHODS"),
    "losses": ("distillation.losses", "LOSSES"),
    "courses": ("distillation.courses", "SHAPES"),
    "targets": ("targets", "TARGETS"),
    "data": ("data.sets", "DATASETS"),
    "steps": ("options", "STEPS"),
    "ops": ("graph.ops", "OPS"),
    "recipes": ("recipe", "named"),
}


def entries(table: str) -> list[tuple[str, str]]:
    """Name and first line of the docstring of every entry of a table."""
    module, attribute = TABLES[table]
    found = getattr(import_module(f"abridged.{module}"), attribute)
    if callable(found):
        return [(name, summary) for name, summary in found().items()]
    return [(name, found.summary(name)) for name in found]
