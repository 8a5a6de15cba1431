"""The serving layout: a champion's SavedModel under `models/<name>/versions/<n>/`, as TensorFlow Serving lays it out.

An attempt makes the move first. Then it writes the files of the layout, each once, and `saved_model.pb` last: a version folder
that holds it is complete. The next run, `promote` or `fetch` finishes a layout that was cut off. Never imports TensorFlow.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from job.contract import version_of_key, version_prefix, versions_prefix
from job.errors import IntegrityError
from job.logs import emit
from job.registry import champion
from job.registry.champion import Move
from job.runs import read
from job.store.backend import Entry
from job.store.store import Store

LAST_FILE = "saved_model.pb"


def finish_layout(store: Store, made: Move) -> None:
    """Write what is missing of a champion's serving layout.

    Raises:
        IntegrityError: a file of the attempt or of the layout differs from the COMMIT.
    """
    prefix = version_prefix(made.model, version=made.version)
    if is_whole(store, made.model, version=made.version):
        return
    files = read.read_model(store, champion.commit_of(store, made))
    for name in sorted(files, key=lambda name: (name == LAST_FILE, name)):
        if store.create(prefix + name, files[name]) != files[name]:
            raise IntegrityError(
                f"store {store.uri}: {prefix + name} is not the committed file; delete {store.location(prefix)} and start again"
            )
    # 1. This attempt may have paused before its last write. Retention then deleted this layout, as a newer champion was made.
    # 2. The write then left a lone `saved_model.pb`, which a server would try to load.
    # 3. So this attempt lists the folder again, and deletes that file if the others are gone.
    if files.keys() - _list_files(store, made.model, version=made.version):
        store.delete(prefix + LAST_FILE)
        return
    emit("layout.done", model=made.model, version=made.version, files=len(files))


def finish_champions_layout(store: Store, model: str) -> Move | None:
    """Write what is missing of the champion's layout, and return its move; None when there never was a champion.

    Raises:
        IntegrityError: as from `finish_layout`.
    """

    def finish(newest: Move) -> Move:
        finish_layout(store, newest)
        return newest

    return champion.use_newest(store, model, finish)


def is_whole(store: Store, model: str, *, version: int) -> bool:
    """Whether a version's layout was finished."""
    return LAST_FILE in _list_files(store, model, version=version)


def _list_files(store: Store, model: str, *, version: int) -> set[str]:
    """Names of the SavedModel's files in a version's folder."""
    entries = store.list_objects(version_prefix(model, version=version))
    return {parts[2] for entry in entries if (parts := version_of_key(entry.key))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A folder of a model's serving layout, as it was listed."""

    prefix: str
    version: int
    entries: tuple[Entry, ...]
    """Those of a SavedModel."""

    @property
    def is_loadable(self) -> bool:
        """Whether the file that is written last is there."""
        return any(entry.key == self.prefix + LAST_FILE for entry in self.entries)


def list_layouts(store: Store, model: str) -> list[Layout]:
    """All versions of which anything was written, by number; one list request."""
    entries = defaultdict[int, list[Entry]](list)
    for entry in store.list_objects(versions_prefix(model)):
        if parts := version_of_key(entry.key):
            entries[parts[1]].append(entry)
    return [
        Layout(prefix=version_prefix(model, version=version), version=version, entries=tuple(found))
        for version, found in sorted(entries.items())
    ]


def newest_loadable(layouts: Iterable[Layout]) -> int:
    """The highest version that a server can load; 0 when there is none."""
    return max((layout.version for layout in layouts if layout.is_loadable), default=0)


def check_layout(store: Store, made: Move) -> int:
    """Compare a champion's serving layout with its COMMIT, byte by byte; returns the number of files.

    Raises:
        IntegrityError: a file is missing, altered, or too much.
    """
    prefix = version_prefix(made.model, version=made.version)
    files = read.read_model(store, champion.commit_of(store, made))
    found = _list_files(store, made.model, version=made.version)
    different = sorted(found ^ files.keys()) or [
        name for name, data in files.items() if not _holds(store, prefix + name, data)
    ]
    if different:
        raise IntegrityError(
            f"store {store.uri}: the layout of version {made.version} differs from what was committed: "
            f"{', '.join(different[:3])}; the next run, promote or fetch completes one that was cut off"
        )
    return len(files)


def _holds(store: Store, key: str, data: bytes) -> bool:
    """Whether an object has this content; a longer one is not read."""
    try:
        return store.get(key, max_bytes=len(data)) == data
    except IntegrityError:
        return False
