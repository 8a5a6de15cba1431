"""Whether the champion is what this attempt would train again: `run.skip_if_unchanged` (docs/adr/0039).

A skip has to be safe: what is not known of either side counts as changed.
"""

import itertools
from collections.abc import Callable, Iterator

from job import contract
from job.errors import IntegrityError
from job.logs import emit, warn
from job.registry import champion
from job.runs import read
from job.runs.lineage import compare_code
from job.runs.read import CommittedRun
from job.store.store import Store

_MAX_LOOKS = 10


def is_unchanged(
    store: Store, of_champion: CommittedRun, *, pod: contract.Pod, is_result_of: Callable[[CommittedRun], bool]
) -> bool:
    """Whether the code that runs here has made the champion, or has made its weights again since.

    Args:
        is_result_of: whether this attempt's inputs decide the result of a run.
    """
    if not is_result_of(of_champion):
        return False
    compared = compare_code(pod, of_champion.record.get("lineage", {}))
    if compared.is_same or _was_made_again(store, of_champion, pod=pod, is_result_of=is_result_of):
        return True
    if compared.changed:
        emit("skip.other_code", champion=of_champion.run, reason=compared.changed)
    else:
        reason = (
            f"whether the code has changed since cannot be known: one of the two does not say its {compared.unknown}"
        )
        warn("skip.unknown_code", champion=of_champion.run, reason=reason)
    return False


def _was_made_again(
    store: Store, of_champion: CommittedRun, *, pod: contract.Pod, is_result_of: Callable[[CommittedRun], bool]
) -> bool:
    """Whether one of the newest runs of this model is of this code, and has the champion's weights.

    The gate leaves the champion where it is when a run has the same weights. So the champion's own record may be of older
    code for ever, and each night would train.
    """
    return any(
        run.weights_digest == of_champion.weights_digest
        and champion.model_of(run) == champion.model_of(of_champion)
        and compare_code(pod, run.record.get("lineage", {})).is_same
        and is_result_of(run)
        for run in itertools.islice(_newest_runs(store), _MAX_LOOKS)
    )


def _newest_runs(store: Store) -> Iterator[CommittedRun]:
    """Committed runs, the one first that was committed last; what cannot be read is left out."""
    entries = store.list_objects(contract.RUNS_PREFIX)
    commits = [(entry.modified_seconds, run) for entry in entries if (run := _run_of_commit(entry.key))]
    for _, run_id in sorted(commits, reverse=True):
        try:
            recorded = read.read_run(store, run_id)
        except IntegrityError:
            continue
        if isinstance(recorded, CommittedRun):
            yield recorded


def _run_of_commit(key: str) -> str | None:
    run_id = contract.run_of_key(key)
    return run_id if run_id and key == contract.commit_key(run_id) else None
