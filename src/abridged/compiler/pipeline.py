"""The compiler in order: passes over the Graph, then a plan, then C."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import abridged.compiler.arithmetic
import abridged.compiler.columns
import abridged.compiler.linear
import abridged.compiler.reduce  # noqa: F401  (their entries of LOWER and ANY)
from abridged.compiler.channels import drop_channels
from abridged.compiler.emit import Sources, emit
from abridged.compiler.fold import drop_dead, fold_batch_norms, fold_constants, lower_batch_norms
from abridged.compiler.fuse import fuse
from abridged.compiler.geometry import Geometry
from abridged.compiler.lower import Lowering
from abridged.compiler.memory import plan_memory
from abridged.compiler.plan import ANY_MACHINE, Machine, Plan
from abridged.compiler.samples import in_parts
from abridged.compiler.select import select
from abridged.compiler.transpose import lower_transposed
from abridged.graph.graph import Graph
from abridged.graph.verify import verify

# Each may be left out: the network computes the same.
PASSES: dict[str, Callable[[Graph], Graph]] = {
    "fold_constants": fold_constants,
    "fold_batch_norms": fold_batch_norms,
    "drop_channels": drop_channels,
    "drop_dead": drop_dead,
}


def plan(graph: Graph, without: Collection[str] = (), machine: Machine = ANY_MACHINE) -> Plan:
    """Decide everything, for such a machine. `without` names passes to leave out, "samples", "fuse", "bands" and "reuse" (of memory) among them.

    Raises `UnsupportedError` with the module path for an op that no kernel computes."""
    for name, rewrite in PASSES.items():
        if name not in without:
            graph = verify(rewrite(graph))
    graph, parts = in_parts(graph) if "samples" not in without else (graph, None)
    graph = verify(lower_transposed(lower_batch_norms(graph)))
    groups = fuse(graph, enabled="fuse" not in without)
    machine = replace(machine, threads=1) if "bands" in without else machine
    lowered = Lowering(graph, groups, Geometry(graph, groups, machine)).plan()
    lowered = replace(lowered, parts=parts)
    return plan_memory(select(lowered, machine), reuse="reuse" not in without)


def compile_graph(graph: Graph, without: Collection[str] = (), machine: Machine = ANY_MACHINE) -> Sources:
    """A Graph as model.c, model.h and weights.bin."""
    return emit(plan(graph, without, machine))
