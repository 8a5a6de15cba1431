"""The one parser of JSON that others wrote: bounded in bytes, depth, values and digits, and strict. Standard library only.

Owns what every stored record, log line and message has to keep. What one kind of record must hold is a `Shape`
(`runs/shapes.py`). Whoever may write the store is not trusted with the memory and time of its readers (docs/security.md).
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from job.errors import IntegrityError
from job.texts import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BYTES = 4_000_000
"""Of a record, unless its reader says otherwise. Python needs up to 30 times as much for what it reads."""
MAX_HISTORY_BYTES = 64_000_000
"""Of metrics.json, and of the head of a file of arrays: both may tell of 100,000 epochs."""
MAX_DEPTH = 64
MAX_VALUES = 3_000_000
"""Of the longest records, which hold some ten values for each of 100,000 epochs."""
_MAX_NUMBER_CHARACTERS = 64
_INTEGERS = range(-(2**63), 2**64)
_SHOWN_CHARACTERS = 60


class _RefusedError(ValueError):
    """What is wrong with the text, in a few words."""


def parse_object(
    data: bytes | str, *, name: str, max_bytes: int = MAX_BYTES, are_all_finite: bool = True
) -> dict[str, Any]:
    """A JSON object that somebody else wrote.

    Args:
        name: what it is, for the error, such as `store: runs/x/run.json`.
        are_all_finite: whether NaN and Infinity, which JSON does not have and Python writes, are refused.

    Raises:
        IntegrityError: it is longer than `max_bytes`, no UTF-8, no JSON or no object; is nested deeper than 64, or has more than
            3,000,000 values; holds a number that is not finite, an integer beyond 64 bits, the same key twice, or half a
            surrogate pair.
    """
    check_size(len(data), name=name, max_bytes=max_bytes)
    try:
        content = _loads(data if isinstance(data, str) else data.decode("utf-8"), are_all_finite=are_all_finite)
    except (_RefusedError, UnicodeError, json.JSONDecodeError, RecursionError) as error:
        raise IntegrityError(f"{name} is not JSON: {_describe(error)}") from error
    if not isinstance(content, dict):
        raise IntegrityError(f"{name} must hold a JSON object, received {type(content).__name__}")
    return content


def parse_arrays(data: bytes, *, name: str) -> "dict[str, NDArray[Any]]":
    """The arrays of a safetensors file, by name. They take no more memory than the file: the library checks its offsets.

    Raises:
        IntegrityError: it is no such file, or has arrays that numpy does not know.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(data))
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise IntegrityError(f"{name} is no file of arrays: {one_line(error, limit=120)}") from error


def parse_beside_arrays(data: bytes, *, key: str, name: str, are_all_finite: bool = True) -> dict[str, Any] | None:
    """The JSON object that a safetensors file holds beside its arrays under a key; None when it holds none.

    The format: 8 bytes with the header's length, then the header as JSON (github.com/huggingface/safetensors).

    Raises:
        IntegrityError: header or object is none, or is beyond what a record may hold.
    """
    header_end = 8 + int.from_bytes(data[:8], "little")
    header = parse_object(data[8:header_end], name=f"the header of {name}", max_bytes=MAX_HISTORY_BYTES)
    texts = header.get("__metadata__", {})
    text = texts.get(key) if isinstance(texts, dict) else texts
    if text is None:
        return None
    if not isinstance(text, str):
        raise IntegrityError(f"{name} must hold a text under {key}, received {show(text)}")
    return parse_object(text, name=f"{key} of {name}", max_bytes=MAX_HISTORY_BYTES, are_all_finite=are_all_finite)


def check_size(num_bytes: int, *, name: str, max_bytes: int = MAX_BYTES) -> None:
    """Refuse before it is read what is too long.

    Raises:
        IntegrityError: it is longer than `max_bytes`.
    """
    if num_bytes > max_bytes:
        raise IntegrityError(f"{name} has {num_bytes} bytes; at most {max_bytes} are read")


def show(value: object) -> str:
    """A received value, short, on one line: for a message that says what was wrong with it."""
    if isinstance(value, dict | list):
        return f"{type(value).__name__} of {len(value)}"
    return one_line(repr(value[:_SHOWN_CHARACTERS] if isinstance(value, str) else value), limit=_SHOWN_CHARACTERS)


def _loads(text: str, *, are_all_finite: bool) -> Any:
    if sum(map(text.count, ",[{")) > MAX_VALUES:  # those in texts are counted too: no real record comes near
        raise _RefusedError(f"it has more than {MAX_VALUES} values")
    content = json.loads(
        text,
        parse_int=_parse_integer,
        parse_float=_parse_float,
        parse_constant=_refuse_constant if are_all_finite else None,
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
