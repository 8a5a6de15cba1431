"""Waiting for objects: a list is the truth, a watch is only a hint that it may be worth while to list again.

Whatever a watch does (ends at once, 410, silence, nonsense), nothing is concluded from it, and nothing waits for it longer than
`SILENCE_SECONDS`.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from k8s.api import Api
from k8s.errors import ClientError, DeadlineError
from k8s.shapes import Object

T = TypeVar("T")

SILENCE_SECONDS = 10.0
_MIN_PAUSE_SECONDS = 0.5
"""Between two lists, however often a watch calls."""


def wait_for(
    api: Api,
    look: Callable[[list[Object]], T | None],
    *,
    resource: str,
    labels: str = "",
    fields: str = "",
    what: str,
    deadline: float,
) -> T:
    """List until `look` returns something; returns that.

    Args:
        look: is given the objects as they are now.
        deadline: of `time.monotonic`.

    Raises:
        DeadlineError: it did not come in time.
    """
    while True:
        started = time.monotonic()
        objects, version = api.list(resource, labels=labels, fields=fields)
        found = look(objects)
        if found is not None:
            return found
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise DeadlineError(
                f"{what}: not within the time given; give a longer --timeout, or look with mnist-k8s status"
            )
        _wait_for_a_hint(api, resource, labels=labels, fields=fields, version=version, seconds=remaining)
        time.sleep(max(0.0, min(remaining, started + _MIN_PAUSE_SECONDS - time.monotonic())))


def _wait_for_a_hint(api: Api, resource: str, *, labels: str, fields: str, version: str, seconds: float) -> None:
    """Return when something may have changed, or after a while."""
    seconds = min(SILENCE_SECONDS, seconds)
    query = {
        "watch": "true",
        "resourceVersion": version,
        "labelSelector": labels,
        "fieldSelector": fields,
        "timeoutSeconds": str(max(1, int(seconds))),
    }
    try:
        with api.stream(resource, query=query, silence_seconds=seconds + 1.0) as pieces:
            next(pieces, None)
    except ClientError:  # the next list says what is the matter, if it is more than this watch
        time.sleep(min(1.0, seconds))
