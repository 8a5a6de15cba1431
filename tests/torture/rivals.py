"""R12: several processes with one run id at once, some of them asleep while a rival finishes."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

from tests.torture import plain
from tests.torture.campaign import Campaign, Result, Trial
from tests.torture.checks import TrialFailed, check_same, check_whole, objects_of_folder
from tests.torture.kills import reference

_MAX_SECONDS = 60.0


class Poller:
    """A reader who follows the COMMIT to its objects, and remembers what he saw first."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._first: bytes | None = None
        self.num_reads = 0

    def read(self) -> None:
        """Raises TrialFailed when a result is partial or has changed."""
        path = self._store / "runs" / "r" / "COMMIT.json"
        try:
            commit = path.read_bytes()
        except FileNotFoundError:
            if self._first is not None:
                raise TrialFailed("the COMMIT is gone") from None
            return
        self.num_reads += 1
        if self._first is None:
            self._first = commit
        elif commit != self._first:
            raise TrialFailed("the COMMIT has changed")
        keys = [file["key"] for file in json.loads(commit)["files"]]
        objects = {"runs/r/COMMIT.json": commit}
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                objects[key] = (self._store / key).read_bytes()
        check_whole(objects)


def _race(trial: Trial) -> Result:
    random, folder = trial.random, trial.folder
    reference()
    attempts = [plain.start(folder)]
    num_rivals = random.randint(1, 7)
    sleeper = attempts[0] if random.random() < 0.7 else None
    time.sleep(random.uniform(0, 0.12))
    if sleeper:
        os.kill(sleeper.pid, signal.SIGSTOP)
    for _ in range(num_rivals):
        attempts.append(plain.start(folder))
        time.sleep(random.choice((0.0, 0.0, random.uniform(0, 0.05))))
    poller = Poller(folder / "store")
    try:
        num_slept_through = _wait_for_all(attempts, sleeper, poller=poller)
    except TrialFailed:
        for attempt in attempts:
            with contextlib.suppress(ChildProcessError):
                os.kill(attempt.pid, signal.SIGKILL)
                os.waitpid(attempt.pid, 0)
        raise
    _finish_left_overs(folder)
    check_same(objects_of_folder(folder / "store"), reference())
    return Result(
        note=f"{len(attempts)} processes, {num_slept_through} asleep until all others were done",
        figures={
            "processes": float(len(attempts)),
            "slept": float(num_slept_through),
            "reads": float(poller.num_reads),
        },
    )


def _wait_for_all(attempts: list[plain.Attempt], sleeper: plain.Attempt | None, *, poller: Poller) -> int:
    """Until all have ended well; 1 when the sleeper had to be woken after all the others were done."""
    waiting, deadline, num_slept_through = list(attempts), time.monotonic() + _MAX_SECONDS, 0
    while waiting:
        for attempt in list(waiting):
            ended = attempt.poll()
            if ended is not None:
                waiting.remove(attempt)
                if ended.code != 0:
                    raise TrialFailed(f"an attempt ended with {ended.code}: {ended.error}")
        poller.read()
        if sleeper and waiting == [sleeper]:
            num_slept_through += 1
            os.kill(sleeper.pid, signal.SIGCONT)
            sleeper = None
        if time.monotonic() > deadline:
            raise TrialFailed(f"{len(waiting)} attempts hung")
        time.sleep(0.002)
    return num_slept_through


def _finish_left_overs(folder: Path) -> None:
    """A late attempt may leave a checkpoint or a losing model behind the winner's cleaning; the next start takes it away."""
    ended = plain.run(folder)
    if ended.code != 0:
        raise TrialFailed(f"a start after the commit ended with {ended.code}: {ended.error}")


CAMPAIGNS = (
    Campaign(
        name="R12",
        promise="2 to 8 processes with one run id, one asleep until its rivals finished: one COMMIT that never changes",
        trial=_race,
        num_full=1000,
        num_quick=20,
    ),
)
