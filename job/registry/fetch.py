"""The champion in a local folder, as TensorFlow Serving polls it: each version comes whole, by one rename.

Every file is verified against the COMMIT. TensorFlow Serving loads the highest name that it can read as a number. It ignores all
other names: unfinished copies have such names, and so has the folder with the records of what was fetched.

Whatever was not fetched is foreign (docs/adr/0020): it is never removed, and where it is in the way it gets another name. Fetched
is what a record in `.mnist-job` names by model, name and SHA-256, as long as it is so. No link below the folder is followed.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from job import clock, records
from job.contract import version_of_folder
from job.digests import canonical_json
from job.errors import AccessDeniedError, ConflictError, IntegrityError, NotFoundError, UnavailableError
from job.logs import warn
from job.registry import champion
from job.registry.champion import Move
from job.registry.serving import LAST_FILE
from job.runs import read
from job.store import beneath
from job.store.backend import point
from job.store.faults import reason_of
from job.store.folder import fsync_folder, renameat2
from job.store.store import Store

_TEMPORARY_PREFIX, _REPLACED_PREFIX = ".tmp-", "replaced-"
_TEMPORARY = re.compile(r"\.tmp-(old-)?[0-9]+-[0-9a-f]{16}")
_RECORDS = ".mnist-job"
"""Folder in the folder: of each version that was fetched, its model and the SHA-256 of its files."""
_STALE_SECONDS = 3600.0
_RENAME_EXCHANGE = 2  # linux/fs.h
_IS_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_NO_ACCESS, _NO_FOLDER = (
    (errno.EACCES, errno.EPERM, errno.EROFS),
    (errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG),
)

Digests = Mapping[str, str]
"""Name below a version's folder -> SHA-256 of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What says that a version was fetched.

    Attributes:
        model: None in records that do not say it.
        digests: empty where nothing, or nothing that can be read, is recorded.
    """

    model: str | None = None
    digests: Digests


def fetch_champion(store: Store, model: str, folder: Path, *, keep: int) -> Move | None:
    """Bring the newest champion into `folder/<version>/`; None when it is there already, file by file.

    Of the versions that were fetched the newest `keep` stay. All others in the folder stay too.

    Raises:
        IntegrityError: the champion is damaged: nothing is brought.
        NotFoundError: there is no champion, or no folder can be there.
        ConflictError: the folder has fetched versions of another model: nothing is brought. Or the champion was brought, and the
            folder has a higher number that a server loads instead.
        AccessDeniedError, UnavailableError: the folder cannot be read or written.
    """

    def look(newest: Move) -> tuple[Move, Digests, dict[str, bytes] | None]:
        committed = champion.commit_of(store, newest)
        digests = read.model_digests(committed)
        _check_names(newest, digests)
        is_there = _holds(folder, newest.version, digests)
        return newest, digests, None if is_there else read.read_model(store, committed)

    with _translated(folder):
        found = champion.use_newest(store, model, look)
        if found is None:
            raise champion.no_champion(store, model)
        newest, digests, files = found
        if files is not None:
            _bring(newest, folder, files=files, digests=digests)
        _check_served(store, newest, folder)
        if files is None:
            return None
        _remove_old(newest, folder, keep=keep)
    return newest


def _check_names(newest: Move, digests: Digests) -> None:
    for name in digests:
        try:
            beneath.parts_of(name)
        except ValueError as error:
            raise IntegrityError(
                f"the COMMIT of run {newest.run} names {name!r}, which is no file below a folder"
            ) from error


def _holds(folder: Path, version: int, digests: Digests) -> bool:
    """Whether a version's folder holds these files; what else is in it makes no other model of it."""
    try:
        with beneath.opened(folder, (str(version),)) as opened:
            return all(_sha256(opened, name) == sha256 for name, sha256 in digests.items())
    except (OSError, ValueError, beneath.ForeignError):
        return False


def _sha256(folder: int, name: str) -> str:
    with beneath.reading(".", beneath.parts_of(name), at=folder) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bring(newest: Move, folder: Path, *, files: Mapping[str, bytes], digests: Digests) -> None:
    """Write the files beside the final name, then give them that name."""
    folder.mkdir(parents=True, exist_ok=True)
    _check_records(newest, folder)
    _sweep(folder)
    final, temporary = folder / str(newest.version), folder / f"{_TEMPORARY_PREFIX}{os.getpid()}-{clock.token(8)}"
    before = _fetched(folder, newest.model, version=newest.version)
    was_ours = bool(before) and not _has_more(folder, newest.version, before)
    try:
        for name, data in files.items():
            _write(temporary / name, data)
        for made in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
            fsync_folder(made)
        _write_record(folder, newest, digests=digests)
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
        if not _holds(final.parent, int(final.name), digests):  # else another fetch was quicker
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


def _remove_old(newest: Move, folder: Path, *, keep: int) -> None:
    """Rename each old version that was fetched, then delete it, so that a server never sees half of one."""
    found = (version for path in folder.iterdir() if (version := version_of_folder(path.name)))
    older = sorted((version for version in found if version < newest.version), reverse=True)
    ours = {version: digests for version in older if (digests := _fetched(folder, newest.model, version=version))}
    for version in [*ours][keep - 1 :]:
        with contextlib.suppress(FileNotFoundError):  # another fetch was quicker
            _remove(folder, version, ours[version])
        _remove_file(folder, _record_of(version))


def _remove(folder: Path, version: int, digests: Digests) -> None:
    """Delete what was fetched. Files that somebody has put beside it are kept under a name that no server loads."""
    has_more = _has_more(folder, version, digests)
    prefix = _REPLACED_PREFIX if has_more else f"{_TEMPORARY_PREFIX}old-"
    gone = folder / f"{prefix}{version}-{clock.token(8)}"
    with point("rename", gone.name):
        (folder / str(version)).rename(gone)
    if not has_more:
        shutil.rmtree(gone, ignore_errors=True)
        return
    for name in digests:
        _remove_file(gone, beneath.parts_of(name))
    warn("fetch.kept", folder=str(gone), reason=f"version {version} is removed; these files in it were not fetched")


def _remove_file(folder: Path, names: tuple[str, ...]) -> None:
    """Delete a file, and each folder on the way to it that is empty then."""
    for length in range(len(names), 0, -1):
        with contextlib.suppress(OSError, beneath.ForeignError), beneath.opened(folder, names[: length - 1]) as inner:
            remove = os.unlink if length == len(names) else os.rmdir
            remove(names[length - 1], dir_fd=inner)


def _has_more(folder: Path, version: int, digests: Digests) -> bool:
    """Whether a version's folder holds anything beside these files."""
    others: list[str] = []
    with beneath.opened(folder, (str(version),)) as opened:
        walked = beneath.walk(opened, (), pass_over=lambda way, kind: others.append(way))
        return any(way not in digests for _, way, _ in walked) or bool(others)


def _fetched(folder: Path, model: str, *, version: int) -> Digests:
    """The files of a version that was fetched, and is as it was brought; none for any other."""
    record = _read_record(folder, version=version)
    is_ours = bool(record.digests) and record.model in (None, model) and _holds(folder, version, record.digests)
    return record.digests if is_ours else {}


def _check_records(newest: Move, folder: Path) -> None:
    """Refuse before anything is written what cannot be recorded, or would mix two models.

    Raises:
        ConflictError: a version of another model was fetched into the folder, and is there.
    """
    with contextlib.suppress(FileNotFoundError), beneath.opened(folder, (_RECORDS,)) as opened:
        beneath.refuse_foreign(opened, _record_of(newest.version))
    for version in filter(None, (version_of_folder(path.name) for path in folder.iterdir())):
        record = _read_record(folder, version=version)
        if record.digests and record.model not in (None, newest.model) and _holds(folder, version, record.digests):
            raise ConflictError(
                f"--to {folder}: version {version} there was fetched of model {record.model}; a folder serves one model: choose "
                f"another folder for {newest.model}"
            )


def _record_of(version: int) -> tuple[str, str]:
    return _RECORDS, f"{version}.json"


def _write_record(folder: Path, newest: Move, *, digests: Digests) -> None:
    """Before the version gets its name: there is no moment in which one that was fetched looks foreign."""
    _, name = _record_of(newest.version)
    temporary = f"{_TEMPORARY_PREFIX}{os.getpid()}-{clock.token(8)}"
    (folder / _RECORDS).mkdir(exist_ok=True)
    with point("record", name), beneath.opened(folder, (_RECORDS,)) as opened:
        data = canonical_json({"model": newest.model, "files": dict(digests)})
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=opened)
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, name, src_dir_fd=opened, dst_dir_fd=opened)


def _read_record(folder: Path, *, version: int) -> _Record:
    """What `_write_record` has written, or a map of digests alone; everything else says nothing."""
    names = _record_of(version)
    try:
        with beneath.reading(folder, names) as file:
            content = records.parse_object(file.read(records.MAX_BYTES + 1), name="/".join(names))
    except (OSError, IntegrityError, beneath.ForeignError):  # none, or its writer was killed
        return _Record(digests={})
    model, files = content.get("model"), content.get("files")
    if not isinstance(model, str) or not isinstance(files, dict):
        model, files = None, content
    is_model = LAST_FILE in files and all(isinstance(sha256, str) for sha256 in files.values())
    return _Record(model=model, digests=files if is_model else {})


def _sweep(folder: Path) -> None:
    """Remove what a fetch that was killed an hour ago or earlier left."""
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another fetch was quicker
            if _TEMPORARY.fullmatch(path.name) and clock.now() - path.lstat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _translated(folder: Path) -> Iterator[None]:
    """Turn what the operating system says about the folder into what the user can do."""
    try:
        yield
    except beneath.ForeignError as error:
        raise IntegrityError(
            f"--to {folder}: {error}; no links are followed there: remove it, or choose another folder"
        ) from error
    except OSError as error:
        what = f"--to {folder}: {error.filename or folder}: {reason_of(error)}"
        if error.errno in _NO_ACCESS:
            raise AccessDeniedError(f"{what}; choose a folder that can be written") from error
        if error.errno in _NO_FOLDER:
            raise NotFoundError(f"{what}; name a folder that exists or can be made") from error
        raise UnavailableError(f"{what}; make room or choose another folder, then fetch again") from error
