"""Log lines that outlive the pod: create-only segments in the store, with every checkpoint and at the end."""

import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from job import clock
from job.contract import log_key, log_of_key, log_prefix
from job.errors import IntegrityError, JobError
from job.logs import json_formatter, warn
from job.store.store import Store

EXIT_SECONDS = 5.0
"""How long the last segment may take: a store that is away must not hold the exit back."""

_MAX_SEGMENT_BYTES = 64_000_000


class StoredLog(logging.Handler):
    """Keeps this attempt's lines until they are written; lines that could not be written wait for the next segment."""

    def __init__(self, *, run: str, attempt: str) -> None:
        super().__init__()
        self.setFormatter(json_formatter(run=run, attempt=attempt))
        self._run, self._attempt = run, attempt
        self._lines: list[str] = []
        self._num_segments = 0
        self._flush_lock = threading.Lock()
        self._store: Store | None = None
        self._files: set[str] = set()

    def attach(self, store: Store) -> None:
        """From now on there is a store to write to."""
        self._store = store

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line; `logging` calls this under the handler's own lock."""
        self._lines.append(self.format(record))

    def write_segment(self, store: Store) -> None:
        """Write what has come since the last segment; a store that is away costs a warning, never the run."""
        with self._flush_lock:
            with self._locked():
                lines, self._lines = self._lines, []
            if not lines:
                return
            data = ("\n".join(lines) + "\n").encode()
            try:
                # A container that was restarted in its pod finds its own earlier segments.
                while store.create(self._key(self._num_segments), data) != data:
                    self._num_segments += 1
                self._num_segments += 1
            except JobError as error:
                with self._locked():
                    self._lines = lines + self._lines
                warn("logs.not_stored", lines=len(lines), reason=str(error))

    def finish(self, files: Mapping[str, bytes]) -> None:
        """Write files beside the segments (name -> content), and the last segment, for `EXIT_SECONDS` at most."""
        if self._store is None:
            return
        thread = threading.Thread(
            target=self._write_last, args=(self._store, files), daemon=True, name="last log segment"
        )
        thread.start()

        def has_ended(seconds: float) -> bool:
            thread.join(seconds)
            return not thread.is_alive()

        clock.wait(has_ended, seconds=EXIT_SECONDS)

    def location(self, name: str) -> str:
        """The URI of a file that `finish` has written, for people; empty when it was not written."""
        return self._store.location(self._file_key(name)) if self._store and name in self._files else ""

    def _write_last(self, store: Store, files: Mapping[str, bytes]) -> None:
        try:
            for name, data in files.items():
                store.put(self._file_key(name), data)
                self._files.add(name)
        except JobError as error:
            warn("logs.not_stored", files=list(files), reason=str(error))
        self.write_segment(store)

    def _key(self, number: int) -> str:
        return log_key(self._run, attempt_id=self._attempt, number=number)

    def _file_key(self, name: str) -> str:
        return f"{log_prefix(self._run)}{self._attempt}/{name}"

    def _locked(self) -> Any:
        assert self.lock
        return self.lock


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSegment:
    """Lines of one attempt, byte for byte."""

    attempt: str
    data: bytes


def read_stored_log(store: Store, run_id: str, *, seen: set[str] | None = None) -> Iterator[StoredSegment]:
    """The stored log of a run: attempts in the order in which they started, each from its first line on.

    One segment at a time is in memory. A warning names each that is too long, or is gone.

    Args:
        seen: keys that are left out; those of this reading are added.
    """
    seen = set() if seen is None else seen
    attempts: dict[str, list[str]] = {}
    for entry in store.list_objects(log_prefix(run_id)):
        if (segment := log_of_key(entry.key)) and entry.key not in seen:
            attempts.setdefault(segment[1], []).append(entry.key)

    def first_line(attempt: str) -> bytes:
        line, _, _ = _read_segment(store, attempts[attempt][0]).partition(b"\n")
        return line  # it starts with its time, in a form that sorts

    in_order = sorted(attempts, key=first_line) if len(attempts) > 1 else list(attempts)
    for attempt in in_order:
        for key in attempts[attempt]:
            seen.add(key)
            yield StoredSegment(attempt=attempt, data=_read_segment(store, key))


def _read_segment(store: Store, key: str) -> bytes:
    try:
        return store.get(key, max_bytes=_MAX_SEGMENT_BYTES) or b""
    except IntegrityError as error:
        warn("logs.skipped", reason=str(error))
        return b""
