"""The pages say what is so."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_compilers_page_shows_what_is_emitted() -> None:
    spec = importlib.util.spec_from_file_location("emitted", DOCS / "emitted.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (DOCS / "compiler.md").read_text(encoding="utf-8")
    assert len(module.BLOCK.findall(page)) == 2
    assert module.written(page) == page, "run `python docs/emitted.py`"


def test_the_compilers_page_names_files_that_are_there() -> None:
    import re

    page = (DOCS / "compiler.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:graph|compiler|src)/[\w/]+(?:\.py|/))`", page)
    assert len(named) >= 8
    package = DOCS.parent / "src" / "abridged"
    assert all((package / name).exists() or (DOCS.parent / name).exists() for name in named)


def test_the_page_on_distillation_names_every_loss() -> None:
    from abridged.distillation.losses import LOSSES

    page = (DOCS / "distillation.md").read_text(encoding="utf-8")
    assert len(LOSSES) > 2
    assert [name for name in LOSSES if f"`{name}`" not in page] == []


def test_the_page_on_pruning_names_every_entry() -> None:
    from abridged.pruning.allocation import ALLOCATIONS
    from abridged.pruning.criteria import CRITERIA
    from abridged.pruning.regrow import REGROWTHS
    from abridged.pruning.schedules import SCHEDULES
    from abridged.pruning.solvers import SOLVERS

    pages = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("pruning.md", "sparse_training.md"))
    aliases = {"bias"}
    for table in (CRITERIA, ALLOCATIONS, SCHEDULES, SOLVERS, REGROWTHS):
        assert len(table) > 2
        assert [name for name in table if f"`{name}`" not in pages and name not in aliases] == []
