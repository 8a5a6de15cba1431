"""How a run stands that has no COMMIT: running, ended, or silent, as far as the store tells. Never imports TensorFlow.

A reader sees no process. It sees what attempts left: run.json, attempt.json, checkpoints, log segments. The last segment of an
attempt that could say its end holds the event `run.end`, or the one before it: an attempt that then fails to write the page of
its model stores that warning in one more. An attempt that was killed says nothing more. A start that was refused stores
`run.end` and no attempt.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from job import clock, contract, records
from job.config import CheckpointSection, ObserveSection
from job.contract import Event, ExitCode, Field
from job.errors import IntegrityError
from job.runs import read, shapes
from job.store.backend import Entry
from job.store.store import Store

_MAX_SEGMENT_BYTES = 64_000_000
_LAST_SEGMENTS, _LAST_LINES = 2, 30
"""In which an attempt's `run.end` is looked for: a thread may warn of something after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """A run without a COMMIT.

    Attributes:
        state: `running`, `no sign of life`, `interrupted`, `failed`, `skipped`, or `damaged`: its COMMIT was there once.
        begun: its run.json; empty when no attempt came so far.
        started: when it began, ISO 8601 in UTC.
        last_sign: when its newest attempt said that it ends, else when the newest object was written, by the clock of the store.
        num_attempts: those that came as far as attempt.json.
        code, reason: how its newest attempt ended; None and empty when that is not known.
        step: of the newest checkpoint, from which an attempt would go on; None when there is none.
    """

    run: str
    state: str
    begun: Mapping[str, Any]
    started: str
    last_sign: str
    num_attempts: int
    code: int | None = None
    reason: str = ""
    step: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether its newest attempt said so."""
        return self.code is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How an attempt ended, as its `run.end` says."""

    outcome: str
    code: int
    time: str
    seconds: float
    reason: str


def read_open_run(store: Store, run_id: str) -> OpenRun | None:
    """How a run without a COMMIT stands; None when the store has nothing of it. Six requests at most.

    Raises:
        IntegrityError: its run.json cannot be read.
    """
    entries = [entry for entry in store.list_objects(contract.run_prefix(run_id)) if contract.run_of_key(entry.key)]
    if not entries:
        return None
    is_begun = any(entry.key == contract.run_key(run_id) for entry in entries)
    begun = read.read_begun(store, run_id) if is_begun else {}
    times = [entry.modified_seconds for entry in entries]
    end = read_end(store, entries)
    steps = [found[1] for entry in entries if (found := contract.checkpoint_of_key(entry.key))]
    return OpenRun(
        run=run_id,
        state=_state_after(end) if end else _state_of_silent(begun, age_seconds=clock.now() - max(times)),
        begun=begun,
        started=str(begun.get("created") or _start_before(min(times), end)),
        last_sign=end.time if end else clock.timestamp(max(times)),
        num_attempts=sum(read.is_attempt_file(entry.key) for entry in entries),
        code=end.code if end else None,
        reason=end.reason if end else "",
        step=max(steps, default=None),
    )


def _start_before(first_seconds: float, end: End | None) -> str:
    """Of an attempt that left nothing but its last words: these say how long it took."""
    begins = [first_seconds] if end is None else [first_seconds, clock.seconds_of(end.time) - max(0.0, end.seconds)]
    return clock.timestamp(min(begins))


def _state_after(end: End) -> str:
    if end.code == ExitCode.INTERRUPTED:
        return "interrupted"
    if end.code:
        return "failed"
    return "skipped" if end.outcome == "skipped" else "damaged"


def _state_of_silent(begun: Mapping[str, Any], *, age_seconds: float) -> str:
    """A live attempt writes with each checkpoint, and ends itself when nothing moves for the stall timeout."""
    limit_seconds = _setting(begun, "checkpoint", "interval_seconds", CheckpointSection().interval_seconds)
    limit_seconds += _setting(begun, "observe", "stall_timeout_seconds", ObserveSection().stall_timeout_seconds)
    return "running" if age_seconds <= limit_seconds else "no sign of life"


def _setting(begun: Mapping[str, Any], section: str, name: str, default: float) -> float:
    values = begun.get("config", {}).get(section)
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default


def read_end(store: Store, entries: Sequence[Entry]) -> End | None:
    """How the newest attempt of a run ended; None when it did not say so, or another goes on. Four requests at most.

    A start that was refused never registers: its end counts when the newest registered attempt has ended too, or there is none.

    Args:
        entries: all objects of the run, sorted by key.
    """
    segments = [entry for entry in entries if contract.log_of_key(entry.key)]
    if not segments:
        return None
    last = max(segments, key=lambda entry: (entry.modified_seconds, entry.key))
    speaker = _attempt_of(last)
    registered = {_attempt_of(entry): entry.modified_seconds for entry in entries if read.is_attempt_file(entry.key)}
    newest = max(registered, key=registered.__getitem__, default=speaker)
    must_have_ended = speaker not in registered or registered[newest] > last.modified_seconds
    if must_have_ended and newest != speaker and not _read_end_of(store, segments, attempt=newest):
        return None
    return _read_end_of(store, segments, attempt=speaker)


def _attempt_of(entry: Entry) -> str:
    """Of a log segment or an attempt.json."""
    parts = contract.log_of_key(entry.key) or contract.attempt_of_key(entry.key)
    return parts[1] if parts else ""


def _read_end_of(store: Store, segments: Sequence[Entry], *, attempt: str) -> End | None:
    """What the last segments of one attempt say of its end. Two requests at most."""
    keys = [entry.key for entry in segments if _attempt_of(entry) == attempt]
    lines: list[bytes] = []
    for key in reversed(keys[-_LAST_SEGMENTS:]):
        try:
            data = store.get(key, max_bytes=_MAX_SEGMENT_BYTES) or b""
            lines = [*data.rstrip().split(b"\n"), *lines][-_LAST_LINES:]
            end = _parse_end(lines, key=key)
        except IntegrityError:  # whoever wrote it, it is no log of ours
            return None
        if end or len(lines) == _LAST_LINES:
            return end
    return None


def _parse_end(lines: Sequence[bytes], *, key: str) -> End | None:
    """The end that these lines tell; a container that starts again in its pod goes on with the log, and has not ended.

    Raises:
        IntegrityError: a line is no event.
    """
    events = [records.parse_object(line, name=f"store: {key}") for line in lines if line.strip()]
    turns = [event for event in events if event.get(Field.EVENT) in (Event.RUN_START, Event.RUN_END)]
    if not turns or turns[-1][Field.EVENT] == Event.RUN_START:
        return None
    end = shapes.to_shape(shapes.RunEnd, turns[-1], name=f"store: {key} does not say how its attempt ended")
    told = (Event.ERROR, Event.RUN_INTERRUPTED)
    reasons = [event.get(Field.REASON) for event in events if event.get(Field.EVENT) in told]
    reason = str(reasons[-1] or "") if reasons else ""
    return End(outcome=end.outcome, code=end.code, time=end.time, seconds=end.seconds, reason=reason)
