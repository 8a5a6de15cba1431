"""The log of a run through dropped connections and replaced pods: every line once, in the order of each pod.

A pod's log counts as whole only when it was read to its end after the container had ended. Lines are told apart by the time stamp
(nanoseconds) that the kubelet puts before each, and their text, so that a second reading adds only what is new.
"""

import json
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from job.contract import Event, Field
from k8s.api import Api
from k8s.causes import CONTAINER, Object, container_state
from k8s.errors import (
    DeadlineError,
    ExpiredError,
    NoReplyError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)
from k8s.runs import JOB_NAME_LABEL, run_id_of
from k8s.status import is_settled
from k8s.watch import wait_for
from k8s.workers import INDEX_LABEL, num_workers

SILENCE_SECONDS = 30.0
"""A connection that says nothing for so long is made again: half-dead ones look the same as a quiet log."""
_OVERLAP = timedelta(seconds=5)
"""Read again after a drop: stdout and stderr are stamped before they are written, so that stamps may come out of order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of a pod's log."""

    pod: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something to say beside the log."""

    text: str


@dataclass(slots=True)
class _Reader:
    """What was read of one pod."""

    pod: str
    newest: datetime | None = None
    recent: deque[tuple[datetime, str]] = field(default_factory=deque)
    """(stamp, line) of the last seconds, which a second reading brings again."""
    last_text: str = ""
    is_whole: bool = False

    def since(self) -> str:
        """From where to read again; empty: from the start."""
        return f"{self.newest - _OVERLAP:%Y-%m-%dT%H:%M:%SZ}" if self.newest else ""

    def take(self, lines: Iterator[str]) -> Iterator[LogLine]:
        """Those of a reading that are new."""
        known = Counter(line for _, line in self.recent)
        for line in lines:
            if known[line] > 0:
                known[line] -= 1
                continue
            stamp, _, text = line.partition(" ")
            self._remember(_parse(stamp), line)
            self.last_text = text
            yield LogLine(pod=self.pod, text=text)

    def _remember(self, stamp: datetime, line: str) -> None:
        self.newest = max(self.newest or stamp, stamp)
        self.recent.append((stamp, line))
        while self.recent[0][0] < self.newest - 2 * _OVERLAP:
            self.recent.popleft()

    @property
    def has_said_its_end(self) -> bool:
        """Whether the last line is the last that the job writes."""
        try:
            event = json.loads(self.last_text)
        except ValueError:
            return False
        return isinstance(event, dict) and event.get(Field.EVENT) == Event.RUN_END


def where_else(text: str, job: Object, *, worker: int) -> str:
    """What to say of a log that is gone with its pods: the store has that of the chief alone."""
    if worker:
        return f"the log of worker {worker} goes with its pods, and the store has only that of worker 0"
    return f"{text}: mnist-job logs {run_id_of(job)}"


def read_log(
    api: Api, job: Object, *, worker: int = 0, follow: bool, timeout_seconds: float
) -> Iterator[LogLine | Notice]:
    """The log of a worker's pods, oldest first.

    Args:
        follow: wait for the first pod, and for replacements until the Job has ended.
        timeout_seconds: how long to follow at most.

    Raises:
        DeadlineError: the Job has not ended by then.
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
        return sorted(started, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

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
    """Its lines until the end; a notice, which ends with `stored`, when the pod goes before that is certain."""
    pause, fields = 0.2, f"metadata.name={reader.pod}"
    found: Object | None = pod
    while found is not None:
        has_ended = bool(container_state(found).get("terminated"))
        try:
            before = reader.newest
            yield from reader.take(_lines(api, reader, follow=follow and not has_ended))
            if has_ended or not follow:
                return
            pause = 0.2 if reader.newest != before else pause
        except (NotFoundError, RefusedError):  # gone between two looks; 400: the container is gone already
            pass
        except UnavailableError as error:
            pause = 1.0 if isinstance(error, ExpiredError) else min(5.0, pause * 2)
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


def _lines(api: Api, reader: _Reader, *, follow: bool) -> Iterator[str]:
    """Whole lines with their stamps; a piece of a line that a broken connection leaves behind is dropped."""
    query = {
        "container": CONTAINER,
        "timestamps": "true",
        "follow": "true" if follow else "",
        "sinceTime": reader.since(),
    }
    rest = b""
    with api.stream("pods/log", reader.pod, query=query, silence_seconds=SILENCE_SECONDS) as pieces:
        for piece in pieces:
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.decode(errors="replace")
    if rest:  # the reply was whole: so is its last line
        yield rest.decode(errors="replace")


def _parse(stamp: str) -> datetime:
    try:
        return datetime.fromisoformat(stamp).astimezone(UTC)
    except ValueError as error:
        raise NoReplyError(f"a log line without a time stamp: {stamp[:40]}") from error
