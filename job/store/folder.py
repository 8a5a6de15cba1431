"""The `file:` store: the same verbs as an object store over a folder, safe against crashes and power loss.

A write is a temporary file, fsync, then `os.link` (create-only) or `os.replace`, then fsync of the folder. Where there are no
hard links (FAT, many FUSE file systems) a rename that replaces nothing gives the name; docs/adr/0021 says why that is as safe.

The store's folder may be a link. Below it no verb follows one (docs/adr/0027): a link, a pipe, a socket or a device is foreign.
It is named once and listed as nothing. Whoever asks for it by its key is refused.
"""

import contextlib
import ctypes
import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from job import clock
from job.errors import AccessDeniedError, ConfigError, IntegrityError, NotFoundError
from job.logs import warn
from job.store import beneath
from job.store.backend import AlreadyExists, Entry, check_bytes, point
from job.store.faults import UNABLE, of_errno, reason_of

TEMPORARY_PREFIX = ".tmp-"
_TEMPORARY = re.compile(r"\.tmp-[0-9]+-[0-9a-f]{16}")
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EXDEV)
"""EPERM: FAT and exFAT; EOPNOTSUPP: SMB servers; ENOSYS: FUSE and old gVisor; EMLINK: where a file has one name at most."""
_NO_SUCH_RENAME = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_FOLDER_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
"""What file systems say that write names down by themselves, or cannot: PostgreSQL passes over them as well."""
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # of linux/fcntl.h and linux/fs.h
_SMB = ("cifs", "smb3")
_MAX_NAMED = 20
"""Foreign names in the log, of one store and process."""
_MAX_SHOWN = 200
_WRITE_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _Made(NamedTuple):
    """A finished temporary file."""

    folder: int
    """Descriptor of the folder that it is in."""
    temporary: str
    path: Path
    """What it is to be called, in the same folder."""


class FolderBackend:
    """Objects are plain files under one folder; folders are made when needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._safe_folders: set[Path] = set()
        self._named: set[str] = set()

    def create(self, key: str, data: bytes) -> None:
        """Write a new file; `AlreadyExists` when the name is taken."""
        with self._temporary(key, data) as made:
            try:
                self._name(made, key=key)
            except FileExistsError as error:
                fsync_folder(made.path.parent, at=made.folder)  # its writer may have been killed before it came to this
                raise AlreadyExists(key) from error
            fsync_folder(made.path.parent, at=made.folder)

    def put(self, key: str, data: bytes) -> None:
        """Write a file, replacing an older one in one step."""
        with self._temporary(key, data) as made:
            beneath.refuse_foreign(made.folder, self._parts(key))
            with point("replace", key):
                os.replace(made.temporary, made.path.name, src_dir_fd=made.folder, dst_dir_fd=made.folder)
            fsync_folder(made.path.parent, at=made.folder)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Read a file; `FileNotFoundError` when absent."""
        self._path(key)
        with self._translated(key):
            try:
                with beneath.reading(self._folder, self._parts(key)) as file:
                    check_bytes(os.fstat(file.fileno()).st_size, key=key, max_bytes=max_bytes)
                    return file.read()
            except NotADirectoryError as error:
                raise FileNotFoundError(key) from error

    def list_objects(self, prefix: str) -> list[Entry]:
        """All files under a folder, sorted by key, without unfinished temporary ones."""
        objects = []
        with self._translated(prefix), self._looked_at(prefix) as folder:
            for _, key, entry in self._walk(folder, prefix):
                if entry.name.startswith(TEMPORARY_PREFIX):
                    continue
                with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                    status = entry.stat(follow_symlinks=False)
                    objects.append(Entry(key=key, num_bytes=status.st_size, modified_seconds=status.st_mtime))
        return sorted(objects, key=lambda entry: entry.key)

    def list_folders(self, prefix: str) -> list[str]:
        """Names of the folders directly under `prefix`, sorted."""
        with self._translated(prefix), self._looked_at(prefix) as folder:
            if folder is None:
                return []
            return sorted(beneath.folders_of(folder, self._parts(prefix), pass_over=self._pass_over))

    def delete(self, key: str) -> None:
        """Remove a file; absent is fine."""
        path, names = self._path(key), self._parts(key)
        with (
            self._translated(key),
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            beneath.opened(self._folder, names[:-1]) as folder,
        ):
            beneath.refuse_foreign(folder, names)
            with point("unlink", key):
                os.unlink(path.name, dir_fd=folder)
            fsync_folder(path.parent, at=folder)

    def check_key(self, key: str) -> None:
        """Refuse a name that is too long, and a folder that is there and cannot be written."""
        with self._translated(key):
            path = self._path(key)
            there = next(folder for folder in path.parents if _is_there(folder))
            name = max(path.relative_to(there).parts, key=lambda part: len(os.fsencode(part)))
            for text, limit in (
                (name, os.pathconf(there, "PC_NAME_MAX")),
                (str(path), os.pathconf(there, "PC_PATH_MAX") - 1),
            ):
                if len(os.fsencode(text)) > limit:
                    raise ConfigError(
                        f"store.uri: file:{self._folder}: the run needs a name of {len(os.fsencode(text))} bytes, "
                        f"{text[:40]}...{text[-40:]}, at most {limit} are possible; use a shorter folder, run.id or "
                        "promotion.model_name"
                    )
            self._refuse_foreign(key)
            if not there.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "", str(there))
            if not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
                is_read_only = os.statvfs(there).f_flag & os.ST_RDONLY
                raise PermissionError(errno.EROFS if is_read_only else errno.EACCES, "", str(there))

    def free_bytes(self) -> int | None:
        """Of the file system; None where it does not say."""
        with self._translated(""):
            usage = shutil.disk_usage(next(path for path in (self._folder, *self._folder.parents) if _is_there(path)))
            return usage.free if usage.total else None

    def sweep(self, prefix: str, *, older_than_seconds: float) -> None:
        """Remove temporary files that were not touched for so long: their writer was killed."""
        with self._translated(prefix), self._looked_at(prefix) as top:
            for folder, _, entry in self._walk(top, prefix):
                with contextlib.suppress(FileNotFoundError):
                    if not _TEMPORARY.fullmatch(entry.name):
                        continue
                    if clock.now() - entry.stat(follow_symlinks=False).st_mtime > older_than_seconds:
                        with point("unlink", entry.name):
                            os.unlink(entry.name, dir_fd=folder)

    def _name(self, made: _Made, *, key: str) -> None:
        """Give a finished file its name in one step, so that nobody ever sees half of it; `FileExistsError` when it is taken."""
        with point("link", key):
            try:
                os.link(
                    *(made.temporary, made.path.name),
                    src_dir_fd=made.folder,
                    dst_dir_fd=made.folder,
                    follow_symlinks=False,
                )
            except OSError as no_link:
                if no_link.errno not in _NO_HARD_LINKS:
                    raise
                self._name_without_links(made, key=key, no_link=no_link)

    def _name_without_links(self, made: _Made, *, key: str, no_link: OSError) -> None:
        try:
            _rename_new(made)
        except OSError as error:
            if error.errno not in _NO_SUCH_RENAME:
                raise
            reasons = f"no hard links ({no_link.strerror}) and no exclusive rename ({error.strerror})"
            cause = f"{reasons}, so that two attempts could both write it"
            raise UNABLE.to_error(where=f"file:{self._folder}: {key}", cause=cause) from error

    def _parts(self, key: str) -> tuple[str, ...]:
        """The names in a key or a prefix; `IntegrityError` when they are no way below the store's folder."""
        try:
            return beneath.parts_of(key)
        except ValueError as error:
            raise self._no_key(key) from error

    def _path(self, key: str) -> Path:
        """The file of a key; `IntegrityError` when it is none below the store's folder."""
        parts = self._parts(key)
        if not parts:
            raise self._no_key(key)
        return self._folder.joinpath(*parts)

    def _no_key(self, key: str) -> IntegrityError:
        return IntegrityError(
            f"store file:{self._folder}: the key {key[:80]!r} leads out of the store, or is not spelled as keys are; this "
            "program has not written what names it"
        )

    @contextlib.contextmanager
    def _looked_at(self, prefix: str) -> Iterator[int | None]:
        """The descriptor of a folder; None where there is none, as an object store has no objects there.

        A link on the way holds nothing, and is named. Only where all runs or all models should be it is refused: nobody trains
        again beside results that lie elsewhere.
        """
        with contextlib.ExitStack() as stack:
            folder = None
            try:
                folder = stack.enter_context(beneath.opened(self._folder, self._parts(prefix)))
            except (FileNotFoundError, NotADirectoryError):
                check_way(self._folder, name=f"store file:{self._folder}")
            except beneath.ForeignError as error:
                if "/" not in error.way:
                    raise
                self._pass_over(error.way, error.kind)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    check_way(self._folder, name=f"store file:{self._folder}")
                raise
            yield folder

    def _walk(self, folder: int | None, prefix: str) -> Iterator[tuple[int, str, os.DirEntry[str]]]:
        if folder is not None:
            yield from beneath.walk(folder, self._parts(prefix), pass_over=self._pass_over)

    def _pass_over(self, key: str, kind: str) -> None:
        """Say once that something in the store is foreign; a store full of links fills no log."""
        if key in self._named or len(self._named) == _MAX_NAMED:
            return
        self._named.add(key)
        more = ", and so is what follows" if len(self._named) == _MAX_NAMED else ""
        warn(
            "store.passed_over",
            store=f"file:{self._folder}",
            key=key[:_MAX_SHOWN],
            reason=f"{kind}: no object of a store{more}",
        )

    def _refuse_foreign(self, key: str) -> None:
        names = self._parts(key)
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            beneath.opened(self._folder, names[:-1]) as folder,
        ):
            beneath.refuse_foreign(folder, names)

    @contextlib.contextmanager
    def _made_folder(self, names: Sequence[str]) -> Iterator[int]:
        """A folder below the store's, made with those above it, each of them durable before anything is written inside.

        One that is there already may have been made by a process that was killed before it came to the fsync. So above a store
        that is not there yet every name counts; above one that is there, none.
        """
        self._make_root()
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(beneath.opened(self._folder))
            for index in range(len(names)):
                folder = self._make_inner(folder, names[: index + 1])
                stack.callback(os.close, folder)
            yield folder

    def _make_inner(self, outer: int, names: Sequence[str]) -> int:
        path = self._folder.joinpath(*names)
        is_safe = path in self._safe_folders
        if not is_safe and not _is_named(path.name, folder=outer):
            with contextlib.suppress(FileExistsError), point("mkdir", path.name):
                os.mkdir(path.name, dir_fd=outer)
        inner = beneath.open_inner(outer, names)
        if not is_safe:
            try:
                fsync_folder(path.parent, at=outer)
            except BaseException:
                os.close(inner)
                raise
            self._safe_folders.add(path)
        return inner

    def _make_root(self) -> None:
        is_new, folder, found = not self._folder.is_dir(), self._folder, []
        while folder not in self._safe_folders and folder != folder.parent and (is_new or folder == self._folder):
            found.append(folder)
            folder = folder.parent
        for folder in reversed(found):
            self._make_one(folder)
            self._safe_folders.add(folder)

    def _make_one(self, folder: Path) -> None:
        """The store's folder, or one above it."""
        if not folder.is_dir():
            with contextlib.suppress(FileExistsError), point("mkdir", folder.name):
                folder.mkdir()
        if not folder.is_dir():
            check_way(folder, name=f"store file:{self._folder}")
        # What is above the store may be closed to us, such as the mount point of a volume.
        with contextlib.suppress(PermissionError if folder == self._folder else OSError):
            fsync_folder(folder.parent)

    @contextlib.contextmanager
    def _temporary(self, key: str, data: bytes) -> Iterator[_Made]:
        """A finished, synced temporary file next to the final name; gone afterwards."""
        path, folders = self._path(key), self._parts(key)[:-1]
        with self._translated(key), self._made_folder(folders) as folder:
            temporary = f"{TEMPORARY_PREFIX}{os.getpid()}-{clock.token(8)}"
            try:
                descriptor = os.open(temporary, _WRITE_NEW, 0o666, dir_fd=folder)
                with open(descriptor, "wb") as file:
                    with point("write", key):
                        file.write(data)
                        file.flush()
                    with point("fsync", key):
                        os.fsync(file.fileno())
                yield _Made(folder, temporary, path)
            finally:
                with contextlib.suppress(OSError), point("unlink temporary", key):
                    os.unlink(temporary, dir_fd=folder)

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Turn what the operating system says into what the user can do."""
        try:
            yield
        except FileNotFoundError:
            raise
        except beneath.ForeignError as error:
            raise IntegrityError(f"store file:{self._folder}: {error}; {_advice(error)}") from error
        except OSError as error:
            raise of_errno(error.errno).to_error(
                where=f"file:{self._folder}: {key or '(root)'}", cause=reason_of(error)
            ) from error


def _advice(error: beneath.ForeignError) -> str:
    if error.kind.startswith("a link"):
        return (
            "a store follows no links below its folder: mount what it leads to in its place, or move it here, or name another "
            "folder in store.uri"
        )
    return "the store needs a file there: move it away, or choose another folder: store.uri"


def _is_named(name: str, *, folder: int) -> bool:
    """Whether anything has that name in an open folder."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _rename_new(made: _Made) -> None:
    """`renameat2` with RENAME_NOREPLACE: a name that is taken is refused by the kernel.

    Raises:
        OSError: EOPNOTSUPP on SMB, whose client in Linux tells the server to replace: two machines would both succeed.
    """
    if _file_system(made.folder) in _SMB:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(made.path))
    renameat2(made.temporary, made.path.name, flags=_RENAME_NOREPLACE, at=made.folder)


def renameat2(source: str | Path, target: str | Path, *, flags: int, at: int = _AT_FDCWD) -> None:
    """Rename by the system call that Python does not offer.

    Args:
        flags: of linux/fs.h, such as RENAME_NOREPLACE.
        at: descriptor of the folder that relative names are in; by default the working folder.

    Raises:
        OSError: what the kernel says; EOPNOTSUPP where the C library has no such call.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None or call(at, os.fsencode(source), at, os.fsencode(target), flags):
        number = ctypes.get_errno() if call else errno.EOPNOTSUPP
        raise OSError(number, os.strerror(number), str(target))


def _file_system(folder: int) -> str:
    """The kernel's name of the file system that an open folder is on; empty when it cannot be told."""
    device = os.fstat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields, _, rest = line.partition(" - ")
            if fields.split()[2] == wanted:
                return rest.split()[0]
    return ""


def _is_there(path: Path) -> bool:
    """Whether something is there; a name that is too long is not."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def check_way(folder: Path, *, name: str) -> None:
    """Refuse a path to a folder, there or not, that goes through a file, or through a link that leads nowhere.

    Such a link is no empty folder: what it leads to may not be mounted yet.

    Args:
        name: what the message begins with.

    Raises:
        NotFoundError: naming what stands in the way.
        AccessDeniedError: what is there may not be seen.
    """
    for path in (folder, *folder.parents):
        try:
            if path.is_dir():
                return
        except OSError as error:
            kind = AccessDeniedError if error.errno in _NO_ACCESS else NotFoundError
            raise kind(f"{name}: {path}: {os.strerror(error.errno or 0)}; choose another folder") from error
        if path.is_symlink():
            raise NotFoundError(
                f"{name}: {path} is a link to {path.readlink()}, which is no folder; mount or make that one, or choose another"
            )
        if path.exists():
            raise NotFoundError(f"{name}: {path}: a file stands where a folder is needed; choose another folder")


def fsync_folder(folder: Path, *, at: int | None = None) -> None:
    """Make the names in a folder outlive a loss of power, where the file system can be told to.

    Args:
        at: a descriptor of the folder, where it is open already and may meanwhile have another name.
    """
    descriptor = os.open(folder if at is None else ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
    try:
        with point("fsync folder", folder.name):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise
    finally:
        os.close(descriptor)
