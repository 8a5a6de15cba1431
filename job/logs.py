"""Log events: one JSON object a line in a cluster, short text lines on a terminal.

Owns the format and the keys that every event carries. Native TensorFlow noise goes to stderr, not here.
"""

import json
import logging
import math
import sys
from collections.abc import Callable, Container
from datetime import datetime
from typing import Any, Literal, TextIO

from job import clock
from job.event_text import to_text
from job.events import say
from job.masking import masked
from job.texts import visible

LOGGER_NAME = "job"

LogFormat = Literal["json", "text"]
_STACK = "stack"
"""Not in a line of text, which stays one line: the stored log has it."""


def emit(event: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log one event with its own fields, in the order given."""
    logging.getLogger(LOGGER_NAME).log(level, event, extra={"fields": fields})


def warn(event: str, **fields: object) -> None:
    """Log something that a person should look at although the run goes on."""
    emit(event, level=logging.WARNING, **fields)


def error(event: str, **fields: object) -> None:
    """Log why the process ends."""
    emit(event, level=logging.ERROR, **fields)


def choose_format(configured: str, *, stream: TextIO) -> LogFormat:
    """`auto` is text on a terminal and JSON elsewhere."""
    if configured == "auto":
        return "text" if stream.isatty() else "json"
    return "json" if configured == "json" else "text"


def configure(
    log_format: LogFormat,
    *,
    run: str = "",
    attempt: str = "",
    worker: int = 0,
    write: Callable[[str], None] | None = None,
    also: logging.Handler | None = None,
    leave_out: Container[str] = (),
) -> None:
    """Send events to stdout from now on.

    Args:
        worker: index of this process among the workers of the run.
        write: takes each finished line instead of stdout; the progress bar needs that to stay in one piece.
        also: a second handler, with a formatter of its own.
        leave_out: events that only `also` gets, because the same is said in another way.
    """
    logger = logging.getLogger(LOGGER_NAME)
    handler = _LineHandler(write or write_line)
    handler.addFilter(lambda record: record.getMessage() not in leave_out)
    handler.setFormatter(
        json_formatter(run=run, attempt=attempt, worker=worker) if log_format == "json" else _TextFormatter()
    )
    logger.handlers = [handler, also] if also else [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)


def tell_too(handler: logging.Handler) -> None:
    """Give what is logged from now on to one more handler, which needs no text of it."""
    logging.getLogger(LOGGER_NAME).addHandler(handler)


def json_formatter(*, run: str, attempt: str, worker: int = 0) -> logging.Formatter:
    """One JSON object a line, with the keys that every event carries."""
    return _JsonFormatter(run=run, attempt=attempt, worker=worker)


def write_line(line: str) -> None:
    """Write to stdout, which loses what it cannot take (`streams.py`)."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class _LineHandler(logging.Handler):
    """Hands each formatted record to a function."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(self.format(record))


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = getattr(record, "fields", {})
    return fields


class _JsonFormatter(logging.Formatter):
    def __init__(self, *, run: str, attempt: str, worker: int) -> None:
        super().__init__()
        self._fixed = {"run": run, "attempt": attempt, "worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        time = clock.timestamp(record.created).replace("+00:00", "Z")
        event, known = record.getMessage(), _plain(self._fixed | _fields(record))
        level = {"level": record.levelname.lower(), "severity": record.levelname}  # the second as Cloud Logging has it
        content = {"time": time, **level, "event": event, "message": say(event, known), **known}
        line = json.dumps(content, default=lambda other: masked(str(other)), ensure_ascii=False, allow_nan=False)
        return visible(line.encode(errors="replace").decode())


def _plain(value: Any) -> Any:
    """The same value without credentials, and with null for the numbers that JSON does not have: readers refuse a bare NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return masked(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        level = "" if record.levelno <= logging.INFO else f"{record.levelname} "
        fields = {key: value for key, value in _fields(record).items() if key != _STACK}
        said = to_text(record.getMessage(), fields)
        return visible(f"{time} {level}{record.getMessage():<14} {said}".rstrip())
