"""What the client reads of the API server's objects: fields and their types, times, counts, and the job's own JSON in them.

Objects are checked once, where they come in (`api.py`): a field of another type counts as not there, and an object without what
every object has is skipped with a warning. Fields that are not named here stay as they are.
"""

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from job.contract import Field
from job.errors import IntegrityError
from job.records import parse_object
from job.texts import one_line

Object = dict[str, Any]

_EACH = "*"
"""Key of a shape that stands for all keys."""
_TEXTS = {_EACH: str}
_METADATA = {
    **dict.fromkeys(("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp"), str),
    "labels": _TEXTS,
    "annotations": _TEXTS,
}
_CONDITIONS = [dict.fromkeys(("type", "status", "reason", "message", "lastTransitionTime"), str)]
_ENDED = {"exitCode": int, "reason": str, "message": str, "finishedAt": str}
_STATE = {"waiting": {"reason": str, "message": str}, "running": {}, "terminated": _ENDED}
_STATUSES = [{"name": str, "state": _STATE}]
_CONTAINER = {"name": str, "image": str, "args": [str], "resources": {"limits": {}}}
_POD_SPEC = {
    "nodeName": str,
    "terminationGracePeriodSeconds": int,
    "containers": [_CONTAINER],
    "initContainers": [_CONTAINER],
}
_JOB_SPEC = {
    **dict.fromkeys(("completions", "backoffLimit", "backoffLimitPerIndex", "activeDeadlineSeconds"), int),
    "completionMode": str,
    "suspend": bool,
    "template": {"metadata": {"labels": _TEXTS, "annotations": _TEXTS}, "spec": _POD_SPEC},
}
_SHAPES: Mapping[str, Any] = {
    "jobs": {
        "metadata": _METADATA,
        "spec": _JOB_SPEC,
        "status": {"active": int, "succeeded": int, "failed": int, "conditions": _CONDITIONS},
    },
    "cronjobs": {
        "metadata": _METADATA,
        "spec": {
            **dict.fromkeys(("schedule", "concurrencyPolicy", "timeZone"), str),
            "startingDeadlineSeconds": int,
            "suspend": bool,
            "jobTemplate": {"metadata": {"labels": _TEXTS, "annotations": _TEXTS}, "spec": _JOB_SPEC},
        },
        "status": {"active": [{"name": str}], "lastScheduleTime": str},
    },
    "pods": {
        "metadata": _METADATA,
        "spec": _POD_SPEC,
        "status": {
            **dict.fromkeys(("phase", "reason", "message"), str),
            "conditions": _CONDITIONS,
            "containerStatuses": _STATUSES,
            "initContainerStatuses": _STATUSES,
        },
    },
    "events": {
        **dict.fromkeys(("type", "reason", "message", "lastTimestamp", "eventTime"), str),
        "metadata": _METADATA,
        "involvedObject": {"kind": str, "name": str},
        "series": {"lastObservedTime": str},
    },
}
_NEEDED: Mapping[str, Iterable[str]] = {
    "jobs": ("metadata.uid", "spec.template.spec"),
    "cronjobs": ("metadata.uid", "metadata.namespace", "spec.jobTemplate.spec.template.spec"),
}
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?+|[{}\[\]]', re.DOTALL)
"""A text, which may hold brackets, or a bracket."""
_MAX_DEPTH = 48
"""What the client reads of a list is a third as deep."""
_COUNTS = range(2**31)
_MAX_MESSAGE_BYTES = 1_000_000

_log = logging.getLogger("k8s")


def fit(resource: str, thing: object) -> Object | None:
    """An object as the client may read it; None when it is none of that kind."""
    fitted: Object | None = _fit(thing, _SHAPES[resource])
    if fitted is None or not _NAME.fullmatch(fitted.get("metadata", {}).get("name", "")):
        return None
    return fitted if all(_has(fitted, path) for path in _NEEDED.get(resource, ())) else None


def fit_all(resource: str, things: object) -> list[Object]:
    """Those of a list that are of that kind; one that is not costs a warning, and no other its place."""
    fitted = [(thing, fit(resource, thing)) for thing in (things if isinstance(things, list) else [])]
    for thing, found in fitted:
        if found is None:
            _log.warning(
                "one of the %s is not as the API server describes them, and is left out: %s", resource, _name(thing)
            )
    return [found for _, found in fitted if found is not None]


def parse_reply(data: bytes, *, max_bytes: int) -> Object:
    """A reply of the API server.

    Whoever may make a Job may give it `managedFields` as deep as they like: the API server takes them. What is nested too deep
    counts as not there, so that the other Jobs of a list can be read.

    Raises:
        IntegrityError: it is no JSON object, or longer than `max_bytes`.
    """
    try:
        return parse_object(data, name="the reply", max_bytes=max_bytes)
    except IntegrityError:
        return parse_object(_without_depth(data), name="the reply", max_bytes=max_bytes)


def _without_depth(data: bytes) -> bytes:
    """JSON with null in place of what is nested deeper than `_MAX_DEPTH`."""
    kept, depth, start = [], 0, 0
    for token in _TOKEN.finditer(data):
        if token[0] in b"{[":
            depth += 1
            if depth == _MAX_DEPTH:
                kept += [data[start : token.start()], b"null"]
        elif token[0] in b"}]":
            if depth == _MAX_DEPTH:
                start = token.end()
            depth -= 1
    return b"".join([*kept, data[start:]])


def parse_time(text: str) -> datetime | None:
    """A time of Kubernetes, in UTC; None when it is none."""
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC) if 1970 <= time.year < 9000 else None
    except (ValueError, OverflowError):
        return None


def parse_count(text: str) -> int | None:
    """A number of a label, annotation or flag; None when it is none."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def parse_message(data: bytes | str) -> Object:
    """What the job says in a log event or a termination message: the fields that the client reads, each of its own type.

    Empty for what is not the job's JSON, such as the lines of others.
    """
    try:
        content = parse_object(data, name="message", max_bytes=_MAX_MESSAGE_BYTES)
    except IntegrityError:
        return {}
    return {str(name): content[name] for name, is_right in _MESSAGE.items() if is_right(content.get(name))}


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(most: float) -> Callable[[object], bool]:
    def is_number(value: object) -> bool:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and 0 <= value <= most
            and math.isfinite(value)
        )

    return is_number


_MESSAGE: Mapping[Field, Callable[[object], bool]] = {
    **dict.fromkeys((Field.EVENT, Field.OUTCOME, Field.REASON, Field.COMMIT, Field.VERDICT), _is_text),
    **dict.fromkeys((Field.STEP, Field.EPOCH), _is_count),
    **dict.fromkeys((Field.ACCURACY, Field.TEST_ACCURACY, Field.VAL_ACCURACY), _is_number(1.0)),
    Field.ETA_SECONDS: _is_number(1e9),
    Field.PROMOTED: lambda value: isinstance(value, bool),
}


def _fit(value: object, shape: Any) -> Any:
    """The value without what is of another type; None where nothing of it is left."""
    if isinstance(shape, dict):
        return _fit_object(value, shape) if isinstance(value, dict) else None
    if isinstance(shape, list):
        if not isinstance(value, list):
            return None
        return [fitted for each in value if (fitted := _fit(each, shape[0])) is not None]
    if shape is int:
        return value if _is_count(value) and value in _COUNTS else None
    return value if isinstance(value, shape) else None


def _fit_object(value: Object, shape: Mapping[str, Any]) -> Object:
    found = {}
    for key, child in value.items():
        wanted = shape.get(key, shape.get(_EACH))
        fitted = child if wanted is None else _fit(child, wanted)
        if wanted is None or fitted is not None:
            found[key] = fitted
    return found


def _has(thing: Any, path: str) -> bool:
    for key in path.split("."):
        thing = thing.get(key)
        if thing is None:
            return False
    return True


def _name(thing: object) -> str:
    metadata = thing.get("metadata") if isinstance(thing, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return one_line(name, limit=80) if isinstance(name, str) else "it has no name"
