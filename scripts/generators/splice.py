"""Puts a generated piece between its marks in a text that people write."""

import re


def splice(text: str, name: str, piece: str) -> str:
    """The text with the piece between `<!-- NAME: ... -->` and `<!-- /NAME -->`.

    Raises:
        ValueError: the text has no such marks, or more than one pair.
    """
    pattern = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    spliced, count = pattern.subn(lambda match: match[1] + piece + match[2], text)
    if count != 1:
        raise ValueError(f"<!-- {name}: ... --> must be there once, found {count}")
    return spliced


def to_rows(*rows: tuple[str, ...]) -> str:
    """A table in Markdown; the first row holds the headings."""
    heading, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([heading, "|" + " --- |" * len(rows[0]), *others]) + "\n"
