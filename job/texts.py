"""Text for people, as both programs print it: one line of an error, and tables. Standard library only."""

from collections.abc import Sequence

from job.masking import masked


def one_line(text: object, *, limit: int | None = None) -> str:
    """Any text or error as one line of at most `limit` characters, without credentials."""
    return " ".join(masked(str(text)).split())[:limit]


def to_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length in columns that are as wide as their widest cell; the first row holds the headings."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def say_placement(*, num_workers: int, num_replicas: int) -> str:
    """Such as `2 workers x 1 replica`.

    Args:
        num_replicas: of all workers together.
    """
    each = num_replicas // num_workers
    return f"{num_workers} worker{'s'[: num_workers > 1]} x {each} replica{'s'[: each > 1]}"
