"""Text for people, as both programs print it: nothing in it steers a terminal; lines, tables, commands. Standard library only."""

import json
import math
import re
import shlex
import traceback
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from job.masking import masked

_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
"""Printable by Unicode's categories, and still not to be seen: fillers, blanks of other scripts, variation selectors."""
_MAX_CELL_CHARACTERS = 200
_MAX_STACK_CHARACTERS, _MAX_STACK_LINE_CHARACTERS = 8000, 500
_MIN_PATH_CHARACTERS = 24
"""A path that a sentence has no room for keeps so much of its end."""
_SMALL_SHARE = 0.05
"""Of all the time: what took less is told together."""


def visible(text: str, *, keep: str = "") -> str:
    r"""Text that no terminal interprets: control, bidirectional and invisible characters stand there as JSON writes them.

    Such as `\u001b` for ESC. JSON stays the same JSON. Letters of all scripts stay, and emoji without joiners.

    Args:
        keep: characters that stay as they are, such as the line breaks between lines of our own.
    """
    rest = text.translate(dict.fromkeys(map(ord, keep))) if keep else text
    if rest.isprintable() and (rest.isascii() or not _UNSEEN.search(rest)):
        return text
    return "".join(
        char if char in keep or (char.isprintable() and not _UNSEEN.match(char)) else _escape(char) for char in text
    )


def _escape(char: str) -> str:
    return "\\u007f" if char == "\x7f" else json.dumps(char)[1:-1]  # JSON lets DEL stand


def one_line(text: object, *, limit: int | None = None) -> str:
    """Any text or error as one visible line of at most `limit` characters, without credentials."""
    line = " ".join(masked(str(text)).split())
    return visible(line if limit is None else shortened(line, limit=limit))[:limit]


def shortened(line: str, *, limit: int) -> str:
    """At most `limit` characters of a line; `...` stands where something is left out.

    Of a single word (a name, key or URI) the end stays, which tells it from its like. Of a sentence the start stays, and the last
    cause where it is short, as in `cannot be pulled: ...: no such host`; long paths in it lose their start first.
    """
    if len(line) <= limit:
        return line
    words = line.split(" ")
    if len(words) == 1:
        return _end_of(line, limit=limit)
    paths = [word for word in words if "/" in word]
    if paths:
        room = max(_MIN_PATH_CHARACTERS, (limit - len(line) + sum(map(len, paths))) // len(paths))
        line = " ".join(_end_of(word, limit=room) if "/" in word else word for word in words)
    if len(line) <= limit:
        return line
    cause = f" ...: {line.rpartition(': ')[2]}"
    end = cause if ": " in line and len(cause) <= limit // 2 else " ..."[-limit:] if limit else ""
    return line[: limit - len(end)].rstrip(" :") + end


def _end_of(word: str, *, limit: int) -> str:
    return word if len(word) <= limit else "..."[:limit] + word[len(word) - max(0, limit - 3) :]


def stack_of(error: BaseException) -> str:
    """The traceback as visible lines, without credentials; of a long one the beginning, and three times as much of its end."""
    try:
        text = visible(masked("".join(traceback.format_exception(error))), keep="\n").rstrip("\n")
    except Exception:  # noqa: BLE001 - no memory is left, or a class of the user's own breaks what prints it
        return ""
    text = "\n".join(_cut(line, _MAX_STACK_LINE_CHARACTERS) for line in text.split("\n"))
    if len(text) <= _MAX_STACK_CHARACTERS:
        return text
    head = _MAX_STACK_CHARACTERS // 4
    return f"{text[:head]}\n...\n{text[head - _MAX_STACK_CHARACTERS + 5 :]}"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def quoted(text: str) -> str:
    """A name, path or setting in a command that is printed: a shell that the line is pasted into takes it as this one word."""
    return shlex.quote(visible(text))


def to_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length in columns that are as wide as their widest cell; the first row holds the headings.

    A cell is one visible line; of what is longer than 200 characters a part is left out (`shortened`).
    """
    shown = [[_to_cell(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*shown, strict=True)]
    lines = (
        "   ".join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True))
        for row in shown
    )
    return "\n".join(line.rstrip() for line in lines)


def _to_cell(text: str) -> str:
    return shortened(visible(shortened(text, limit=_MAX_CELL_CHARACTERS)), limit=_MAX_CELL_CHARACTERS)


def _width(text: str) -> int:
    """How many columns of a terminal it takes: those of China, Japan and Korea two, accents that follow a letter none."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.category(char) in ("Mn", "Me") for char in text)


def say_placement(*, num_workers: int, num_replicas: int) -> str:
    """Such as `2 workers x 1 replica`.

    Args:
        num_replicas: of all workers together.
    """
    each = num_replicas // num_workers
    return f"{num_workers} worker{'s'[: num_workers > 1]} x {each} replica{'s'[: each > 1]}"


_UNITS_OF_TIME = (
    (60, "min", 1, "s", 3600),
    (3600, "h", 60, "min", 86400),
    (86400, "d", 3600, "h", math.inf),
)
"""Seconds and name of a unit, the same of the next smaller one, and the seconds that are a larger unit."""


def say_duration(seconds: float | None) -> str:
    """In the two largest units, such as `12.3 s`, `5 min 3 s`, `3 h 12 min`, `2 d 4 h`; a dash when it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    each = next(each for each in _UNITS_OF_TIME if round(seconds / each[2]) * each[2] < each[4])
    unit, name, smaller, smaller_name, _ = each
    whole = round(seconds / smaller) * smaller
    return f"{whole // unit} {name} {whole % unit // smaller} {smaller_name}"


def say_parts(seconds: Mapping[str, Any]) -> str:
    """Such as `train 4.1 s, compile 2.0 s, others 0.3 s`: the longest first, what is below a twentieth together."""
    known = {name: value for name, value in seconds.items() if isinstance(value, int | float) and value > 0}
    least = sum(known.values()) * _SMALL_SHARE
    shown = sorted(((value, name) for name, value in known.items() if value >= least), reverse=True)
    rest = sum(value for value in known.values() if value < least)
    said = [*((value, name.replace("_", " ")) for value, name in shown), *([(rest, "others")] if rest > 0 else [])]
    return ", ".join(f"{name} {say_duration(value)}" for value, name in said)


def say_bytes(number: float) -> str:
    """Such as `612 MB`."""
    return f"{number / 1e6:,.0f} MB"


def say_minute(when: str | None) -> str:
    """The minute of a time in ISO 8601, such as `2026-11-26T03:00`; a dash when it is not known."""
    return when[:16] if when else "-"


def say_seconds_at(when: str | None) -> str:
    """A time in ISO 8601 in UTC to the second, such as `2026-11-26 03:00:12 UTC`; a dash when it is not known."""
    return f"{when[:19].replace('T', ' ')} UTC" if when else "-"


def count_of(number: int, word: str) -> str:
    """Such as `1 attempt`, `2 attempts`."""
    return f"{number:,} {word}{'s'[: number != 1]}"
