"""R7: no space, I/O errors and failed fsyncs at every local write."""

import errno
import functools
import os
from collections import Counter
from pathlib import Path

from tests.torture import plain
from tests.torture.campaign import Campaign, Result, Trial
from tests.torture.checks import TrialFailed, check_checkpoints, check_same, objects_of_folder
from tests.torture.kills import finish, name_of_point, points, reference

_LOCAL = ("write", "fsync", "link", "replace", "mkdir", "fsync folder")
_ERRORS = (errno.ENOSPC, errno.EIO)
_FLAGS = (*plain.FILE_STORE, "--store.deadline_seconds=0.3", "--checkpoint.final_save_seconds=0.3")


@functools.cache
def _faults() -> tuple[tuple[str, int, bool], ...]:
    """(point, error, whether it lasts to the end of the process), for every local write."""
    local = [point for point in points() if point.startswith(tuple(f"before {verb} " for verb in _LOCAL))]
    return tuple((point, number, lasts) for point in local for number in _ERRORS for lasts in (False, True))


def _num_faults() -> int:
    return len(_faults())


def _fail_at(wanted: str, number: int, *, lasts: bool) -> plain.Hook:
    seen: Counter[str] = Counter()
    failing = False

    def hook(point: str) -> None:
        nonlocal failing
        name = name_of_point(point)
        seen[name] += 1
        is_here = f"{name} #{seen[name]}" == wanted
        failing = failing or (is_here and lasts)
        if is_here or (failing and name.startswith(tuple(f"before {verb} " for verb in _LOCAL))):
            raise OSError(number, os.strerror(number))

    return hook


def _fail_local_write(trial: Trial) -> Result:
    wanted, number, lasts = _faults()[trial.index]
    reference()
    ended = plain.run(trial.folder, _FLAGS, hook=_fail_at(wanted, number, lasts=lasts))
    what = f"{'lasting' if lasts else 'one'} {errno.errorcode[number]} {wanted}"
    if ended.code not in (0, 69):
        raise TrialFailed(f"{what}: ended with {ended.code}: {ended.error}")
    if ended.code == 69:
        lines = ended.stderr.strip().splitlines()
        if len(lines) != 1 or not lines[0].startswith("mnist-job: error 69: "):
            raise TrialFailed(f"{what}: one clear line is promised, received {lines}")
        if os.strerror(number) not in ended.error and "could not be saved" not in ended.error:
            raise TrialFailed(f"{what}: the error does not say why: {ended.error}")
    _check_and_finish(trial.folder)
    return Result(note=f"{what}: ended with {ended.code}", figures={"ended with 69": float(ended.code == 69)})


def _check_and_finish(folder: Path) -> None:
    """Space has returned: what is there is intact, and the run ends as if nothing had happened."""
    if (folder / "store").is_dir():
        check_checkpoints(objects_of_folder(folder / "store"))
    finish(folder)
    check_same(objects_of_folder(folder / "store"), reference())


CAMPAIGNS = (
    Campaign(
        name="R7",
        promise="no space or an I/O error at every local write and fsync, once and lasting: a clear error, nothing lost",
        trial=_fail_local_write,
        num_full=0,
        num_quick=40,
        count=_num_faults,
    ),
)
