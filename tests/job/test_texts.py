"""Text for people: one line of anything, and tables."""

from job.texts import one_line, to_table


def test_any_text_becomes_one_line_of_limited_length() -> None:
    assert one_line("a\n  b\tc") == "a b c"
    assert one_line(ValueError("two\nlines"), limit=5) == "two l"


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [("RUN", "STATE"), ("a", "committed"), ("longer", "-")]
    assert to_table(rows).splitlines() == ["RUN      STATE", "a        committed", "longer   -"]


def test_headings_alone_are_a_table() -> None:
    assert to_table([("RUN", "STATE")]) == "RUN   STATE"
