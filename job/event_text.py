"""The text form of log events, for people: columns for what comes often, words for what comes once, `key=value` for the rest."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from job.contract import Event
from job.texts import say_bytes, say_duration, say_parts

Fields = Mapping[str, Any]


def to_text(event: str, fields: Fields) -> str:
    """The fields of one event as one line."""
    say = _FORMS.get(event, _say_plainly)
    try:
        return say(fields)
    except (
        KeyError,
        TypeError,
        ValueError,
    ):  # an event of another version: it lacks a field, or holds something else in it
        return _say_plainly(fields)


def _say_plainly(fields: Fields) -> str:
    return " ".join(f"{key}={_short(value)}" for key, value in fields.items())


def _say_epoch(fields: Fields) -> str:
    """In columns, so that epochs can be compared by looking down."""
    rest = dict(fields)
    del rest["step"]
    parts = [f"epoch {rest.pop('epoch'):>4}", *_scores("", rest)]
    for name in ("test", "val"):
        parts += _scores(f"{name}_", rest)
    parts += [f"{name} {_number(value)}" for name, value in rest.pop("metrics", {}).items()]
    parts += [f"{rest.pop('seconds'):7.2f} s", f"{rest.pop('examples_per_second'):>9,.0f} images/s"]
    parts += [f"rate {rest.pop('learning_rate'):<9.3g}"] if "learning_rate" in rest else []
    return "  ".join([*parts, *([_say_plainly(rest)] if rest else [])]).rstrip()


def _scores(prefix: str, rest: dict[str, Any]) -> list[str]:
    """Loss and accuracy, taken out of `rest`; nothing where the split was not scored."""
    if f"{prefix}loss" not in rest:
        return []
    loss, accuracy = rest.pop(f"{prefix}loss"), rest.pop(f"{prefix}accuracy")
    return [f"{prefix.replace('_', ' ')}loss {_number(loss)}", f"accuracy {_number(accuracy, width=6)}"]


def _number(value: float, *, width: int = 7) -> str:
    """With four digits after the point, in a column; what is too long for one has its order of magnitude."""
    text = next((text for form in (".4f", ".1e") if len(text := f"{value:{form}}") <= width), f"{value:.0e}")
    return f"{text:>{width}}"


def _say_end(fields: Fields) -> str:
    """How it ended, after how long, with what, and where the time went."""
    rest = dict(fields)
    outcome, code, seconds = rest.pop("outcome"), rest.pop("code"), rest.pop("seconds")
    said = [f"{outcome}, exit code {code}, after {say_duration(seconds)}"]
    step, accuracy, goodput = rest.pop("step"), rest.pop("accuracy"), rest.pop("goodput")
    said += [f"step {step}"] if step else []
    said += [f"accuracy {accuracy:.4f}"] if accuracy is not None else []
    said += [say_parts(rest.pop("phases"))]
    said += [f"goodput {100 * goodput['ratio']:.0f} %"] if goodput else []
    said += [f"peak memory {say_bytes(rest.pop('peak_memory_bytes'))}"]
    rest.pop("commit", None)  # the event before has it
    return "; ".join(said) + (f" {_say_plainly(rest)}" if rest else "")


_FORMS: Mapping[str, Callable[[Fields], str]] = {Event.EPOCH_END: _say_epoch, Event.RUN_END: _say_end}


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if " " not in text and text.isprintable() else json.dumps(text, ensure_ascii=not text.isprintable())
