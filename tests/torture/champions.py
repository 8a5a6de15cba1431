"""R13: eight writers move one champion, with faults and sleeps in between; the history has to be that of one register.

The writers are real processes on one `file:` store, with `champion.move` and `Gate.settle` as runs and people use them.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from job.config import PromotionSection
from job.errors import ConflictError, JobError
from job.registry import champion, serving
from job.registry.gate import Gate
from job.registry.retention import apply_retention
from job.runs import read
from job.store import store
from job.store.backend import TransientError
from job.store.folder import FolderBackend
from job.store.store import Store
from tests.job.runs.committed_runs import commit_run
from tests.torture.campaign import Campaign, Result, Trial
from tests.torture.checks import TrialFailed, objects_of_folder
from tests.torture.planted import plant_chosen

MODEL = "plain"
_NUM_WRITERS = 8
_NUM_SHORT, _MOVES_SHORT, _MOVES_LONG = 6, 15, 125
"""The first trials, those of the short version, are short; the others make 1,000 moves each."""
_KEEP_RUNS, _KEEP_VERSIONS = 12, 5
_MAX_SECONDS = 200.0


class _FaultyFolder(FolderBackend):
    """Now and then a request fails, before or after it took effect, or takes its time."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        super().__init__(folder)
        self._chance = chance

    def create(self, key: str, data: bytes) -> None:
        self._disturb()
        if "/champion/" in key and self._chance.random() < 0.03:
            time.sleep(self._chance.uniform(0, 1.0))  # long enough for the others to leave it behind
        super().create(key, data)
        self._disturb()

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        self._disturb()
        return super().get(key, max_bytes=max_bytes)

    def _disturb(self) -> None:
        draw = self._chance.random()
        if draw < 0.01:
            raise TransientError("as told")
        if draw < 0.03:
            time.sleep(self._chance.uniform(0, 0.005))


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One finished operation, as its writer saw it: seconds by the one clock of the machine."""

    writer: int
    kind: str
    began: float
    ended: float
    version: int | None
    run: str


def _write(folder: Path, writer: int, *, seed: str, num_moves: int, log: Path) -> None:
    """One writer: commits runs and lets the gate decide, moves the champion by hand, and rolls it back."""
    chance = random.Random(f"{seed} {writer}")
    target = Store(_FaultyFolder(folder, chance), uri=f"file:{folder}", deadline_seconds=60)
    for number in range(num_moves):
        run = f"r{writer}-{number}"
        kind = chance.choice(("gate", "gate", "promote", "rollback"))
        if kind != "rollback":
            commit_run(target, run, num_wrong=chance.randrange(10))
        began = time.monotonic()
        try:
            moved = {"gate": _by_gate, "promote": _by_hand, "rollback": _back}[kind](target, run, chance)
        except ConflictError:  # slept so long that retention took the run away
            moved = None
        version, run = moved if moved else (None, run)
        entry = {"writer": writer, "kind": kind, "began": began, "ended": time.monotonic()}
        with open(log, "a") as file:
            file.write(json.dumps(entry | {"version": version, "run": run}) + "\n")
        newest = champion.read_newest(target, MODEL)
        if newest and (moved or chance.random() < 0.1):
            with contextlib.suppress(JobError):  # a slow one may find its version's run removed
                serving.finish_layout(target, newest)
        if chance.random() < 0.03:
            apply_retention(target, MODEL, keep_runs=_KEEP_RUNS, keep_versions=_KEEP_VERSIONS)


def _by_gate(target: Store, run: str, chance: random.Random) -> tuple[int, str] | None:
    rules = PromotionSection(max_accuracy_drop=0.1, significance=0.0)
    gate = Gate(store=target, model=MODEL, rules=rules, who=run, reevaluate=None)
    commit = read.read_commit(target, run)
    assert commit
    version = gate.settle(commit).version
    return (version, run) if version else None


def _by_hand(target: Store, run: str, chance: random.Random) -> tuple[int, str] | None:
    commit = read.read_commit(target, run)
    assert commit
    to = commit.model(created=read.created_at(target, commit))
    before = champion.read_newest(target, MODEL)
    time.sleep(chance.choice((0, 0, 0.002)))
    moved = champion.move(target, MODEL, before=before, to=to, by="promote", who=run, why="", forced=True)
    return (moved.version, moved.run) if moved else None


def _back(target: Store, run: str, chance: random.Random) -> tuple[int, str] | None:
    moves = champion.history(target, MODEL)
    newest = next(moves, None)
    earlier = next((pointer for pointer in moves if newest and pointer.run != newest.run), None)
    if newest is None or earlier is None:
        return None
    try:
        commit = champion.commit_of(target, earlier)
        to = commit.model(created=read.created_at(target, commit))
        moved = champion.move(target, MODEL, before=newest, to=to, by="rollback", who=run, why="test")
    except JobError:  # slow: the one before is beyond retention by now
        return None
    return (moved.version, moved.run) if moved else None


def _start(folder: Path, writer: int, *, seed: str, num_moves: int, log: Path) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            plant_chosen()
            vars(store)["_FIRST_BACKOFF_SECONDS"] = 0.002
            _write(folder, writer, seed=seed, num_moves=num_moves, log=log)
            code = 0
        except BaseException as error:  # noqa: BLE001 - told by the parent
            with open(log.with_suffix(".err"), "a") as file:
                file.write(f"writer {writer}: {type(error).__name__}: {error}\n")
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


class _Reader:
    """Follows the champion to its files all the time: it may only go up, and everything that it names is there."""

    def __init__(self, folder: Path) -> None:
        self._store = Store(FolderBackend(folder), uri=f"file:{folder}", deadline_seconds=60)
        self._highest, self.num_reads = 0, 0

    def read(self) -> None:
        newest = champion.read_newest(self._store, MODEL)
        if newest is None:
            if self._highest:
                raise TrialFailed("the champion is gone")
            return
        if newest.version < self._highest:
            raise TrialFailed(f"the champion went back from version {self._highest} to {newest.version}")
        self._highest = newest.version
        try:
            read.read_files(self._store, champion.commit_of(self._store, newest))
        except JobError as error:
            later = champion.read_newest(self._store, MODEL)
            if later and later.version < newest.version + _KEEP_VERSIONS:
                raise TrialFailed(f"version {newest.version} names what is not whole: {error}") from error
        self.num_reads += 1


def _move_together(trial: Trial) -> Result:
    folder, log = trial.folder / "store", trial.folder / "moves"
    seed = f"{trial.index} {trial.random.getrandbits(64)}"
    num_moves = _MOVES_SHORT if trial.index < _NUM_SHORT else _MOVES_LONG
    pids = {writer: _start(folder, writer, seed=seed, num_moves=num_moves, log=log) for writer in range(_NUM_WRITERS)}
    victim = trial.random.randrange(_NUM_WRITERS)
    reader, deadline, num_killed = _Reader(folder), time.monotonic() + _MAX_SECONDS, 0
    kill_at = time.monotonic() + trial.random.uniform(0, num_moves / 20)
    try:
        while pids:
            _reap(pids, log, ignoring=victim if num_killed else None)
            reader.read()
            if victim in pids and not num_killed and time.monotonic() > kill_at:
                os.kill(pids[victim], signal.SIGKILL)
                num_killed = 1
            time.sleep(0.01)
            if time.monotonic() > deadline:
                raise TrialFailed(f"{len(pids)} writers hung")
    finally:
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    moves = [Move(**json.loads(line)) for line in log.read_text().splitlines()]
    num_versions = _check_history(folder, moves, killed=victim if num_killed else None)
    _check_end(folder)
    lost = sum(move.version is None for move in moves)
    return Result(
        note=f"{len(moves)} operations, {num_versions} versions, {lost} lost or refused",
        figures={
            "operations": float(len(moves)),
            "versions": float(num_versions),
            "kills": float(num_killed),
            "reads": float(reader.num_reads),
        },
    )


def _reap(pids: dict[int, int], log: Path, *, ignoring: int | None) -> None:
    for writer, pid in list(pids.items()):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            del pids[writer]
            if os.waitstatus_to_exitcode(status) and writer != ignoring:
                raise TrialFailed(f"a writer failed: {log.with_suffix('.err').read_text()[-300:]}")


def _check_history(folder: Path, moves: list[Move], *, killed: int | None) -> int:
    """Linearizable: each version was made by exactly one operation, in real time's order, on top of the one that it names."""
    target = Store(FolderBackend(folder), uri=f"file:{folder}", deadline_seconds=10)
    pointers = list(champion.history(target, MODEL))[::-1]
    if [pointer.version for pointer in pointers] != list(range(1, len(pointers) + 1)):
        raise TrialFailed(f"versions have gaps: {[pointer.version for pointer in pointers]}")
    for before, pointer in zip([None, *pointers], pointers, strict=False):
        if (pointer.from_version, pointer.from_run) != ((before.version, before.run) if before else (None, None)):
            raise TrialFailed(
                f"version {pointer.version} was made on top of {pointer.from_version}, {pointer.from_run}"
            )
        if pointer.by == "gate" and before and pointer.to.created < before.to.created:
            raise TrialFailed(f"version {pointer.version}: an older run displaced a newer one")
    made = {move.version: move for move in moves if move.version is not None}
    if len(made) != sum(move.version is not None for move in moves):
        raise TrialFailed("two operations believe that they made the same version")
    for pointer in pointers:
        move = made.get(pointer.version)
        if move is None and (killed is None or not pointer.who.startswith(f"r{killed}-")):
            raise TrialFailed(f"nobody says that he made version {pointer.version}")
        if move and move.run != pointer.run:
            raise TrialFailed(f"version {pointer.version} is of {pointer.run}, its maker believes {move.run}")
    latest_start = 0.0
    for move in (made[version] for version in sorted(made)):
        # An operation that ended before another began must come before it.
        if move.ended < latest_start:
            raise TrialFailed(f"version {move.version} ended before an earlier version's operation had begun")
        latest_start = max(latest_start, move.began)
    return len(pointers)


def _check_end(folder: Path) -> None:
    """What the newest pointers reach is there, and the champion can be laid out."""
    target = Store(FolderBackend(folder), uri=f"file:{folder}", deadline_seconds=10)
    newest = champion.read_newest(target, MODEL)
    if newest is None:
        raise TrialFailed("there is no champion")
    apply_retention(target, MODEL, keep_runs=_KEEP_RUNS, keep_versions=_KEEP_VERSIONS)
    for number, pointer in enumerate(champion.history(target, MODEL)):
        if number == _KEEP_VERSIONS:
            break
        try:
            read.read_files(target, champion.commit_of(target, pointer))
        except JobError as error:
            raise TrialFailed(f"version {pointer.version} reaches what is gone: {error}") from error
    serving.finish_layout(target, newest)
    serving.check_layout(target, newest)
    runs = {pointer.version: pointer.run for pointer in champion.history(target, MODEL)}
    for key, data in objects_of_folder(folder).items():
        if (
            key.endswith("gate.json")
            and (version := json.loads(data)["version"])
            and runs.get(version) not in key.split("/")
        ):
            raise TrialFailed(f"{key} says version {version}, which is another's")


CAMPAIGNS = (
    Campaign(
        name="R13",
        promise="8 writers move one champion, with faults, kills and retention: one history, no step back, nothing missing",
        trial=_move_together,
        num_full=30,
        num_quick=6,
    ),
)
