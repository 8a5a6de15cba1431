"""R2, R3 and R25: killed before and after every single write, and again while it recovers."""

import functools
import os
import re
import signal
import tempfile
from collections import Counter
from pathlib import Path

from tests.torture import plain
from tests.torture.campaign import Campaign, Result, Trial, fast_folder
from tests.torture.checks import Published, TrialFailed, check_checkpoints, check_same, objects_of_folder, published

_MAX_ATTEMPTS = 8
_VARIABLE = (
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "ATTEMPT"),
    (re.compile(r"-[0-9a-f]{16}(?=\.safetensors)"), "-HASH"),
    (re.compile(r"(?<=fsync folder )(tmp|torture)[-\w]+"), "FOLDER"),  # that of the trial
)


def name_of_point(point: str) -> str:
    """A point without what differs from process to process."""
    for pattern, word in _VARIABLE:
        point = pattern.sub(word, point)
    return point


@functools.cache
def reference(flags: tuple[str, ...] = plain.FILE_STORE) -> Published:
    """The result of an undisturbed run."""
    with tempfile.TemporaryDirectory(dir=fast_folder()) as temporary:
        folder = Path(temporary)
        ended = plain.run(folder, flags)
        if ended.code != 0:
            raise TrialFailed(f"an undisturbed run ended with {ended.code}: {ended.stderr}")
        return published(objects_of_folder(folder / "store"))


@functools.cache
def points(flags: tuple[str, ...] = plain.FILE_STORE) -> tuple[str, ...]:
    """Every point of an undisturbed run, in its order; a name that comes again carries its number."""
    with tempfile.TemporaryDirectory(dir=fast_folder()) as temporary:
        folder = Path(temporary)
        log = folder / "points"

        def record(point: str) -> None:
            with open(log, "a") as file:
                file.write(name_of_point(point) + "\n")

        plain.run(folder, flags, hook=record)
        seen: Counter[str] = Counter()
        names = []
        for name in log.read_text().splitlines():
            seen[name] += 1
            names.append(f"{name} #{seen[name]}")
        return tuple(names)


def _num_points() -> int:
    return len(points())


def _num_points_of_stopping() -> int:
    return len(points(plain.STOPPING))


def kill_at_point(wanted: str) -> plain.Hook:
    """A hook that kills its own process, as power and the kernel do: no clean-up runs."""
    seen: Counter[str] = Counter()

    def hook(point: str) -> None:
        name = name_of_point(point)
        seen[name] += 1
        if f"{name} #{seen[name]}" == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def kill_at_number(number: int) -> plain.Hook:
    """A hook that kills its own process at the n-th point that it comes to, whatever that is."""
    seen: Counter[str] = Counter()

    def hook(point: str) -> None:
        seen["points"] += 1
        if seen["points"] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def finish(folder: Path, flags: tuple[str, ...] = plain.FILE_STORE) -> int:
    """Start the run again until it ends well; returns the number of attempts that took."""
    for number in range(1, _MAX_ATTEMPTS + 1):
        ended = plain.run(folder, flags)
        if ended.code == 0:
            return number
        if ended.code not in (69, 74, 75):
            raise TrialFailed(f"attempt ended with {ended.code}: {ended.error}")
    raise TrialFailed(f"not finished after {_MAX_ATTEMPTS} attempts")


def _results(store: Path) -> dict[str, bytes]:
    """All objects but the page of the model, which each attempt makes again of them: it links the newest report."""
    return {key: data for key, data in objects_of_folder(store).items() if not key.endswith("/index.html")}


def check_recovered(folder: Path, flags: tuple[str, ...] = plain.FILE_STORE) -> None:
    """What was left is intact, and the run started again ends as if nothing had happened."""
    store = folder / "store"
    if store.is_dir():
        check_checkpoints(objects_of_folder(store))
    num_attempts = finish(folder, flags)
    if num_attempts != 1:
        raise TrialFailed(f"one attempt should be enough after a kill, it took {num_attempts}")
    check_same(objects_of_folder(store), reference(flags))
    before = _results(store)
    if plain.run(folder, flags).code != 0 or any(_results(store)[key] != data for key, data in before.items()):
        raise TrialFailed("a start after the commit changed something")


def _kill_at_every_point(trial: Trial) -> Result:
    wanted = points()[trial.index]
    reference()
    ended = plain.run(trial.folder, hook=kill_at_point(wanted))
    if ended.code != -signal.SIGKILL:
        raise TrialFailed(f"the point was not reached: {wanted}; the attempt ended with {ended.code}")
    check_recovered(trial.folder)
    return Result(note=f"killed {wanted}")


def _kill_around_the_stop(trial: Trial) -> Result:
    """At a point, and in every other trial once more while it recovers."""
    wanted = points(plain.STOPPING)[trial.index]
    ended = plain.run(trial.folder, plain.STOPPING, hook=kill_at_point(wanted))
    if ended.code != -signal.SIGKILL:
        raise TrialFailed(f"the point was not reached: {wanted}; the attempt ended with {ended.code}")
    if trial.index % 2:
        number = trial.random.randint(1, len(points(plain.STOPPING)))
        plain.run(trial.folder, plain.STOPPING, hook=kill_at_number(number))
    check_recovered(trial.folder, plain.STOPPING)
    return Result(note=f"killed {wanted}")


def _kill_recoveries(trial: Trial) -> Result:
    numbers = [trial.random.randint(1, len(points())) for _ in range(3)]
    codes = [plain.run(trial.folder, hook=kill_at_number(number)).code for number in numbers]
    check_recovered(trial.folder)
    return Result(
        note=f"killed at points {numbers}", figures={"kills": float(sum(code == -signal.SIGKILL for code in codes))}
    )


CAMPAIGNS = (
    Campaign(
        name="R2",
        promise="killed before and after every store write, rename and fsync: same result, one COMMIT",
        trial=_kill_at_every_point,
        num_full=0,
        num_quick=50,
        count=_num_points,
    ),
    Campaign(
        name="R3",
        promise="killed again while it recovers, three deep: same result, one COMMIT",
        trial=_kill_recoveries,
        num_full=1000,
        num_quick=40,
    ),
    Campaign(
        name="R25",
        promise="a run that stops early and keeps its best epoch, killed as in R2, half of them twice: same result, one COMMIT",
        trial=_kill_around_the_stop,
        num_full=0,
        num_quick=40,
        count=_num_points_of_stopping,
    ),
)
