"""The micro-benchmarks reach every kernel family, so that none is ever chosen without having been measured alone."""

import sys
from pathlib import Path

import pytest

from abridged.compiler.plan import Machine
from abridged.kernels import families

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import kernels  # the benchmark


@pytest.mark.parametrize("name", families())
def test_every_family_has_a_micro_benchmark_for_all_its_tiles(name: str) -> None:
    family = families()[name]
    wanted, reached = {tuple(tile.items()) for tile in family.tiles}, set()
    for layer in kernels.layers(family):
        for machine in (Machine(16, 8, True), Machine(32, 16, True)) if reached < wanted else ():
            for case in kernels.cases(family, layer, machine):
                assert case.work > 0
                reached.add(case.step.choice.tile)
    assert reached == wanted
