"""How far a running pod is: from the last lines of its log, since a termination message is shown only after the end."""

import json
from typing import Any

from k8s.api import Api
from k8s.causes import CONTAINER
from k8s.errors import ClientError

_NUM_LINES = 40


def last_log_events(api: Api, pod: str) -> list[dict[str, Any]]:
    """The job's last log events; none when they cannot be had: a status without progress is still a status."""
    query = {"container": CONTAINER, "tailLines": str(_NUM_LINES)}
    try:
        with api.stream("pods/log", pod, query=query, silence_seconds=5.0) as pieces:
            lines = b"".join(pieces).decode(errors="replace").splitlines()
    except ClientError:
        return []
    return parse_events(lines)


def parse_events(lines: list[str]) -> list[dict[str, Any]]:
    """The lines that are events; whatever else was printed is left out."""
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
