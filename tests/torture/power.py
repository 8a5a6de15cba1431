"""R4: the power fails, and everything that was not fsynced may be gone, come back, or be empty.

A model of what POSIX promises, not of one file system: an entry of a folder is safe once that folder was fsynced, the bytes
of a file once the file was; each change that is not safe survives or not, by a coin.
"""

import functools
import json
import os
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.torture import plain
from tests.torture.campaign import Campaign, Result, Trial
from tests.torture.checks import check_same, objects_of_folder
from tests.torture.kills import check_recovered, kill_at_number, points, reference


@dataclass(slots=True)
class _Disk:
    """What is safe, below one folder. Inode numbers name files; a safe file is kept alive by a second link.

    Attributes:
        entries: path -> inode, of every entry that is safe.
        contents: inodes whose bytes are safe.
    """

    root: Path
    keep: Path
    entries: dict[Path, int] = field(default_factory=dict)
    contents: set[int] = field(default_factory=set)

    def after_fsync(self, path: Path) -> None:
        """A file or folder was fsynced."""
        if path.is_dir():
            self.entries = {entry: inode for entry, inode in self.entries.items() if entry.parent != path}
            self.entries |= {Path(entry.path): entry.inode() for entry in os.scandir(path)}
            return
        inode = path.stat().st_ino
        self.contents.add(inode)
        if not (self.keep / str(inode)).exists():
            _link(path, self.keep / str(inode))

    def save(self) -> None:
        """For the process that lets the power fail, and for the next attempt."""
        entries = {str(entry): inode for entry, inode in self.entries.items()}
        (self.keep / _STATE).write_text(json.dumps({"entries": entries, "contents": sorted(self.contents)}))

    def load(self) -> None:
        """Take up what `save` wrote."""
        state = json.loads((self.keep / _STATE).read_text())
        self.entries = {Path(entry): inode for entry, inode in state["entries"].items()}
        self.contents = set(state["contents"])


def _disk_of(folder: Path) -> _Disk:
    return _Disk(root=folder / "store", keep=folder / "kept")


_STATE = "state.json"
_link, _fsync, _exit = os.link, os.fsync, os._exit


def _watch(folder: Path) -> _Disk:
    """The disk below `folder`, from here on watched inside this process."""
    disk = _disk_of(folder)
    if (disk.keep / _STATE).exists():
        disk.load()

    def fsync(descriptor: int) -> None:
        _fsync(descriptor)
        disk.after_fsync(Path(f"/proc/self/fd/{descriptor}").readlink())

    def leave(code: int) -> Any:
        disk.save()
        _exit(code)

    vars(os).update(fsync=fsync, _exit=leave)
    return disk


def _power_fails_at(number: int, folder: Path) -> plain.Hook:
    """A hook that ends its process at the n-th point, and leaves what is safe on record."""
    disk: list[_Disk] = []
    count = 0

    def hook(point: str) -> None:
        nonlocal count
        if not disk:
            disk.append(_watch(folder))
        count += 1
        if count == number:
            disk[0].save()
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def _lose_power(folder: Path, random: Random) -> int:
    """Leave below `folder` what a disk might hold after the power failed; returns how many changes were lost."""
    disk = _disk_of(folder)
    disk.load()
    lost = 0
    for entry, inode in sorted(disk.entries.items()):  # removed, and the removal is not safe: it may come back
        kept = disk.keep / str(inode)
        is_removed = entry.is_relative_to(disk.root) and entry.parent.is_dir() and not entry.exists() and kept.exists()
        if is_removed and random.random() < 0.5:
            _link(kept, entry)
            lost += 1
    return lost + _lose_changes(disk, disk.root, random) if disk.root.exists() else lost


def _lose_changes(disk: _Disk, path: Path, random: Random) -> int:
    """Lose one entry, or what is below it, as far as it is not safe."""
    inode = path.stat().st_ino
    if disk.entries.get(path) != inode and random.random() < 0.5:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return 1
    if path.is_dir():
        return sum(_lose_changes(disk, entry, random) for entry in sorted(path.iterdir()))
    if inode not in disk.contents:
        os.truncate(path, random.choice((0, path.stat().st_size // 2)))
        return 1
    return 0


@functools.cache
def _unsafe_points() -> tuple[int, ...]:
    """The numbers of the points at which something was made and its folder not yet fsynced."""
    return tuple(number for number, point in enumerate(points(), 1) if point.startswith("before fsync folder"))


def _lose_power_anywhere(trial: Trial) -> Result:
    reference()
    (trial.folder / "kept").mkdir()
    random, notes = trial.random, []
    if random.random() < 0.5:  # killed before: the next attempt finds what is there and not yet safe
        anywhere = range(1, len(points()) + 1)
        number = random.choice((random.random() < 0.7 and _unsafe_points()) or anywhere)
        plain.run(trial.folder, hook=_killed_while_watched(number, trial.folder))
        notes.append(f"killed at point {number}")
    is_after_exit = random.random() < 0.4
    number = 10**9 if is_after_exit else random.randint(1, len(points()))
    ended = plain.run(trial.folder, hook=_power_fails_at(number, trial.folder))
    lost = _lose_power(trial.folder, random)
    notes.append(f"power lost at {'the end' if is_after_exit else f'point {number}'}: {lost} changes lost")
    if ended.code == 0:
        check_same(objects_of_folder(trial.folder / "store"), reference())
    check_recovered(trial.folder)
    return Result(note=", ".join(notes), figures={"changes lost": float(lost), "after exit 0": float(ended.code == 0)})


def _killed_while_watched(number: int, folder: Path) -> plain.Hook:
    kill, disk = kill_at_number(number), list[_Disk]()

    def hook(point: str) -> None:
        if not disk:
            disk.append(_watch(folder))
        disk[0].save()
        kill(point)

    return hook


CAMPAIGNS = (
    Campaign(
        name="R4",
        promise="power lost anywhere, also after a kill: what was not fsynced is lost or comes back, the result is the same",
        trial=_lose_power_anywhere,
        num_full=1000,
        num_quick=40,
    ),
)
