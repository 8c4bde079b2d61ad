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
