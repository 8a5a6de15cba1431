"""How far a running pod is: from the last lines of its log, since a termination message is shown only after the end."""

import time
from collections.abc import Iterable

from k8s.api import Api
from k8s.causes import container_name
from k8s.errors import ClientError
from k8s.shapes import Object, parse_message

_NUM_LINES = 40
_MAX_BYTES = 2**20
"""Of those lines together."""
_MAX_SECONDS = 5.0
"""A container may write faster than anybody reads: its log has no end."""


def last_log_events(api: Api, pod: Object) -> list[Object]:
    """The job's last log events; none when they cannot be had: a status without progress is still a status."""
    query = {"container": container_name(pod), "tailLines": str(_NUM_LINES), "limitBytes": str(_MAX_BYTES)}
    data, deadline = bytearray(), time.monotonic() + _MAX_SECONDS
    try:
        with api.stream("pods/log", pod["metadata"]["name"], query=query, silence_seconds=_MAX_SECONDS) as pieces:
            for piece in pieces:
                data += piece
                if len(data) >= _MAX_BYTES or time.monotonic() > deadline:
                    break
    except ClientError:
        return []
    return parse_events(bytes(data).split(b"\n"))


def parse_events(lines: Iterable[bytes | str]) -> list[Object]:
    """The lines that are events; whatever else was printed is left out."""
    return [event for event in map(parse_message, lines) if event]
