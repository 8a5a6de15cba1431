"""Puts a generated piece between its marks in a text that people write."""

import re
from pathlib import Path


def splice(path: Path, name: str, piece: str, *, text: str | None = None) -> str:
    """The text of a file (or `text`) with the piece between `<!-- NAME: ... -->` and `<!-- /NAME -->`.

    Raises:
        ValueError: the text has no such marks, or more than one pair.
    """
    pattern = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    before = path.read_text("utf-8") if text is None else text
    spliced, count = pattern.subn(lambda match: match[1] + piece + match[2], before)
    if count != 1:
        raise ValueError(f"{path}: <!-- {name}: ... --> must be there once, found {count}")
    return spliced


def to_rows(*rows: tuple[str, ...]) -> str:
    """A table in Markdown; the first row holds the headings."""
    heading, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([heading, "|" + " --- |" * len(rows[0]), *others]) + "\n"
