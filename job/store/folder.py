"""The `file:` store: the same verbs as an object store over a folder, safe against crashes and power loss.

A write is a temporary file, fsync, then `os.link` (create-only) or `os.replace`, then fsync of the folder. Where there are no
hard links (FAT, many FUSE file systems) a rename that replaces nothing gives the name; docs/adr/0021 says why that is as safe.
"""

import contextlib
import ctypes
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from job import clock
from job.errors import AccessDeniedError, ConfigError, IntegrityError, NotFoundError
from job.store.backend import AlreadyExists, Entry, check_bytes, point
from job.store.faults import UNABLE, of_errno

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


class FolderBackend:
    """Objects are plain files under one folder; folders are made when needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._safe_folders: set[Path] = set()

    def create(self, key: str, data: bytes) -> None:
        """Write a new file; `AlreadyExists` when the name is taken."""
        with self._temporary(key, data) as (temporary, path):
            try:
                self._name(temporary, path, key=key)
            except FileExistsError as error:
                fsync_folder(path.parent)  # its writer may have been killed before it came to this
                raise AlreadyExists(key) from error
            fsync_folder(path.parent)

    def put(self, key: str, data: bytes) -> None:
        """Write a file, replacing an older one in one step."""
        with self._temporary(key, data) as (temporary, path):
            with point("replace", key):
                temporary.replace(path)
            fsync_folder(path.parent)

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Read a file; `FileNotFoundError` when absent."""
        with self._translated(key):
            try:
                with self._path(key).open("rb") as file:
                    check_bytes(os.fstat(file.fileno()).st_size, key=key, max_bytes=max_bytes)
                    return file.read()
            except NotADirectoryError as error:
                raise FileNotFoundError(key) from error

    def list_objects(self, prefix: str) -> list[Entry]:
        """All files under a folder, sorted by key, without unfinished temporary ones."""
        entries = []
        with self._translated(prefix):
            for folder, _, names in os.walk(self._path(prefix), onerror=self._raise_unless_absent):
                for name in names:
                    if name.startswith(TEMPORARY_PREFIX):
                        continue
                    path = Path(folder, name)
                    with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                        status = path.stat()
                        key = path.relative_to(self._folder).as_posix()
                        entries.append(Entry(key=key, num_bytes=status.st_size, modified_seconds=status.st_mtime))
        return sorted(entries, key=lambda entry: entry.key)

    def list_folders(self, prefix: str) -> list[str]:
        """Names of the folders directly under `prefix`, sorted."""
        with self._translated(prefix):
            try:
                return sorted(entry.name for entry in os.scandir(self._path(prefix)) if entry.is_dir())
            except OSError as error:
                self._raise_unless_absent(error)
                return []

    def delete(self, key: str) -> None:
        """Remove a file; absent is fine."""
        with self._translated(key):
            path = self._path(key)
            with contextlib.suppress(FileNotFoundError):
                with point("unlink", key):
                    path.unlink()
                fsync_folder(path.parent)

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
        with self._translated(prefix):
            found = self._path(prefix).rglob(f"{TEMPORARY_PREFIX}*")
            for path in [path for path in found if _TEMPORARY.fullmatch(path.name) and path.is_file()]:
                with contextlib.suppress(FileNotFoundError):
                    if clock.now() - path.stat().st_mtime > older_than_seconds:
                        with point("unlink", path.name):
                            path.unlink()

    def _name(self, temporary: Path, path: Path, *, key: str) -> None:
        """Give a finished file its name in one step, so that nobody ever sees half of it; `FileExistsError` when it is taken."""
        with point("link", key):
            try:
                os.link(temporary, path)
            except OSError as no_link:
                if no_link.errno not in _NO_HARD_LINKS:
                    raise
                self._name_without_links(temporary, path, key=key, no_link=no_link)

    def _name_without_links(self, temporary: Path, path: Path, *, key: str, no_link: OSError) -> None:
        try:
            _rename_new(temporary, path)
        except OSError as error:
            if error.errno not in _NO_SUCH_RENAME:
                raise
            reasons = f"no hard links ({no_link.strerror}) and no exclusive rename ({error.strerror})"
            cause = f"{reasons}, so that two attempts could both write it"
            raise UNABLE.to_error(where=f"file:{self._folder}: {key}", cause=cause) from error

    def _path(self, key: str) -> Path:
        path = self._folder / key
        if ".." in path.parts or "\0" in key or not path.is_relative_to(self._folder):
            raise IntegrityError(
                f"store file:{self._folder}: the key {key!r} leads out of the store; this program has not written what names it"
            )
        return path

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and its parents, each of them durable before anything is written inside.

        One that is there already may have been made by a process that was killed before it came to the fsync. So above a store
        that is not there yet every name counts; above one that is there, none.
        """
        is_new, found = not self._folder.is_dir(), []
        while folder not in self._safe_folders and folder != folder.parent and (is_new or self._is_ours(folder)):
            found.append(folder)
            folder = folder.parent
        for folder in reversed(found):
            self._make_one(folder)
            self._safe_folders.add(folder)

    def _make_one(self, folder: Path) -> None:
        if not folder.is_dir():
            with contextlib.suppress(FileExistsError), point("mkdir", folder.name):
                folder.mkdir()
        if not folder.is_dir():
            check_way(folder, name=f"store file:{self._folder}")
        if not self._is_ours(folder):
            with contextlib.suppress(OSError):  # what is above the store may be closed to us
                fsync_folder(folder.parent)
            return
        try:
            fsync_folder(folder.parent)
        except PermissionError:  # what is above the store may be closed to us, such as the mount point of a volume
            if folder != self._folder:
                raise

    def _is_ours(self, folder: Path) -> bool:
        return folder.is_relative_to(self._folder)

    def _raise_unless_absent(self, error: OSError) -> None:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            check_way(self._folder, name=f"store file:{self._folder}")
        if not isinstance(error, FileNotFoundError):
            raise error

    @contextlib.contextmanager
    def _temporary(self, key: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        """A finished, synced temporary file next to the final path; gone afterwards."""
        with self._translated(key):
            path = self._path(key)
            self._make_folder(path.parent)
            temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{clock.token(8)}")
            try:
                with open(temporary, "xb") as file:
                    with point("write", key):
                        file.write(data)
                        file.flush()
                    with point("fsync", key):
                        os.fsync(file.fileno())
                yield temporary, path
            finally:
                with contextlib.suppress(OSError), point("unlink temporary", key):
                    temporary.unlink()

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Turn what the operating system says into what the user can do."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            cause = os.strerror(error.errno) if error.errno else str(error)
            raise of_errno(error.errno).to_error(
                where=f"file:{self._folder}: {key or '(root)'}", cause=cause
            ) from error


def _rename_new(source: Path, target: Path) -> None:
    """`renameat2` with RENAME_NOREPLACE: a name that is taken is refused by the kernel.

    Raises:
        OSError: EOPNOTSUPP on SMB, whose client in Linux tells the server to replace: two machines would both succeed.
    """
    if _file_system(target.parent) in _SMB:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(target))
    renameat2(source, target, flags=_RENAME_NOREPLACE)


def renameat2(source: Path, target: Path, *, flags: int) -> None:
    """Rename by the system call that Python does not offer.

    Args:
        flags: of linux/fs.h, such as RENAME_NOREPLACE.

    Raises:
        OSError: what the kernel says; EOPNOTSUPP where the C library has no such call.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None or call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags):
        number = ctypes.get_errno() if call else errno.EOPNOTSUPP
        raise OSError(number, os.strerror(number), str(target))


def _file_system(folder: Path) -> str:
    """The kernel's name of the file system that a folder is on; empty when it cannot be told."""
    device = folder.stat().st_dev
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


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a loss of power, where the file system can be told to."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with point("fsync folder", folder.name):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise
    finally:
        os.close(descriptor)
