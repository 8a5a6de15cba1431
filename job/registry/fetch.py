"""The champion in a local folder, as TensorFlow Serving polls it: each version comes whole, by one rename.

Every file is verified against the COMMIT. TensorFlow Serving ignores folders whose name is no number; unfinished copies have
such names.
"""

import os
import shutil
from pathlib import Path

from job import clock
from job.registry import champion
from job.registry.champion import Move
from job.runs import read
from job.store.backend import point
from job.store.folder import fsync_folder
from job.store.store import Store

_TEMPORARY_PREFIX = ".tmp-"
_STALE_SECONDS = 3600.0


def fetch_champion(store: Store, model: str, folder: Path, *, keep: int) -> Move | None:
    """Bring the newest champion into `folder/<version>/` and keep the newest `keep` versions; None when it is there already.

    Raises:
        IntegrityError: the champion is damaged: nothing is brought.
        NotFoundError: there is no champion.
    """

    def look(newest: Move) -> tuple[Move, dict[str, bytes] | None]:
        is_there = (folder / str(newest.version)).is_dir()
        return newest, None if is_there else read.read_model(store, champion.commit_of(store, newest))

    found = champion.use_newest(store, model, look)
    if found is None:
        raise champion.no_champion(store, model)
    newest, files = found
    if files is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    final, temporary = folder / str(newest.version), folder / f"{_TEMPORARY_PREFIX}{os.getpid()}-{clock.token(8)}"
    try:
        for name, data in files.items():
            _write(temporary / name, data)
        for made in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
            fsync_folder(made)
        with point("rename", final.name):
            temporary.rename(final)
        fsync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _remove_old(folder, keep=keep)
    return newest


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file, point("fsync", path.name):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _remove_old(folder: Path, *, keep: int) -> None:
    """Rename each old version, then delete it, so that a server never sees half of one."""
    versions = sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())
    for version in versions[:-keep]:
        gone = folder / f"{_TEMPORARY_PREFIX}old-{version}-{clock.token(8)}"
        with point("rename", gone.name):
            (folder / str(version)).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what a fetch that was killed an hour ago or earlier left."""
    for path in folder.glob(f"{_TEMPORARY_PREFIX}*"):
        if clock.now() - path.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
