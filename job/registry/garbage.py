"""Finds and deletes what no COMMIT and no move names: left-overs of killed attempts, runs that were given up, and unfinished
serving layouts that are older than the newest complete one.

`gc` closes a run without a result before it deletes anything of it: it writes a closing record at COMMIT's key. An attempt that
wakes later cannot create its COMMIT, so that no COMMIT ever names a deleted object.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from job import clock
from job.contract import (
    CHECKS_PREFIX,
    MODELS_PREFIX,
    RUNS_PREFIX,
    attempt_prefix,
    attempts_prefix,
    checkpoint_prefix,
    is_check_key,
    is_model_name,
    is_run_id,
    log_prefix,
    run_key,
    run_of_key,
    run_prefix,
)
from job.errors import IntegrityError, NotFoundError
from job.logs import warn
from job.registry.serving import list_layouts, newest_loadable
from job.runs.read import ClosedRun, is_attempt_file, read_run
from job.runs.write import abandon
from job.store.backend import Entry
from job.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """What can go from one place.

    Attributes:
        place: `runs/<run_id>/`, the folder of a serving version, or that of left-over store checks.
        reason: why nothing needs it.
        run_to_close: the run that has to be closed first, where it has no result yet.
    """

    place: str
    reason: str
    entries: tuple[Entry, ...]
    run_to_close: str | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all objects together."""
        return sum(entry.num_bytes for entry in self.entries)


def find_garbage(store: Store, *, older_than_seconds: float, now_seconds: float) -> Iterator[Garbage]:
    """Unreferenced objects older than `older_than_seconds`, one `Garbage` for each place; changes nothing.

    Args:
        now_seconds: seconds since the epoch.
    """
    before_seconds = now_seconds - older_than_seconds
    checks = [entry for entry in store.list_objects(CHECKS_PREFIX) if is_check_key(entry.key)]
    checks = [entry for entry in checks if entry.modified_seconds < before_seconds]
    if checks:
        yield Garbage(place=CHECKS_PREFIX, reason="left over from store check", entries=tuple(checks))
    for model in filter(is_model_name, store.list_folders(MODELS_PREFIX)):
        yield from _of_model(store, model, before_seconds=before_seconds)
    for run_id in filter(is_run_id, store.list_folders(RUNS_PREFIX)):
        try:
            garbage = _of_run(store, run_id, before_seconds=before_seconds)
        except IntegrityError as error:  # a COMMIT that cannot be read: what it names is not known
            warn("gc.skipped", run_of_skipped=run_id, reason=str(error))
            continue
        if garbage:
            yield garbage


def delete_garbage(store: Store, garbage: Garbage, *, older_than_seconds: float, now_seconds: float) -> Garbage | None:
    """Delete one place's garbage and return what was deleted; None when the run was used since it was found.

    Raises:
        NotFoundError: the store said that it was deleted, and still lists it.
    """
    if garbage.run_to_close:
        found = _of_run(store, garbage.run_to_close, before_seconds=now_seconds - older_than_seconds)
        if found is None or not found.run_to_close or not abandon(store, garbage.run_to_close):
            return None
        garbage = found
    for entry in garbage.entries:
        store.delete(entry.key)
    left = {entry.key for entry in garbage.entries} & {entry.key for entry in store.list_objects(garbage.place)}
    if left:
        raise NotFoundError(
            f"store {store.uri}: {len(left)} objects are still listed after they were deleted, such as {min(left)}; see whether "
            "the bucket locks objects, or a cache is in between"
        )
    return garbage


def _of_model(store: Store, model: str, *, before_seconds: float) -> Iterator[Garbage]:
    """Unfinished layouts below a complete one. A higher one may be the champion's, which the next run completes."""
    layouts = list_layouts(store, model)
    newest = newest_loadable(layouts)
    for layout in layouts:
        is_old = all(entry.modified_seconds < before_seconds for entry in layout.entries)
        if layout.version < newest and is_old and not layout.is_loadable:
            yield Garbage(place=layout.prefix, reason="serving layout that was cut off", entries=layout.entries)


def _of_run(store: Store, run_id: str, *, before_seconds: float) -> Garbage | None:
    entries = [entry for entry in store.list_objects(run_prefix(run_id)) if run_of_key(entry.key)]
    recorded = read_run(store, run_id)
    if recorded is None:
        return _of_unfinished(run_id, entries, before_seconds=before_seconds)
    working: tuple[str, ...] = (checkpoint_prefix(run_id), attempts_prefix(run_id))
    if isinstance(recorded, ClosedRun):
        kept: tuple[str, ...] = ()
        working = (*working, log_prefix(run_id))
        reason = "left over from a run that was given up"
    else:
        kept = (attempt_prefix(run_id, attempt_id=recorded.attempt),)
        if not any(entry.key.startswith(kept) for entry in entries):  # a damaged name: delete nothing
            raise IntegrityError(f"store {store.uri}: the COMMIT of run {run_id} names an attempt that is not there")
        reason = "not part of the committed result"
    old = [
        entry
        for entry in entries
        if entry.key.startswith(working)
        and not entry.key.startswith(kept)
        and not (kept and is_attempt_file(entry.key))  # which attempts worked on it stays known
        and entry.modified_seconds < before_seconds
    ]
    return Garbage(place=run_prefix(run_id), reason=reason, entries=tuple(old)) if old else None


def _of_unfinished(run_id: str, entries: Sequence[Entry], *, before_seconds: float) -> Garbage | None:
    """All that a run without a result has left, when no object of it is young."""
    # A folder without an object is a run whose first write is under way, or was killed: it holds nothing to delete.
    if not entries or any(entry.modified_seconds >= before_seconds for entry in entries):
        return None
    working = (checkpoint_prefix(run_id), attempts_prefix(run_id), log_prefix(run_id))
    old = tuple(entry for entry in entries if entry.key.startswith(working))
    if run_key(run_id) not in {entry.key for entry in entries}:  # it never began: no attempt can commit it
        return Garbage(place=run_prefix(run_id), reason="log of a start that was refused", entries=old)
    when = clock.timestamp(max(entry.modified_seconds for entry in entries))
    reason = f"no result, and no sign of life since {when[:16].replace('T', ' ')} UTC"
    return Garbage(place=run_prefix(run_id), reason=reason, entries=old, run_to_close=run_id)
