"""The one parser of JSON that others wrote: bounded in bytes, depth and digits, and strict. Standard library only.

Owns what every stored record, log line and message has to keep. What one kind of record must hold, its reader says.
Whoever may write the store is not trusted with the memory and time of its readers (docs/security.md).
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from job.errors import IntegrityError
from job.texts import one_line

MAX_BYTES = 4_000_000
"""Of a record, unless its reader says otherwise. Python needs up to 30 times as much for what it reads."""
MAX_DEPTH = 64
_MAX_NUMBER_CHARACTERS = 64
_INTEGERS = range(-(2**63), 2**64)
_SHOWN_CHARACTERS = 60


class _RefusedError(ValueError):
    """What is wrong with the text, in a few words."""


def parse_object(data: bytes | str, *, name: str, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """A JSON object that somebody else wrote. Keys that its reader does not know are let through.

    Args:
        name: what it is, for the error, such as `store: runs/x/run.json`.

    Raises:
        IntegrityError: it is longer than `max_bytes`, no UTF-8, no JSON or no object; is nested deeper than 64; holds a number
            that is not finite, an integer beyond 64 bits, the same key twice, or half a surrogate pair.
    """
    check_size(len(data), name=name, max_bytes=max_bytes)
    try:
        content = _loads(data if isinstance(data, str) else data.decode("utf-8"))
    except (_RefusedError, UnicodeError, json.JSONDecodeError, RecursionError) as error:
        raise IntegrityError(f"{name} is not JSON: {_describe(error)}") from error
    if not isinstance(content, dict):
        raise IntegrityError(f"{name} must hold a JSON object, received {type(content).__name__}")
    return content


def check_size(num_bytes: int, *, name: str, max_bytes: int = MAX_BYTES) -> None:
    """Refuse before it is read what is too long.

    Raises:
        IntegrityError: it is longer than `max_bytes`.
    """
    if num_bytes > max_bytes:
        raise IntegrityError(f"{name} has {num_bytes} bytes; such a record has {max_bytes} at most")


def show(value: object) -> str:
    """A received value, short, on one line: for a message that says what was wrong with it."""
    if isinstance(value, dict | list):
        return f"{type(value).__name__} of {len(value)}"
    return one_line(repr(value[:_SHOWN_CHARACTERS] if isinstance(value, str) else value), limit=_SHOWN_CHARACTERS)


def _loads(text: str) -> Any:
    content = json.loads(
        text,
        parse_int=_parse_integer,
        parse_float=_parse_float,
        parse_constant=_refuse_constant,
        object_pairs_hook=_parse_pairs,
    )
    _check_depth(content)
    if re.search(r"\\u[dD][89a-fA-F]", text):  # only an escape makes half a pair
        _check_texts(content)
    return content


def _parse_integer(digits: str) -> int:
    number = int(digits) if len(digits) <= _MAX_NUMBER_CHARACTERS else None
    if number is None or number not in _INTEGERS:
        raise _RefusedError(f"a number of {len(digits)} digits: an integer has 64 bits at most")
    return number


def _parse_float(digits: str) -> float:
    if len(digits) > _MAX_NUMBER_CHARACTERS or not math.isfinite(number := float(digits)):
        raise _RefusedError(
            f"the number {show(digits)}: a number is finite, of {_MAX_NUMBER_CHARACTERS} characters at most"
        )
    return number


def _refuse_constant(word: str) -> NoReturn:
    raise _RefusedError(f"{word} is no number of JSON")


def _parse_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _RefusedError(f"the key {show(twice)} stands there twice")
    return content


def _check_depth(content: object) -> None:
    level: list[object] = [content]
    for _ in range(MAX_DEPTH):
        level = [child for value in level for child in _children(value) if isinstance(child, dict | list)]
        if not level:
            return
    raise _RefusedError(f"it is nested deeper than {MAX_DEPTH}")


def _children(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _check_texts(content: object) -> None:
    for text in _texts(content):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _RefusedError("a text holds half of a surrogate pair") from error


def _texts(value: object) -> Iterator[str]:
    """Every text in a value of bounded depth, keys too."""
    if isinstance(value, str):
        yield value
    if isinstance(value, Mapping):
        yield from value
    for child in _children(value):
        yield from _texts(child)


def _describe(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"it is nested deeper than {MAX_DEPTH}"
    if isinstance(error, UnicodeError):
        return "it is not UTF-8"
    return one_line(error, limit=160)
