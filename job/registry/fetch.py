"""The champion in a local folder, as TensorFlow Serving polls it: each version comes whole, by one rename.

Every file is verified against the COMMIT. TensorFlow Serving loads the highest name that it can read as a number. It ignores all
other names: unfinished copies have such names, and so has the folder with the records of what was fetched.

Whatever was not fetched is foreign (docs/adr/0020): it is never removed, and where it is in the way it gets another name.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from job import clock
from job.contract import version_of_folder
from job.digests import canonical_json
from job.errors import AccessDeniedError, ConflictError, IntegrityError, NotFoundError, UnavailableError
from job.logs import warn
from job.registry import champion
from job.registry.champion import Move
from job.runs import read
from job.store.backend import point
from job.store.folder import fsync_folder, renameat2
from job.store.store import Store

_TEMPORARY_PREFIX, _REPLACED_PREFIX = ".tmp-", "replaced-"
_TEMPORARY = re.compile(r"\.tmp-(old-)?[0-9]+-[0-9a-f]{16}")
_RECORDS = ".mnist-job"
"""Folder in the folder: of each version that was fetched, the SHA-256 of its files."""
_STALE_SECONDS = 3600.0
_RENAME_EXCHANGE = 2  # linux/fs.h
_IS_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_NO_ACCESS, _NO_FOLDER = (
    (errno.EACCES, errno.EPERM, errno.EROFS),
    (errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP),
)

Digests = Mapping[str, str]
"""Name below a version's folder -> SHA-256 of the file."""


def fetch_champion(store: Store, model: str, folder: Path, *, keep: int) -> Move | None:
    """Bring the newest champion into `folder/<version>/`; None when it is there already, file by file.

    Of the versions that were fetched the newest `keep` stay. All others in the folder stay too.

    Raises:
        IntegrityError: the champion is damaged: nothing is brought.
        NotFoundError: there is no champion, or no folder can be there.
        ConflictError: the champion was brought, and the folder has a higher number that a server loads instead.
        AccessDeniedError, UnavailableError: the folder cannot be read or written.
    """

    def look(newest: Move) -> tuple[Move, Digests, dict[str, bytes] | None]:
        committed = champion.commit_of(store, newest)
        digests = read.model_digests(committed)
        is_there = _holds(folder / str(newest.version), digests)
        return newest, digests, None if is_there else read.read_model(store, committed)

    with _translated(folder):
        found = champion.use_newest(store, model, look)
        if found is None:
            raise champion.no_champion(store, model)
        newest, digests, files = found
        if files is not None:
            _bring(store, newest, folder, files=files, digests=digests)
        _check_served(store, newest, folder)
        if files is None:
            return None
        _remove_old(store, newest, folder, keep=keep)
    return newest


def _holds(path: Path, digests: Digests) -> bool:
    """Whether a version's folder holds these files; what else is in it makes no other model of it."""
    try:
        return path.is_dir() and all(_sha256(path / name) == sha256 for name, sha256 in digests.items())
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bring(store: Store, newest: Move, folder: Path, *, files: Mapping[str, bytes], digests: Digests) -> None:
    """Write the files beside the final name, then give them that name."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    final, temporary = folder / str(newest.version), folder / f"{_TEMPORARY_PREFIX}{os.getpid()}-{clock.token(8)}"
    was_ours = _is_ours(store, newest.model, folder, version=newest.version)
    try:
        for name, data in files.items():
            _write(temporary / name, data)
        for made in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
            fsync_folder(made)
        _write_record(folder, version=newest.version, digests=digests)
        _place(temporary, final, digests=digests, was_ours=was_ours)
        fsync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _place(temporary: Path, final: Path, *, digests: Digests, was_ours: bool) -> None:
    """Give a whole version its name; what has that name already goes first, or is the same."""
    try:
        with point("rename", final.name):
            temporary.rename(final)
    except OSError as error:
        if error.errno not in _IS_TAKEN:
            raise
        if not _holds(final, digests):  # else another fetch was quicker
            _replace(temporary, final, is_ours=was_ours)


def _replace(temporary: Path, final: Path, *, is_ours: bool) -> None:
    """Swap a version for another of the same number; one that was not fetched is kept under a name that no server loads."""
    prefix = f"{_TEMPORARY_PREFIX}old-" if is_ours else _REPLACED_PREFIX
    aside = final.with_name(f"{prefix}{final.name}-{clock.token(8)}")
    with point("rename", aside.name):
        temporary.rename(aside)
    with point("exchange", final.name):
        if not _exchange(aside, final):  # for a moment there is no such version
            aside.rename(temporary)
            final.rename(aside)
            temporary.rename(final)
    kept = "" if is_ours else f"; what was there is {aside} now"
    warn(
        "fetch.replaced",
        folder=str(final),
        reason=f"version {final.name} was not the champion's{kept}; a server that has loaded it must be started again",
    )
    if is_ours:
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    try:
        renameat2(one, other, flags=_RENAME_EXCHANGE)
    except OSError:
        return False
    return True


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file, point("fsync", path.name):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _check_served(store: Store, newest: Move, folder: Path) -> None:
    """Refuse a folder of which a server loads something else than the champion.

    Raises:
        ConflictError: it does, and no later move explains it.
    """
    served = max((found for path in folder.iterdir() if (found := _as_server_reads(path.name))), default=None)
    if served in (None, (newest.version, str(newest.version))) or champion.read_newest(store, newest.model) != newest:
        return
    raise ConflictError(
        f"--to {folder}: {served[1]!r} is there, and is no champion of {newest.model}: a server loads it instead of version "
        f"{newest.version}, which is there too; move {served[1]!r} away, or choose another folder"
    )


def _as_server_reads(name: str) -> tuple[int, str] | None:
    """(number, name); None for a name that is no number. Of equal numbers the last name counts.

    As in tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc.
    """
    number = int(name) if re.fullmatch(r"[ ]*\+?[0-9]+[ ]*", name) else None
    return (number, name) if number is not None and number < 2**63 else None


def _remove_old(store: Store, newest: Move, folder: Path, *, keep: int) -> None:
    """Rename each old version that was fetched, then delete it, so that a server never sees half of one."""
    found = (version for path in folder.iterdir() if (version := version_of_folder(path.name)))
    older = sorted((version for version in found if version < newest.version), reverse=True)
    ours = [version for version in older if _is_ours(store, newest.model, folder, version=version)]
    for version in ours[keep - 1 :]:
        gone = folder / f"{_TEMPORARY_PREFIX}old-{version}-{clock.token(8)}"
        with point("rename", gone.name), contextlib.suppress(FileNotFoundError):  # another fetch was quicker
            (folder / str(version)).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        _record_path(folder, version=version).unlink(missing_ok=True)


def _is_ours(store: Store, model: str, folder: Path, *, version: int) -> bool:
    """Whether a version holds what was fetched. Older releases kept no record: there the COMMIT says it, as long as it exists."""
    path = folder / str(version)
    if path.is_symlink() or not path.is_dir():
        return False
    digests = _read_record(folder, version=version) or _committed_digests(store, model, version=version)
    return bool(digests) and _holds(path, digests)


def _committed_digests(store: Store, model: str, *, version: int) -> Digests:
    try:
        made = champion.read_version(store, model, version=version)
        return read.model_digests(champion.commit_of(store, made)) if made else {}
    except IntegrityError:  # damaged, or removed by retention: who made the folder is not known
        return {}


def _record_path(folder: Path, *, version: int) -> Path:
    return folder / _RECORDS / f"{version}.json"


def _write_record(folder: Path, *, version: int, digests: Digests) -> None:
    """Before the version gets its name: there is no moment in which one that was fetched looks foreign."""
    path = _record_path(folder, version=version)
    path.parent.mkdir(exist_ok=True)
    with point("record", path.name):
        path.write_bytes(canonical_json(dict(digests)))


def _read_record(folder: Path, *, version: int) -> Digests:
    try:
        record = json.loads(_record_path(folder, version=version).read_bytes())
    except (OSError, ValueError):  # none, or its writer was killed
        return {}
    return record if isinstance(record, dict) else {}


def _sweep(folder: Path) -> None:
    """Remove what a fetch that was killed an hour ago or earlier left."""
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another fetch was quicker
            if _TEMPORARY.fullmatch(path.name) and clock.now() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _translated(folder: Path) -> Iterator[None]:
    """Turn what the operating system says about the folder into what the user can do."""
    try:
        yield
    except OSError as error:
        what = f"--to {folder}: {error.filename or folder}: {os.strerror(error.errno) if error.errno else error}"
        if error.errno in _NO_ACCESS:
            raise AccessDeniedError(f"{what}; choose a folder that can be written") from error
        if error.errno in _NO_FOLDER:
            raise NotFoundError(f"{what}; name a folder that exists or can be made") from error
        raise UnavailableError(f"{what}; make room or choose another folder, then fetch again") from error
