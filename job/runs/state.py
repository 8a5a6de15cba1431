"""How a run stands that has no COMMIT: running, ended, or silent, as far as the store tells. Never imports TensorFlow.

A reader sees no process. It sees what attempts left: run.json, attempt.json, checkpoints, log segments. The last segment of an
attempt that could say its end holds the event `run.end`. An attempt that was killed says nothing more.
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
LAST_LINES = 30
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
class _End:
    outcome: str
    code: int
    time: str
    seconds: float
    reason: str


def read_open_run(store: Store, run_id: str) -> OpenRun | None:
    """How a run without a COMMIT stands; None when the store has nothing of it. Three requests at most.

    Raises:
        IntegrityError: its run.json cannot be read.
    """
    entries = [entry for entry in store.list_objects(contract.run_prefix(run_id)) if contract.run_of_key(entry.key)]
    if not entries:
        return None
    is_begun = any(entry.key == contract.run_key(run_id) for entry in entries)
    begun = read.read_begun(store, run_id) if is_begun else {}
    times = [entry.modified_seconds for entry in entries]
    end = _read_end(store, entries)
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


def _start_before(first_seconds: float, end: _End | None) -> str:
    """Of an attempt that left nothing but its last words: these say how long it took."""
    begins = [first_seconds] if end is None else [first_seconds, clock.seconds_of(end.time) - max(0.0, end.seconds)]
    return clock.timestamp(min(begins))


def _state_after(end: _End) -> str:
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


def _read_end(store: Store, entries: Sequence[Entry]) -> _End | None:
    """How the newest attempt ended; None when it did not say so, or another has begun since."""
    segments = [entry for entry in entries if contract.log_of_key(entry.key)]
    if not segments:
        return None
    last = max(segments, key=lambda entry: (entry.modified_seconds, entry.key))
    found = contract.log_of_key(last.key)
    later = [entry for entry in entries if entry.modified_seconds > last.modified_seconds]
    if any(found and _begins_another(entry.key, attempt=found[1]) for entry in later):
        return None
    try:
        data = store.get(last.key, max_bytes=_MAX_SEGMENT_BYTES) or b""
        return _parse_end(data.rstrip().split(b"\n")[-LAST_LINES:], key=last.key)
    except IntegrityError:  # whoever wrote it, it is no log of ours
        return None


def _begins_another(key: str, *, attempt: str) -> bool:
    """Whether it is what another attempt writes first. The times of all others may be those of a copy."""
    parts = contract.attempt_of_key(key)
    return read.is_attempt_file(key) and parts is not None and parts[1] != attempt


def _parse_end(lines: Sequence[bytes], *, key: str) -> _End | None:
    """Raises:
    IntegrityError: a line is no event.
    """
    events = [records.parse_object(line, name=f"store: {key}") for line in lines if line.strip()]
    ends = [event for event in events if event.get(Field.EVENT) == Event.RUN_END]
    if not ends:
        return None
    end = shapes.to_shape(shapes.RunEnd, ends[-1], name=f"store: {key} does not say how its attempt ended")
    told = (Event.ERROR, Event.RUN_INTERRUPTED)
    reasons = [event.get(Field.REASON) for event in events if event.get(Field.EVENT) in told]
    reason = str(reasons[-1] or "") if reasons else ""
    return _End(outcome=end.outcome, code=end.code, time=end.time, seconds=end.seconds, reason=reason)
