"""What is kept of a model after a committed run: its newest `keep_runs` runs, its newest `keep_versions` layouts, and every run
that one of the newest `keep_versions` moves of any model names, or that candidates are compared with.

Each model keeps house for itself: an attempt removes nothing of another model.

No champion ever names a run that was removed: the steps are at the lines of `remove_runs` that take them.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable

from job import clock, contract
from job.errors import IntegrityError
from job.logs import emit, warn
from job.registry import champion
from job.registry.serving import LAST_FILE, list_layouts, newest_loadable
from job.runs import read, write
from job.store.backend import Entry
from job.store.store import Store


def apply_retention(store: Store, model: str, *, keep_runs: int, keep_versions: int) -> None:
    """Remove everything else of that model."""
    _remove_old_versions(store, model, keep=keep_versions)
    reached = reachable_runs(store, keep_versions=keep_versions)
    old = [run_id for run_id in _old_runs(store, model, keep=keep_runs) if run_id not in reached]
    remove_runs(store, old, keep_versions=keep_versions)


def reachable_runs(store: Store, *, keep_versions: int) -> set[str]:
    """Runs that the newest `keep_versions` champions of any model name, and those that candidates are compared with.

    What a damaged record names is not known. `remove_runs` keeps every run with a claim on it.
    """
    reached: set[str] = set()
    for model in champion.list_models(store):
        newest = list(itertools.islice(champion.readable_history(store, model), keep_versions))
        reached |= {made.run for made in newest}
        reached |= newest[0].runs_to_compare_with() if newest else set()
    return reached


def remove_runs(store: Store, run_ids: Iterable[str], *, keep_versions: int) -> None:
    """Remove committed runs; run.json, the closing record, marks and claims stay. A claimed or reachable run is kept whole."""
    # 1. Retention writes a mark into each run. Then it looks for claims on it.
    # 2. A move writes its claim first. Then it looks for marks (`champion.move`).
    # 3. So one of the two sees the other: the move gives up, or the run stays.
    marks = {run_id: mark for run_id in run_ids if (mark := _mark(store, run_id))}
    needed = {run_id for run_id in marks if _may_become_champion(store, run_id)}
    if marks:
        needed |= reachable_runs(store, keep_versions=keep_versions)
    for run_id, mark in marks.items():
        if run_id in needed:
            store.delete(mark)
        else:
            _remove_run(store, run_id)


def _mark(store: Store, run_id: str) -> str | None:
    """The key of the mark that was written into a run; None where something foreign stands in its place."""
    mark = contract.retirement_key(run_id, token=clock.token(8))
    try:
        store.create(mark, b"{}")
    except IntegrityError as error:
        warn("retention.skipped", run_skipped=run_id, reason=str(error))
        return None
    return mark


def _may_become_champion(store: Store, run_id: str) -> bool:
    """Whether a version was claimed for it and does not exist yet: the claim's writer may be about to create it. Or the
    version's record cannot be read: it may name this run.
    """
    return any(
        not _is_readable(store, model, version=version) for model, version in champion.claimed_versions(store, run_id)
    )


def _is_readable(store: Store, model: str, *, version: int) -> bool:
    try:
        return champion.read_version(store, model, version=version) is not None
    except IntegrityError:
        return False


def _remove_run(store: Store, run_id: str) -> None:
    write.remove_commit(store, run_id)
    entries = store.list_objects(contract.run_prefix(run_id))
    gone = [entry for entry in entries if contract.run_of_key(entry.key) and not _closes(run_id, entry.key)]
    for entry in gone:
        store.delete(entry.key)
    emit("retention.removed", run_removed=run_id, objects=len(gone), bytes=sum(entry.num_bytes for entry in gone))


def _old_runs(store: Store, model: str, *, keep: int) -> list[str]:
    """Committed runs of the model beyond its newest, and those of any whose removal was cut off."""
    objects: dict[str, list[Entry]] = defaultdict(list)
    for entry in store.list_objects(contract.RUNS_PREFIX):
        if run_id := contract.run_of_key(entry.key):
            objects[run_id].append(entry)
    committed = {
        run_id: entry.modified_seconds
        for run_id, entries in objects.items()
        for entry in entries
        if entry.key == contract.commit_key(run_id) and not _is_empty(run_id, entries)
    }
    with_result, cut_off = [], []
    for run_id in sorted(committed, key=lambda run_id: (committed[run_id], run_id), reverse=True):
        try:
            recorded = read.read_run(store, run_id)
        except IntegrityError as error:  # a COMMIT that cannot be read is for a person to look at
            warn("retention.skipped", run_skipped=run_id, reason=str(error))
            continue
        if isinstance(recorded, read.CommittedRun):
            with_result += [run_id] if champion.model_of(recorded) == model else []
        elif recorded and recorded.is_removed:
            cut_off.append(run_id)
    return cut_off + with_result[keep:]


def _is_empty(run_id: str, entries: Iterable[Entry]) -> bool:
    """Whether nothing is left of a run. It is so for every run removed earlier; skipping them saves a request each."""
    return all(_closes(run_id, entry.key) for entry in entries)


def _closes(run_id: str, key: str) -> bool:
    """Whether this key stays after a removal: it keeps attempts and moves from using the run's id again."""
    closing = (contract.run_key(run_id), contract.commit_key(run_id))
    return key in closing or key.startswith((contract.retirements_prefix(run_id), contract.claims_prefix(run_id)))


def _remove_old_versions(store: Store, model: str, *, keep: int) -> None:
    """Delete old layouts, `saved_model.pb` first, so that no server loads half a model.

    Counted from the newest that is whole: while a new champion's layout is being written, a server needs the one before.
    """
    layouts = list_layouts(store, model)
    newest = newest_loadable(layouts)
    old = [layout for layout in layouts if layout.version <= newest - keep]
    last = [layout.prefix + LAST_FILE for layout in old]  # also where it was not listed: an attempt may write it now
    others = (entry.key for layout in old for entry in layout.entries if entry.key not in last)
    for key in (*last, *others):
        store.delete(key)
