"""Text for people: one line of anything, and tables."""

import json
import shlex

import pytest

from job.texts import one_line, quoted, shortened, stack_of, to_table, visible


def test_any_text_becomes_one_line_of_limited_length() -> None:
    assert one_line("a\n  b\tc") == "a b c"
    assert one_line(ValueError("two\nlines"), limit=7) == "two ..."


_PATH = "s3://bucket/prefix/runs/ml.nightly-29925282/attempts/04549b19-3d75-4e2d-8726-6b557770cce2/model/saved_model.pb"


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("as long as allowed", 18, "as long as allowed"),
        (_PATH, 40, "...726-6b557770cce2/model/saved_model.pb"),
        ("ml.train-with-a-long-name-7bgxsr25hn", 20, "...g-name-7bgxsr25hn"),
        ("the store holds no file of that name any more", 22, "the store holds no ..."),
        (f"{_PATH} is gone", 60, "...-3d75-4e2d-8726-6b557770cce2/model/saved_model.pb is gone"),
        (
            "cannot be pulled: failed to do request: Head x: lookup y: no such host",
            50,
            "cannot be pulled: failed to do r ...: no such host",
        ),
        ("a: b", 3, "..."),
        ("ab", 1, "."),
    ],
)
def test_of_a_long_text_the_part_that_matters_stays(text: str, limit: int, shown: str) -> None:
    """Of a path, key or name the end; of a sentence the start, and the innermost cause."""
    assert shortened(text, limit=limit) == shown
    assert len(shown) <= limit


@pytest.mark.parametrize("limit", range(12))
@pytest.mark.parametrize("text", [_PATH, f"{_PATH} {_PATH}", "a b: c", "", "one two three four five"])
def test_no_text_is_longer_than_its_limit(text: str, limit: int) -> None:
    assert len(shortened(text, limit=limit)) <= limit


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [("RUN", "STATE"), ("a", "committed"), ("longer", "-")]
    assert to_table(rows).splitlines() == ["RUN      STATE", "a        committed", "longer   -"]


def test_headings_alone_are_a_table() -> None:
    assert to_table([("RUN", "STATE")]) == "RUN   STATE"


@pytest.mark.security("S11")
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\u001b]0;title\u0007"),
        ("\x9b31m", r"\u009b31m"),
        ("a\r\nb\tc\x00\x7f", r"a\r\nb\tc\u0000\u007f"),
        ("\u202e\u2066\u200b\u2028\ufeff", r"\u202e\u2066\u200b\u2028\ufeff"),
        ("\u3164\ufe0f\U000e0041", r"\u3164\ufe0f\udb40\udc41"),
        ("\udc9b", r"\udc9b"),
        ("größe 数字 😀", "größe 数字 😀"),
    ],
)
def test_what_steers_a_terminal_or_is_not_seen_is_made_visible(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert json.loads(f'"{visible(text)}"') == text
    assert to_table([(text,)]) == one_line(shown) == shown


def test_what_is_kept_stays() -> None:
    assert visible("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"


@pytest.mark.security("S11")
@pytest.mark.parametrize("text", ["a b", "; touch x", "$(x)", "'`x`'", "a\nb", "\x1b[2J", "-x"])
def test_a_shell_takes_what_is_quoted_as_one_word(text: str) -> None:
    assert shlex.split(quoted(text)) == [visible(text)]
    assert "\n" not in quoted(text)


@pytest.mark.security("S11")
def test_a_stack_is_visible_text_of_bounded_length_with_both_its_ends() -> None:
    def fail(depth: int) -> None:
        if not depth:
            raise RuntimeError("\x1b[31mred\x07 " + "x" * 100_000)
        fail(depth - 1)

    with pytest.raises(RuntimeError) as caught:
        fail(0)
    shown = stack_of(caught.value)
    assert shown.startswith("Traceback (most recent call last):\n")
    assert r"RuntimeError: \u001b[31mred\u0007 xxx" in shown
    assert len(shown) < 2000
    assert shown.replace("\n", "").isprintable()

    shown = stack_of(ValueError("\n".join(f"line {number} " + "y" * 200 for number in range(200)) + "\nlast words"))
    assert (len(shown), shown.splitlines()[0][:18], shown.splitlines()[-1]) == (
        8000,
        "ValueError: line 0",
        "last words",
    )
    assert "\n...\n" in shown


@pytest.mark.security("S11")
def test_an_error_that_cannot_say_itself_has_a_stack() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert "MuteError" in stack_of(MuteError())
