import pytest

from abridged.errors import AbridgedError, GateError, InputError, UnsupportedError, nearest
from abridged.tables import Table


def filled() -> Table[int]:
    table = Table[int]("number")
    table.entry("one", "uno")(1)
    return table


def test_one_entry_may_have_several_names():
    assert dict(filled()) == {"one": 1, "uno": 1}
    assert len(filled()) == 2
    assert "one" in filled()
    assert "two" not in filled()


def test_a_duplicate_raises_when_it_is_added():
    with pytest.raises(ValueError, match="duplicate number 'one'"):
        filled().entry("one")(2)


@pytest.mark.parametrize(("name", "hint"), [("onne", "did you mean 'one'"), ("zzz", "known: one, uno")])
def test_an_unknown_name_raises_with_the_nearest(name, hint):
    with pytest.raises(InputError, match=hint):
        filled()[name]


def test_an_empty_table_has_no_names_to_offer():
    assert nearest("x", []) == "; known: none"
    assert nearest("x", map(str, range(200))) == "; none of the 200 known is like it"


def test_the_summary_is_the_first_line_of_the_docstring():
    table: Table[object] = Table("thing")

    @table.entry("documented")
    def documented() -> None:
        """First line.

        More."""

    table.entry("bare")(lambda: None)
    assert table.summary("documented") == "First line."
    assert table.summary("bare") == ""


def test_exit_statuses_are_part_of_the_contract():
    assert {kind: kind.exit_status for kind in (AbridgedError, GateError, InputError, UnsupportedError)} == {
        AbridgedError: 1,
        GateError: 1,
        InputError: 2,
        UnsupportedError: 2,
    }
