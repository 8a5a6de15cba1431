"""The serving layout: a champion's SavedModel under `models/<name>/versions/<n>/`, as TensorFlow Serving lays it out.

The pointer is made first. Then come the files, each once, `saved_model.pb` last: a version that has one is whole. Whoever
finds the champion's layout cut off finishes it. Never imports TensorFlow.
"""

from collections.abc import Iterable

from job import champion, published
from job.champion import Pointer
from job.contract import version_prefix, versions_prefix
from job.errors import IntegrityError
from job.observe.logs import emit
from job.store import Entry, Store

LAST_FILE = "saved_model.pb"


def finish_layout(store: Store, pointer: Pointer) -> None:
    """Write what is missing of a champion's serving layout.

    Who sleeps here while the champion moves on may bring a version's last file back after the others were removed, so the
    folder is looked at once more.

    Raises:
        IntegrityError: the champion's files, or what stands in the layout, are not what was committed.
    """
    prefix = version_prefix(pointer.model, version=pointer.version)
    if is_whole(store, pointer.model, version=pointer.version):
        return
    files = published.read_model(store, champion.commit_of(store, pointer))
    for name in sorted(files, key=lambda name: (name == LAST_FILE, name)):
        if store.create(prefix + name, files[name]) != files[name]:
            raise IntegrityError(
                f"store {store.uri}: {prefix + name} is not the committed file; delete {store.location(prefix)} and start again"
            )
    if files.keys() - {entry.key.removeprefix(prefix) for entry in store.list_objects(prefix)}:
        store.delete(prefix + LAST_FILE)
        return
    emit("layout.done", model=pointer.model, version=pointer.version, files=len(files))


def finish_champions_layout(store: Store, model: str) -> Pointer | None:
    """Write what is missing of the layout of whoever is champion, and return it; None when there never was one.

    Raises:
        IntegrityError: as from `finish_layout`.
    """

    def finish(newest: Pointer) -> Pointer:
        finish_layout(store, newest)
        return newest

    return champion.use_newest(store, model, finish)


def is_whole(store: Store, model: str, *, version: int) -> bool:
    """Whether a version's layout was finished."""
    prefix = version_prefix(model, version=version)
    return any(entry.key == prefix + LAST_FILE for entry in store.list_objects(prefix))


def newest_whole(entries: Iterable[Entry], model: str) -> int:
    """The highest version that a server can load; 0 when there is none.

    Args:
        entries: everything under the model's versions.
    """
    prefix = versions_prefix(model)
    names = (entry.key.removeprefix(prefix).partition("/") for entry in entries)
    return max((int(version) for version, _, name in names if name == LAST_FILE and version.isdecimal()), default=0)


def check_layout(store: Store, pointer: Pointer) -> int:
    """Compare a champion's serving layout with its COMMIT, byte by byte; returns the number of files.

    Raises:
        IntegrityError: a file is missing, altered, or too much.
    """
    prefix = version_prefix(pointer.model, version=pointer.version)
    files = published.read_model(store, champion.commit_of(store, pointer))
    found = {entry.key.removeprefix(prefix) for entry in store.list_objects(prefix)}
    different = sorted(found ^ files.keys()) or [name for name in files if store.get(prefix + name) != files[name]]
    if different:
        raise IntegrityError(
            f"store {store.uri}: the layout of version {pointer.version} differs from what was committed: "
            f"{', '.join(different[:3])}; the next run, promote or fetch completes one that was cut off"
        )
    return len(files)
