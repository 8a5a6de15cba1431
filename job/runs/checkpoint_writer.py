"""Writes checkpoints on a thread of its own, so that training does not wait for the store."""

import threading
from collections.abc import Callable

from job import clock
from job.config import CheckpointSection
from job.contract import Event
from job.errors import JobError, UnavailableError
from job.logs import emit, warn
from job.runs import checkpoint as checkpoints
from job.runs.checkpoint import Checkpoint
from job.signals import StopSignal
from job.store.store import Store

_POLL_SECONDS = 0.1


class CheckpointWriter:
    """One write at a time. Call `save_last` at the end: it waits for the thread."""

    def __init__(
        self,
        store: Store,
        *,
        run_id: str,
        schedule: CheckpointSection,
        on_saved: Callable[[int, float], None],
        after_save: Callable[[Store], None],
    ) -> None:
        """Nothing is written yet.

        Args:
            store: must be the writer's own: its requests run beside the main thread's.
            schedule: when checkpoints are written and how many stay.
            on_saved: is told the step and the seconds of each checkpoint that was written.
            after_save: called with the store after each checkpoint, on the writer's thread.
        """
        self._store = store
        self._run_id = run_id
        self._schedule = schedule
        self._on_saved, self._after_save = on_saved, after_save
        self._is_done = threading.Event()
        self._is_done.set()
        self._after_save_lock = threading.Lock()
        self._failure: BaseException | None = None
        self._next_seconds = clock.monotonic() + schedule.interval_seconds

    def is_due(self) -> bool:
        """Whether the interval has passed and no write is under way.

        Raises:
            JobError: the last write failed with another error than UnavailableError.
        """
        if clock.monotonic() < self._next_seconds or not self._is_done.is_set():
            return False
        failure, self._failure = self._failure, None
        if failure and not isinstance(failure, UnavailableError):
            raise failure
        return True

    def save(self, checkpoint: Checkpoint) -> None:
        """Start the write on its own thread. When the store is unreachable, only this checkpoint is lost."""
        self._next_seconds = clock.monotonic() + self._schedule.interval_seconds
        self._failure = None
        self._is_done.clear()
        threading.Thread(target=self._write, args=(checkpoint,), daemon=True, name="checkpoint").start()

    def save_last(self, checkpoint: Checkpoint, *, stop: StopSignal) -> None:
        """Write and wait: at most until the store's deadline; after a stop request, for `final_save_seconds`.

        Raises:
            UnavailableError: not saved in that time.
        """
        deadline = _StopDeadline(stop, seconds=self._schedule.final_save_seconds)
        is_done = deadline.wait(self._is_done)
        if is_done:
            self.save(checkpoint)
            is_done = deadline.wait(self._is_done)
        if not is_done:
            raise UnavailableError(
                f"checkpoint: step {checkpoint.step} could not be saved within {self._schedule.final_save_seconds:g} s "
                "(checkpoint.final_save_seconds); the next attempt goes on from an older one"
            )
        if self._failure:
            raise self._failure

    def _write(self, checkpoint: Checkpoint) -> None:
        started = clock.monotonic()
        try:
            key = checkpoints.save(self._store, self._run_id, checkpoint)
        except BaseException as error:  # noqa: BLE001 - raised again in the training thread
            warn("checkpoint.failed", step=checkpoint.step, reason=f"{type(error).__name__}: {error}")
            self._failure = error
            self._is_done.set()
            return
        seconds = round(clock.monotonic() - started, 4)
        emit(Event.CHECKPOINT_SAVED, step=checkpoint.step, key=key, seconds=seconds)
        self._on_saved(checkpoint.step, seconds)
        self._is_done.set()  # what follows is not worth waiting for
        with self._after_save_lock:
            try:
                checkpoints.prune(self._store, self._run_id, keep=self._schedule.keep)
            except JobError as error:
                warn("cleanup.failed", reason=str(error))
            self._after_save(self._store)


class _StopDeadline:
    """Waits without limit until a stop is requested, and for so many seconds from then on."""

    def __init__(self, stop: StopSignal, *, seconds: float) -> None:
        self._stop = stop
        self._seconds = seconds
        self._deadline: float | None = None

    def wait(self, event: threading.Event) -> bool:
        """Whether the event came in time."""
        while not event.wait(_POLL_SECONDS):
            now = clock.monotonic()
            if self._stop.requested and self._deadline is None:
                self._deadline = now + self._seconds
            if self._deadline is not None and now >= self._deadline:
                return False
        return True
