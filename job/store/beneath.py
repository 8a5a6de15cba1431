"""Opens names below one folder and follows no link on the way, not even one that takes a folder's place meanwhile.

Each name is opened in the folder before it, by that folder's descriptor. The first folder may be a link itself: the user has
named it. Owns the ways only; crash points, fsyncs and what a user does about a fault are those of `folder.py`.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader

MAX_FOLDERS = 64
"""A folder nested deeper is passed over: every level holds a descriptor while it is walked through."""

_WAY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}

PassOver = Callable[[str, str], None]
"""Is told what is passed over: (way from the first folder, what it is)."""


class ForeignError(Exception):
    """Something else stands where a file, or a folder on the way to it, is wanted.

    Attributes:
        way: to it, from the first folder.
        kind: what it is, such as `a link to '/data'`.
    """

    def __init__(self, way: str, kind: str) -> None:
        super().__init__(f"{way} is {kind}")
        self.way, self.kind = way, kind


def parts_of(key: str) -> tuple[str, ...]:
    """The names that a key or prefix consists of; none for the empty prefix.

    Raises:
        ValueError: it has an empty name, `.`, `..` or a NUL, so that it is no way below a folder, or a second name for one.
    """
    parts = tuple(key.removesuffix("/").split("/")) if key else ()
    if "\0" in key or {"", ".", ".."} & set(parts):
        raise ValueError(key)
    return parts


@contextlib.contextmanager
def opened(first: str | os.PathLike[str], names: Sequence[str] = (), *, at: int | None = None) -> Iterator[int]:
    """A descriptor of the folder `first/names[0]/names[1]...`, for the calls that take `dir_fd`.

    Args:
        at: descriptor of the folder that a relative `first` is in; by default the working folder.

    Raises:
        ForeignError: one of `names` is a link.
        OSError: what the system says, such as ENOENT, and ENOTDIR for a file.
    """
    descriptor = os.open(first, _WAY, dir_fd=at)
    try:
        for index in range(len(names)):
            outer, descriptor = descriptor, open_inner(descriptor, names[: index + 1])
            os.close(outer)
        yield descriptor
    finally:
        os.close(descriptor)


def open_inner(folder: int, names: Sequence[str]) -> int:
    """A descriptor of the folder `names[-1]` in the open `folder`; raises as `opened`.

    Args:
        names: the way to it, for the error.
    """
    try:
        return os.open(names[-1], _WAY | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            _refuse(folder, names, kinds=(stat.S_IFLNK,))
        raise


def open_file(folder: int, names: Sequence[str]) -> int:
    """A descriptor of the regular file `names[-1]` in the open `folder`, to read. No pipe or device makes it wait.

    Raises:
        ForeignError: it is a link, a folder, a pipe, a socket or a device.
        OSError: what the system says.
    """
    try:
        descriptor = os.open(names[-1], _READ | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=folder)
    except OSError:
        refuse_foreign(folder, names)
        raise
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, descriptor)
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind != stat.S_IFREG:
            raise ForeignError("/".join(names), _KINDS[kind])
        undo.pop_all()
    return descriptor


@contextlib.contextmanager
def reading(first: str | os.PathLike[str], names: Sequence[str], *, at: int | None = None) -> Iterator[BufferedReader]:
    """A regular file, open to be read; the arguments and errors are those of `opened` and `open_file`."""
    with opened(first, names[:-1], at=at) as folder, open(open_file(folder, names), "rb") as file:
        yield file


def refuse_foreign(folder: int, names: Sequence[str]) -> None:
    """Let pass a regular file, and a name that is free.

    Raises:
        ForeignError: something else has the name.
    """
    _refuse(folder, names, kinds=_KINDS)


def _refuse(folder: int, names: Sequence[str], *, kinds: Sequence[int] | dict[int, str]) -> None:
    try:
        kind = stat.S_IFMT(os.stat(names[-1], dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:  # gone meanwhile, or it cannot be seen: the caller's own call says it
        return
    if kind not in kinds:
        return
    target = ""
    with contextlib.suppress(OSError):
        target = f" to {os.readlink(names[-1], dir_fd=folder)!r}" if kind == stat.S_IFLNK else ""
    raise ForeignError("/".join(names), f"{_KINDS[kind]}{target}")


@contextlib.contextmanager
def _entries_of(folder: int) -> Iterator[list[os.DirEntry[str]]]:
    """What is in an open folder. Ask the entries inside the `with`, and never to follow links."""
    readable = os.open(".", _READ | os.O_DIRECTORY, dir_fd=folder)
    try:
        with os.scandir(readable) as found:
            entries = [*found]
        yield entries
    finally:
        os.close(readable)


def folders_of(folder: int, names: Sequence[str], *, pass_over: PassOver) -> list[str]:
    """The names of the folders directly in an open folder, in no order; the arguments are those of `walk`."""
    with _entries_of(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                _name_foreign(folder, (*names, entry.name), pass_over=pass_over)
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def walk(folder: int, names: Sequence[str], *, pass_over: PassOver) -> Iterator[tuple[int, str, os.DirEntry[str]]]:
    """Every regular file below an open folder: (descriptor of its folder, way to it, entry), to be used before the next.

    What disappears meanwhile is left out.

    Args:
        names: the way to `folder`.
        pass_over: is told of links, of what is neither file nor folder, and of folders nested too deep.
    """
    with _entries_of(folder) as entries:
        for entry in entries:
            way = (*names, entry.name)
            if entry.is_file(follow_symlinks=False):
                yield folder, "/".join(way), entry
            elif not entry.is_dir(follow_symlinks=False):
                _name_foreign(folder, way, pass_over=pass_over)
            elif len(way) > MAX_FOLDERS:
                pass_over("/".join(way), f"a folder nested deeper than {MAX_FOLDERS}")
            else:
                yield from _walk_inner(folder, way, pass_over=pass_over)


def _name_foreign(folder: int, names: Sequence[str], *, pass_over: PassOver) -> None:
    try:
        refuse_foreign(folder, names)
    except ForeignError as error:
        pass_over(error.way, error.kind)


def _walk_inner(
    folder: int, names: Sequence[str], *, pass_over: PassOver
) -> Iterator[tuple[int, str, os.DirEntry[str]]]:
    try:
        inner = open_inner(folder, names)
    except (FileNotFoundError, NotADirectoryError, ForeignError):  # another process was quicker
        return
    try:
        yield from walk(inner, names, pass_over=pass_over)
    finally:
        os.close(inner)
