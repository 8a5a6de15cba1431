"""Bugs on purpose: `scripts/torture --plant NAME` puts one into the program, and a campaign has to find it."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.contract import attempt_prefix, commit_key
from job.digests import sha256_hex
from job.errors import RetiredError
from job.registry import champion, garbage, retention, serving
from job.registry.gate import Gate
from job.runs import checkpoint, read, write
from job.store import folder
from job.store.backend import AlreadyExists, point
from job.store.store import Store
from job.training import devices, history, loop, pipeline, steps

ENVIRONMENT = "TORTURE_PLANT"


def _commit_before_upload() -> None:
    """COMMIT first, then the files that it names."""
    upload, commit = write.upload, write.commit
    late: list[tuple[str, Mapping[str, bytes]]] = []

    def upload_later(
        store: Store, run_id: str, *, attempt_id: str, files: Mapping[str, bytes]
    ) -> list[read.StoredFile]:
        if read.ATTEMPT_FILE in files:
            return upload(store, run_id, attempt_id=attempt_id, files=files)
        late.append((attempt_id, files))
        prefix = attempt_prefix(run_id, attempt_id=attempt_id)
        return [
            read.StoredFile(key=prefix + name, num_bytes=len(data), sha256=sha256_hex(data))
            for name, data in files.items()
        ]

    def commit_first(store: Store, run_id: str, *, content: Mapping[str, Any]) -> read.CommittedRun:
        committed = commit(store, run_id, content=content)
        for attempt_id, files in late:
            upload(store, run_id, attempt_id=attempt_id, files=files)
        return committed

    vars(write).update(upload=upload_later, commit=commit_first)


def _checkpoint_without_hash_check() -> None:
    """Whatever can be decoded is taken."""

    def verify(data: bytes, *, key: str, step: int, result_digest: str) -> checkpoint.Checkpoint:
        return checkpoint.decode(data)

    vars(checkpoint)["_verify"] = verify


def _order_depends_on_attempt() -> None:
    """Every process shuffles in its own way."""

    def epoch_order(*, seed: int, epoch: int, num_examples: int) -> NDArray[np.int64]:
        return np.random.Generator(np.random.PCG64([seed, epoch, os.getpid()])).permutation(num_examples)

    vars(pipeline)["epoch_order"] = epoch_order


def _commit_replaces() -> None:
    """The last one to commit wins."""
    create = folder.FolderBackend.create

    def create_or_replace(self: folder.FolderBackend, key: str, data: bytes) -> None:
        if key == commit_key("r"):
            self.put(key, data)
        else:
            create(self, key, data)

    type.__setattr__(folder.FolderBackend, "create", create_or_replace)


def _write_in_place() -> None:
    """No temporary file: a kill in the middle leaves half an object under its final name."""

    def create(self: folder.FolderBackend, key: str, data: bytes) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "xb") as file:
                file.write(data[: len(data) // 2])
                file.flush()
                with point("write", key):
                    file.write(data[len(data) // 2 :])
        except FileExistsError as error:
            raise AlreadyExists(key) from error

    type.__setattr__(folder.FolderBackend, "create", create)


def _interruptions_forgotten() -> None:
    """The counters start again with every attempt."""
    from job.runs.goodput import Ledger

    start = Ledger.start

    def forget(self: Ledger, meta: Mapping[str, Any] | None, **where: Any) -> None:
        start(self, meta, **where)
        self.num_interruptions = 0

    type.__setattr__(Ledger, "start", forget)


def _folders_not_synced() -> None:
    """New names are left to the file system."""
    vars(folder)["fsync_folder"] = lambda folder, **_: None


def _files_not_synced() -> None:
    """New bytes are left to the file system; the names are synced."""

    def fsync_folders_only(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            os.fsync(descriptor)

    vars(folder)["os"] = SimpleNamespace(**{**vars(os), "fsync": fsync_folders_only})


def _champion_replaces() -> None:
    """Who moves last has moved."""
    create = folder.FolderBackend.create

    def create_or_replace(self: folder.FolderBackend, key: str, data: bytes) -> None:
        if "/champion/" in key:
            self.put(key, data)
        else:
            create(self, key, data)

    type.__setattr__(folder.FolderBackend, "create", create_or_replace)


def _move_without_claim() -> None:
    """Nobody is told that a run is about to become champion."""
    create = Store.create

    def create_but_claims(self: Store, key: str, data: bytes) -> bytes:
        return data if "/claims/" in key else create(self, key, data)

    type.__setattr__(Store, "create", create_but_claims)


def _removal_without_look() -> None:
    """Retention asks the pointers only, not who is about to make one."""
    vars(retention)["_may_become_champion"] = lambda store, run_id: False


def _gc_without_closing() -> None:
    """A run that shows no sign of life is taken for dead."""
    vars(garbage)["abandon"] = lambda store, run_id: True


def _gate_forgets_own_move() -> None:
    """Every attempt decides for itself."""
    type.__setattr__(Gate, "_own_move", lambda self, committed: None)


def _graph_first() -> None:
    """The serving layout in the order of the names: `saved_model.pb` comes first."""
    vars(serving)["sorted"] = lambda names, key: sorted(names)


def _layouts_counted_by_pointers() -> None:
    """Retention counts versions that are not laid out yet, and takes the only one that a server can load."""
    remove = retention._remove_old_versions

    def remove_below_pointer(store: Store, model: str, *, keep: int) -> None:
        newest = champion.list_versions(store, model)[-1]
        vars(retention)["newest_loadable"] = lambda layouts: newest
        remove(store, model, keep=keep)

    vars(retention)["_remove_old_versions"] = remove_below_pointer


def _retention_of_all_models() -> None:
    """A model counts the runs of another as its own."""
    vars(champion)["model_of"] = lambda committed: committed.dataset.name


def _anchor_not_kept() -> None:
    """Retention keeps what the newest moves name, and not what candidates are compared with."""
    type.__setattr__(champion.Move, "runs_to_compare_with", lambda self: {self.run})


def _removal_forgets_commit() -> None:
    """Retention closes a run with the record that `gc` writes."""

    def remove(store: Store, run_id: str) -> None:
        store.put(commit_key(run_id), write._closing_record(run_id))

    vars(write)["remove_commit"] = remove


def _retired_is_trained_again() -> None:
    """An attempt takes a run that retention has removed for one that has no result yet."""
    read_commit = read.read_commit

    def read_as_unfinished(store: Store, run_id: str) -> read.CommittedRun | None:
        try:
            return read_commit(store, run_id)
        except RetiredError:
            return None

    vars(read)["read_commit"] = read_as_unfinished


def _prune_keeps_oldest() -> None:
    """The wrong end of the list."""

    def prune(store: Store, run_id: str, *, keep: int) -> None:
        for key in checkpoint._list(store, run_id)[keep:]:
            store.delete(key)

    vars(checkpoint)["prune"] = prune


def _move_on_top_of_whatever() -> None:
    """A lost race is tried again without a new decision."""
    move = champion.move

    def move_now(store: Store, model: str, *, before: champion.Move | None, **how: Any) -> champion.Move | None:
        return move(store, model, before=champion.read_newest(store, model), **how)

    vars(champion)["move"] = move_now


def _sigterm_handler_not_put_back() -> None:
    """TensorFlow keeps the signal that it took while the strategy was made."""
    vars(devices)["signal"] = SimpleNamespace(**{**vars(signal), "signal": lambda number, handler: None})


def _vote_ignored() -> None:
    """Workers other than the chief go on when one was asked to stop."""
    run = steps.StepRunner.run

    def run_on(self: steps.StepRunner, **how: Any) -> Iterator[steps.ChunkResult]:
        for result in run(self, **how):
            yield result if self._workers.is_chief else replace(result, stopping=())

    type.__setattr__(steps.StepRunner, "run", run_on)


def _patience_starts_again() -> None:
    """Early stopping counts the evaluations of this attempt only."""
    restore, stops_at = loop.Training.restore, history.stops_at
    num_before = [0]

    def restore_and_count(self: loop.Training, checkpoint: checkpoint.Checkpoint) -> None:
        num_before[0] = len(checkpoint.meta["history"])
        restore(self, checkpoint)

    type.__setattr__(loop.Training, "restore", restore_and_count)
    vars(loop)["stops_at"] = lambda records, settings: stops_at(records[num_before[0] :], settings)


def _best_weights_not_saved() -> None:
    """The weights of the best epoch are kept in memory only."""

    def state(self: loop.Training) -> dict[str, NDArray[Any]]:
        return self._steps.state()

    type.__setattr__(loop.Training, "_state", state)
    type.__setattr__(loop.Training, "_check_best", lambda self: None)


PLANTED: Mapping[str, Callable[[], None]] = {
    "commit-before-upload": _commit_before_upload,
    "checkpoint-without-hash-check": _checkpoint_without_hash_check,
    "order-depends-on-attempt": _order_depends_on_attempt,
    "commit-replaces": _commit_replaces,
    "write-in-place": _write_in_place,
    "folders-not-synced": _folders_not_synced,
    "files-not-synced": _files_not_synced,
    "interruptions-forgotten": _interruptions_forgotten,
    "champion-replaces": _champion_replaces,
    "move-without-claim": _move_without_claim,
    "removal-without-look": _removal_without_look,
    "gc-without-closing": _gc_without_closing,
    "gate-forgets-own-move": _gate_forgets_own_move,
    "graph-first": _graph_first,
    "layouts-counted-by-pointers": _layouts_counted_by_pointers,
    "retention-of-all-models": _retention_of_all_models,
    "anchor-not-kept": _anchor_not_kept,
    "removal-forgets-commit": _removal_forgets_commit,
    "retired-is-trained-again": _retired_is_trained_again,
    "prune-keeps-oldest": _prune_keeps_oldest,
    "move-on-top-of-whatever": _move_on_top_of_whatever,
    "sigterm-handler-not-put-back": _sigterm_handler_not_put_back,
    "vote-ignored": _vote_ignored,
    "patience-starts-again": _patience_starts_again,
    "best-weights-not-saved": _best_weights_not_saved,
}


def plant_chosen() -> None:
    """Put the bug that the environment names into this process."""
    name = os.environ.get(ENVIRONMENT)
    if name:
        PLANTED[name]()
