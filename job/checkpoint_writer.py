"""Writes checkpoints on a thread of its own, so that training does not wait for the store."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from job import checkpoint as checkpoints
from job.checkpoint import Checkpoint
from job.errors import JobError, UnavailableError
from job.observe.logs import emit, warn
from job.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When checkpoints are written and how many stay."""

    interval_seconds: float
    keep: int
    final_save_seconds: float


class CheckpointWriter:
    """One write at a time; the caller owns the thread's end through `save_last`."""

    def __init__(self, store: Store, *, run_id: str, schedule: Schedule, after_save: Callable[[Store], None]) -> None:
        """`store` must be the writer's own: its requests run beside the main thread's, `after_save` included."""
        self._store = store
        self._run_id = run_id
        self._schedule = schedule
        self._after_save = after_save
        self._thread: threading.Thread | None = None
        self._failure: JobError | None = None
        self._next_seconds = time.monotonic() + schedule.interval_seconds

    def is_due(self) -> bool:
        """Whether the interval has passed and no write is under way.

        Raises:
            JobError: the last write failed in a way that a later one cannot mend.
        """
        if time.monotonic() < self._next_seconds or (self._thread and self._thread.is_alive()):
            return False
        self._raise_failure()
        return True

    def save(self, checkpoint: Checkpoint) -> None:
        """Start to write; a store that is away costs this checkpoint, not the run."""
        self._next_seconds = time.monotonic() + self._schedule.interval_seconds
        self._start(checkpoint)

    def save_last(self, checkpoint: Checkpoint, *, is_interrupted: bool) -> None:
        """Write and wait: for `final_save_seconds` after an interruption, else until the store's own deadline.

        Raises:
            UnavailableError: not saved in that time.
        """
        limit = self._schedule.final_save_seconds if is_interrupted else None
        deadline = time.monotonic() + limit if limit else None
        if self._thread:
            self._thread.join(limit)
        self._failure = None
        self._start(checkpoint)
        assert self._thread
        self._thread.join(max(0.0, deadline - time.monotonic()) if deadline else None)
        if self._thread.is_alive():
            raise UnavailableError(
                f"checkpoint: step {checkpoint.step} could not be saved within {limit:g} s (checkpoint.final_save_seconds); "
                "the next attempt goes on from an older one"
            )
        self._raise_failure(is_last=True)

    def _start(self, checkpoint: Checkpoint) -> None:
        self._thread = threading.Thread(target=self._write, args=(checkpoint,), daemon=True, name="checkpoint")
        self._thread.start()

    def _write(self, checkpoint: Checkpoint) -> None:
        started = time.monotonic()
        try:
            key = checkpoints.save(self._store, self._run_id, checkpoint)
            emit("checkpoint.saved", step=checkpoint.step, key=key, seconds=round(time.monotonic() - started, 4))
            checkpoints.prune(self._store, self._run_id, keep=self._schedule.keep)
            self._after_save(self._store)
        except JobError as error:
            warn("checkpoint.failed", step=checkpoint.step, reason=str(error))
            self._failure = error

    def _raise_failure(self, *, is_last: bool = False) -> None:
        failure, self._failure = self._failure, None
        if failure and (is_last or not isinstance(failure, UnavailableError)):
            raise failure
