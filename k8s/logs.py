"""The log of a run through dropped connections and replaced pods: every line once, in the order of each pod.

A pod's log counts as whole only when it was read to its end after the container had ended. Lines are told apart by the time stamp
(nanoseconds) that the kubelet puts before each, and their text, so that a second reading adds only what is new.
"""

import hashlib
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from job.contract import Event, Field
from job.texts import quoted
from k8s.api import Api
from k8s.causes import container_name, container_state
from k8s.errors import (
    ClientError,
    DeadlineError,
    ExpiredError,
    NoReplyError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)
from k8s.runs import JOB_NAME_LABEL, run_id_of
from k8s.shapes import Object, parse_message, parse_time
from k8s.status import is_settled
from k8s.watch import wait_for
from k8s.workers import INDEX_LABEL, num_workers

SILENCE_SECONDS = 30.0
"""A connection that says nothing for so long is made again: half-dead ones look the same as a quiet log."""
PATIENCE_SECONDS = 90.0
"""How long a log that is not followed may be refused before that is an error."""
_OVERLAP = timedelta(seconds=5)
"""Read again after a drop: stdout and stderr are stamped before they are written, so that stamps may come out of order."""
_MAX_LINE_BYTES = 2**20
"""What is longer is handed on in parts of that size: a container may write for ever without a line break."""
_MAX_RECENT_LINES = 200_000
_STAMP_BYTES = 64
"""More than a time stamp has."""
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of a pod's log; of one that is longer than 1 MiB, a part that ends without a line break but for the last."""

    pod: str
    text: str
    """Without its line break; what is no UTF-8 is replaced."""
    data: bytes = field(default=b"", compare=False, repr=False)
    """What the container has written, with its line break."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something to say beside the log."""

    text: str


@dataclass(slots=True)
class _Line:
    """What was handed on of a line."""

    stamp: datetime
    key: bytes
    """Digest of its stamp and its first part."""
    num_bytes: int = 0


@dataclass(slots=True)
class _Reader:
    """What was read of one pod."""

    pod: str
    newest: datetime | None = None
    recent: deque[_Line] = field(default_factory=deque)
    """Those of the last seconds, which a second reading brings again."""
    last_data: bytes = b""
    is_whole: bool = False

    def since(self) -> str:
        """From where to read again; empty: from the start."""
        return f"{self.newest - _OVERLAP:%Y-%m-%dT%H:%M:%SZ}" if self.newest else ""

    def take(self, parts: Iterable[bytes], *, until: datetime | None = None) -> Iterator[LogLine]:
        """Those of a reading that are new; none that were stamped after `until`.

        Args:
            parts: of lines, each with its line break; a line of several parts has it in the last.
        """
        known = self._known()
        line, num_seen, is_start = _Line(_LONG_AGO, b""), 0, True
        for part in parts:
            text = part
            if is_start:
                stamp, text = _split_stamp(part)
                if until and stamp > until:
                    return
                line, num_seen = self._find(known, stamp, part), 0
            new = text[max(0, line.num_bytes - num_seen) :]
            num_seen += len(text)
            line.num_bytes = max(line.num_bytes, num_seen)
            is_start = part.endswith(b"\n")
            if new:
                self.last_data = new
                yield LogLine(pod=self.pod, text=new.removesuffix(b"\n").decode(errors="replace"), data=new)

    def _known(self) -> dict[bytes, deque[_Line]]:
        known: dict[bytes, deque[_Line]] = {}
        for line in self.recent:
            known.setdefault(line.key, deque()).append(line)
        return known

    def _find(self, known: dict[bytes, deque[_Line]], stamp: datetime, part: bytes) -> _Line:
        """The line that begins so: one that an earlier reading has brought, or a new one."""
        key = hashlib.blake2b(part, digest_size=16).digest()
        if known.get(key):
            return known[key].popleft()
        line = _Line(stamp, key)
        self.newest = max(self.newest or stamp, stamp)
        self.recent.append(line)
        while self.recent[0].stamp < self.newest - 2 * _OVERLAP or len(self.recent) > _MAX_RECENT_LINES:
            self.recent.popleft()
        return line

    @property
    def has_said_its_end(self) -> bool:
        """Whether the last line is the last that the job writes."""
        return parse_message(self.last_data).get(Field.EVENT) == Event.RUN_END


def _split_stamp(part: bytes) -> tuple[datetime, bytes]:
    time = _parse_stamp(part)
    if time is None:
        raise NoReplyError(f"a log line without a time stamp: {part[:_STAMP_BYTES]!r}")
    return time, part.partition(b" ")[2]


def where_else(text: str, job: Object, *, worker: int) -> str:
    """What to say of a log that is gone with its pods: the store has that of the chief alone."""
    if worker:
        return f"the log of worker {worker} goes with its pods, and the store has only that of worker 0"
    return f"{text}: mnist-job logs {quoted(run_id_of(job))}"


def read_log(
    api: Api, job: Object, *, worker: int = 0, follow: bool, timeout_seconds: float
) -> Iterator[LogLine | Notice]:
    """The log of a worker's pods, oldest first.

    Args:
        follow: wait for the first pod, and for replacements until the Job has ended.
        timeout_seconds: how long to follow at most.

    Raises:
        DeadlineError: the Job has not ended by then.
        ClientError: it is not followed, and the log of a pod is refused again and again.
    """
    deadline = time.monotonic() + timeout_seconds
    readers: dict[str, _Reader] = {}
    while True:
        pods, is_over = _next_pods(api, job, worker, readers, follow=follow, deadline=deadline)
        for pod in pods:
            reader = readers.setdefault(pod["metadata"]["name"], _Reader(pod["metadata"]["name"]))
            stored = where_else("all that it stored", job, worker=worker)
            yield from _read_pod(api, reader, pod, follow=follow, deadline=deadline, stored=stored)
            reader.is_whole = True
        if is_over or not follow:
            break
    if not readers:
        name = job["metadata"]["name"]
        what = f"no pod of worker {worker} of {name}" if worker else f"no pod of {name}"
        yield Notice(text=f"{what} has a log now; {where_else('what it stored', job, worker=worker)}")


def _next_pods(
    api: Api, job: Object, worker: int, readers: dict[str, _Reader], *, follow: bool, deadline: float
) -> tuple[list[Object], bool]:
    """Pods with a log that was not read yet, oldest first, and whether no more can come."""
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]

    def unread(pods: list[Object]) -> list[Object]:
        ours = [pod for pod in pods if not (reader := readers.get(pod["metadata"]["name"])) or not reader.is_whole]
        started = [pod for pod in ours if has_log(pod)]
        return sorted(started, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]))

    labels = f"{JOB_NAME_LABEL}={name}" + (f",{INDEX_LABEL}={worker}" if num_workers(job) > 1 else "")
    if not follow:
        return unread(api.list("pods", labels=labels)[0]), True

    def look(pods: list[Object]) -> tuple[list[Object], bool] | None:
        # The Job first: pods that are made after it was seen to have ended would be missed the other way round.
        is_over = _is_over(api, name, uid)
        found = unread(api.list("pods", labels=labels)[0]) if is_over else unread(pods)
        return (found, is_over) if found or is_over else None

    return wait_for(api, look, resource="pods", labels=labels, what=f"end of the log of {name}", deadline=deadline)


def _is_over(api: Api, name: str, uid: str) -> bool:
    try:
        job = api.get("jobs", name)
    except NotFoundError:
        return True
    return job["metadata"]["uid"] != uid or is_settled(job)


def has_log(pod: Object) -> bool:
    """Whether its container runs or has run."""
    state = container_state(pod)
    return bool(state.get("running") or state.get("terminated"))


def _read_pod(
    api: Api, reader: _Reader, pod: Object, *, follow: bool, deadline: float, stored: str
) -> Iterator[LogLine | Notice]:
    """Its lines until the end, or until now; a notice, which ends with `stored`, when the pod goes before that is certain.

    Raises:
        DeadlineError: it was followed for so long.
        ClientError: it is not followed, and is refused for `PATIENCE_SECONDS` without a line.
    """
    pause, fields, patience = 0.2, f"metadata.name={reader.pod}", time.monotonic() + PATIENCE_SECONDS
    found: Object | None = pod
    until: datetime | None = None
    while found is not None:
        has_ended = bool(container_state(found).get("terminated"))
        before = reader.newest
        refused: ClientError | None = None
        try:
            # A container may write faster than anybody reads: without the time its log would have no end.
            until = until or (None if follow or has_ended else _newest_stamp(api, found))
            with closing(_parts(api, reader, found, follow=follow and not has_ended, deadline=deadline)) as parts:
                yield from reader.take(parts, until=until)
            if has_ended or not follow:
                return
        except (NotFoundError, RefusedError) as error:  # gone between two looks; 400: the container is gone already
            refused = error
        except UnavailableError as error:
            refused = error
            pause = 1.0 if isinstance(error, ExpiredError) else min(5.0, pause * 2)
        if reader.newest != before:
            pause, patience = 0.2, time.monotonic() + PATIENCE_SECONDS
        if refused and not follow and time.monotonic() > patience:
            raise refused
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"log of {reader.pod}: its end did not come within the time given; give a longer --timeout"
            )
        time.sleep(pause)
        found = next(iter(api.list("pods", fields=fields)[0]), None)
    if not reader.has_said_its_end:
        yield Notice(
            text=f"pod {reader.pod} is gone (evicted or deleted), perhaps before its last lines were read; {stored}"
        )


def _newest_stamp(api: Api, pod: Object) -> datetime:
    """When the container wrote its newest line, by the clock that stamps all of them; long ago when it has written none."""
    query = {"container": container_name(pod), "timestamps": "true", "tailLines": "1", "limitBytes": str(_STAMP_BYTES)}
    data = b""
    with api.stream("pods/log", pod["metadata"]["name"], query=query, silence_seconds=SILENCE_SECONDS) as pieces:
        for piece in pieces:
            data += piece
            if len(data) > _MAX_LINE_BYTES:
                break
    stamps = (_parse_stamp(line) for line in data.split(b"\n"))
    return max(filter(None, stamps), default=_LONG_AGO)


def _parts(api: Api, reader: _Reader, pod: Object, *, follow: bool, deadline: float) -> Generator[bytes, None, None]:
    """Lines with their stamps and line breaks, long ones in parts; what a broken connection leaves of a line is dropped."""
    query = {
        "container": container_name(pod),
        "timestamps": "true",
        "follow": "true" if follow else "",
        "sinceTime": reader.since(),
    }
    rest = b""
    with api.stream("pods/log", reader.pod, query=query, silence_seconds=SILENCE_SECONDS) as pieces:
        for piece in pieces:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield from _cut(line + b"\n")
            if len(rest) > _MAX_LINE_BYTES:
                *parts, rest = _cut(rest)
                yield from parts
            if follow and time.monotonic() > deadline:
                return
    if rest:  # the reply was whole: so is its last line
        yield rest


def _cut(line: bytes) -> Iterator[bytes]:
    """A line in parts that are the same in every reading."""
    return (line[start : start + _MAX_LINE_BYTES] for start in range(0, len(line), _MAX_LINE_BYTES))


def _parse_stamp(part: bytes) -> datetime | None:
    return parse_time(part[:_STAMP_BYTES].partition(b" ")[0].decode(errors="replace"))
