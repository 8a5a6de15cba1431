"""R21: the store protocol under a scheduler that may do anything a network, a kernel and a cluster may do.

Attempts, movers by hand, readers, `gc` and retention are the program's own functions, as `job/attempt.py` and the commands call
them. Before each change takes effect a judge, who sees the bare objects only, says whether it keeps every promise.
"""

import contextlib
import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TypeVar, cast

import numpy as np

from job import attempt as program
from job import contract
from job.commands import champion as by_hand
from job.config import Config
from job.config_sources import load_config
from job.errors import (
    ConfigError,
    ConflictError,
    GateRefusedError,
    IntegrityError,
    NotFoundError,
    RetiredError,
    UnavailableError,
)
from job.observe.metrics import Metrics
from job.observe.phases import Phases
from job.observe.progress import Display
from job.observe.termination import Status
from job.observe.view import View
from job.registry import champion, garbage, serving
from job.registry.retention import apply_retention
from job.runs import checkpoint as checkpoints
from job.runs import read, write
from job.runs.checkpoint import Checkpoint
from job.runs.identity import AttemptIdentity
from job.signals import StopSignal
from job.store.store import Store
from job.training.workload import Workload
from tests.job.runs.committed_runs import commit_run, content_of, files_of
from tests.job.runs.test_checkpoint import META
from tests.torture import simulated_time
from tests.torture.campaign import Campaign, Result, Trial
from tests.torture.checks import TrialFailed
from tests.torture.judge import Judge
from tests.torture.planted import plant_chosen
from tests.torture.simulation import Client, Dangers, World

T = TypeVar("T")

_ENDINGS = (ConfigError, ConflictError, GateRefusedError, IntegrityError, NotFoundError, UnavailableError)
"""Of commands; what they did is judged by what is stored."""

MODEL = "plain"
SEEDS_PER_TRIAL = 100
_NUM_STEPS, _KEEP_CHECKPOINTS = 3, 2
_SPREAD_SECONDS = 400.0
_OLD_SECONDS = 120.0
_MAX_LOOKS = 6
_PHASES = Phases()
_FOCUSES = (
    *("", "create", "delete", "list", "COMMIT", "gate.json"),
    *("/champion/", "/claims/", "/retirements/", "/versions/"),
)
_MOVES = ("/champion/", "/claims/", "/retirements/")
"""Where movers and retention like to sleep, many runs are made and few are kept: else removals seldom meet moves."""


class Simulation:
    """One seed: who takes part, what may go wrong, and what has to hold."""

    def __init__(self, seed: str) -> None:
        chance = self._chance = random.Random(seed)
        dangers = Dangers(
            fault=chance.choice((0.0, 0.03, 0.1)),
            crash=chance.choice((0.0, 0.003, 0.015)),
            nap=chance.choice((0.0, 0.01, 0.05)),
            focus=chance.choice(_FOCUSES),
        )
        self.keep_runs, self.keep_versions = chance.choice((1, 1, 2, 30)), chance.choice((1, 2, 3))
        num_runs = chance.randint(1, 4)
        if dangers.focus in _MOVES:
            num_runs, self.keep_runs, self.keep_versions = 4, 1, 1
        self.world = World(random=chance, dangers=dangers)
        self.judge = self.world.judge = Judge(self.world.objects, model=MODEL, keep_versions=self.keep_versions)
        self._config = _config(self.keep_runs, self.keep_versions)
        self._runs = {f"r{number}": chance.randrange(10) for number in range(num_runs)}
        """Run -> how many of the examples its model gets wrong."""

    def run(self) -> None:
        """Everybody at once, then what is still on its way, then a quiet end in which everything has to heal."""
        simulated_time.enter(self.world)
        commit_run(self.world.connect(), "another", model_name="another")  # older than all others, and of another model
        self._invite()
        self.world.run()
        self.world.dangers = Dangers()
        for run in self._runs:
            self._go_on_in_peace(run)
        self._end_well()

    def _invite(self) -> None:
        chance = self._chance
        for run in self._runs:
            for number in range(chance.randint(1, 3)):
                name = f"{run}-a{number}"
                self._invite_one(name, functools.partial(self._attempt, run, name))
        for number in range(chance.randrange(6)):
            name, run = f"by-hand-{number}", chance.choice([*self._runs])
            act = chance.choice((self._promote, self._promote, self._roll_back))
            self._invite_one(name, functools.partial(act, run))
        for number in range(chance.randrange(3)):
            self._invite_one(f"gc-{number}", self._collect)
            self._invite_one(f"retention-{number}", self._retain)
        self._invite_one("reader", self._read)

    def _invite_one(self, name: str, work: Callable[[], object]) -> None:
        def live() -> None:
            with contextlib.suppress(*_ENDINGS):
                work()

        client = self.world.start(name, live)
        client.ready_at += self._chance.choice((0.0, self._chance.uniform(0, _SPREAD_SECONDS)))

    def _attempt(self, run: str, name: str) -> None:
        """The order of `job.attempt.run`, and from COMMIT on its own code; nothing is damaged, so 65 would be wrong.

        Only a run that was ever committed ends as a retired one, and such a run never ends with 73.
        """
        try:
            self._go_through(run, name)
        except IntegrityError as error:
            raise TrialFailed(f"{name} ends for good: {error}") from error
        except RetiredError as error:
            if not self.judge.was_committed(run):
                raise TrialFailed(f"{name} ends with 0, and {run} was never committed: {error}") from error
            raise
        except ConflictError as error:
            if self.judge.was_committed(run):
                raise TrialFailed(f"{run} was committed, and {name} is refused: {error}") from error
            raise

    def _go_through(self, run: str, name: str) -> None:
        store, attempt, was_committed = self.world.connect(), name, self.judge.was_committed(run)
        digest = write.begin_run(store, run, inputs={"run": run}, config={})
        committed = read.read_commit(store, run)
        if committed is not None:
            read.check_same_result(committed, result_digest=digest)
        else:
            if was_committed:
                raise TrialFailed(f"{name} trains {run} again, which was committed before it started")
            attempt = write.free_attempt_id(store, run, wanted=name)
            stored = write.upload(store, run, attempt_id=attempt, files={read.ATTEMPT_FILE: b"{}"})
            read.list_attempts(store, run)
            self._train(store, run, digest=digest)
            num_wrong = self._runs[run]
            files = files_of(run, num_wrong=num_wrong)
            stored += write.upload(store, run, attempt_id=attempt, files=files)
            content = content_of(run, attempt, stored, digest=digest, weights=run, num_wrong=num_wrong)
            committed = write.commit(store, run, content=content)
        identity = AttemptIdentity(run=run, attempt=attempt)
        fake = SimpleNamespace(
            identity=identity, phases=lambda name: nullcontext(), view=_silent_view(), stop=StopSignal()
        )
        surroundings = cast(program.Surroundings, fake)
        workload = cast(Workload, SimpleNamespace(predict_with=None))
        program.finish(self._config, store, committed, surroundings=surroundings, workload=workload)

    def _train(self, store: Store, run: str, *, digest: str) -> None:
        """Steps with checkpoints, some of them written by a thread beside it."""
        newest = checkpoints.load_newest(store, run, result_digest=digest)
        step = newest.step if newest else 0
        if newest and newest.arrays["state"][0] != step:
            raise TrialFailed(f"the checkpoint of step {step} holds another state")
        writer: Client | None = None
        while step < _NUM_STEPS:
            step += 1
            checkpoint = Checkpoint(step=step, result_digest=digest, arrays={"state": np.array([step])}, meta=META)
            write = functools.partial(self._save, run, checkpoint)
            if self._chance.random() < 0.5 or self.world.me is None:
                write()
            elif writer is None or writer.thread.dead:
                writer = self.world.start(f"{self.world.me.name}-w", write, owner=self.world.me)

    def _save(self, run: str, checkpoint: Checkpoint) -> None:
        store = self.world.connect()
        with contextlib.suppress(UnavailableError):
            checkpoints.save(store, run, checkpoint)
            checkpoints.prune(store, run, keep=_KEEP_CHECKPOINTS)

    def _promote(self, run: str) -> None:
        store, forced = self.world.connect(), self._chance.random() < 0.5
        committed = self._patiently(lambda: read.read_commit(store, run))
        if committed:
            by_hand.promote_run(self._config, store, committed, forced=forced, why="test")

    def _roll_back(self, run: str) -> None:
        store, to = self.world.connect(), self._chance.choice((None, run))
        if self._patiently(lambda: champion.read_newest(store, MODEL)):
            by_hand.roll_back(self._config, store, to=to, why="test")

    def _patiently(self, look: Callable[[], T | None]) -> T | None:
        """Whoever acts by hand waits until there is something to act on, and a little longer."""
        for _ in range(_MAX_LOOKS):
            found = look()
            if found is not None:
                self.world.pause(self._chance.choice((0.0, self._chance.uniform(0, _SPREAD_SECONDS))))
                return found
            self.world.pause(self._chance.uniform(0, _SPREAD_SECONDS / 2))
        return None

    def _collect(self) -> None:
        store, ages = self.world.connect(), {"older_than_seconds": _OLD_SECONDS, "now_seconds": self.world.now}
        for found in garbage.find_garbage(store, **ages):
            garbage.delete_garbage(store, found, **ages)

    def _retain(self) -> None:
        keep = self._config.retention.model_dump()
        apply_retention(self.world.connect(), MODEL, **keep)

    def _read(self) -> None:
        """A server that follows the champion, and one that takes the highest version of the layout."""
        store, highest = self.world.connect(), 0
        for _ in range(self._chance.randint(1, 6)):
            with contextlib.suppress(UnavailableError):
                highest = self._read_champion(store, highest)
                self._read_layout(store)
            self.world.pause(self._chance.uniform(0, 100))

    def _read_champion(self, store: Store, highest: int) -> int:
        newest = champion.read_newest(store, MODEL)
        if newest is None:
            return highest
        if newest.version < highest:
            raise TrialFailed(f"a reader saw the champion go back from version {highest} to {newest.version}")
        try:
            read.read_files(store, champion.commit_of(store, newest))
        except IntegrityError as error:
            if self.judge.is_kept(newest.version):
                raise TrialFailed(f"a reader of version {newest.version} missed an object: {error}") from error
        return newest.version

    def _read_layout(self, store: Store) -> None:
        prefix = contract.versions_prefix(MODEL)
        names = [entry.key.removeprefix(prefix).partition("/") for entry in store.list_objects(prefix)]
        whole = [int(version) for version, _, name in names if name == serving.LAST_FILE]
        if not whole:
            return
        version = max(whole)
        folder = contract.version_prefix(MODEL, version=version)
        wanted = self.judge.model_of_version(version)
        found = {name: store.get(folder + name) for name in wanted}
        if found != wanted and version > self.judge.newest_whole() - self.keep_versions:
            raise TrialFailed(f"a server loaded half of version {version}: {sorted(found)}")

    def _go_on_in_peace(self, run: str) -> None:
        """One more start, with nothing in its way: the run has its result, had it, or can have none any more."""
        was_closed = self._is_closed(run)
        ended = self._end_of(lambda: self._attempt(run, f"{run}-last"))
        if was_closed and ended is not (RetiredError if self.judge.was_committed(run) else ConflictError):
            raise TrialFailed(f"a start of the closed run {run} ends with {ended}")
        if self._is_closed(run):  # maybe by the retention of this very start
            self.world.counts["retired at the end"] += ended is RetiredError
            return
        if ended:
            self._count_mark(run)
            return
        self.judge.check_gate(run)
        left = [key for key in self.world.objects if key.startswith(contract.checkpoint_prefix(run))]
        if left:
            raise TrialFailed(f"left over after the commit: {left}")

    def _is_closed(self, run: str) -> bool:
        data = self.world.objects.get(contract.commit_key(run))
        return data is not None and isinstance(read.parse_run(data, run), read.ClosedRun)

    def _end_well(self) -> None:
        """A new and better run becomes champion, and can be taken back."""
        self._runs["z"] = 0
        self.world.now += 1
        self._attempt("z", "z-last")
        store = self.world.connect()
        newest = champion.read_newest(store, MODEL)
        if newest is None or newest.run != "z":
            raise TrialFailed(f"a better run did not become champion: {newest}")
        serving.check_layout(store, newest)
        self.judge.check_layouts()
        kept = itertools.islice(champion.history(store, MODEL), self.keep_versions)
        before = next((pointer.run for pointer in kept if pointer.run != "z"), None)
        if before and self._end_of(lambda: by_hand.roll_back(self._config, store, to=None, why="test")):
            self._count_mark(before)

    def _end_of(self, act: Callable[[], object]) -> type[ConflictError] | None:
        """The error that something ends with; None where it goes through."""
        try:
            act()
        except ConflictError as error:
            return type(error)
        return None

    def _count_mark(self, run: str) -> None:
        """Whoever dies while he removes a run leaves a mark that keeps it from becoming champion for good."""
        if not self.judge.is_marked(run):
            raise TrialFailed(f"run {run} is refused for no reason")
        self.world.counts["marks left"] += 1


def _silent_view() -> View:
    """Takes everything and shows nothing."""
    status = Status()
    return View(display=Display("json"), metrics=Metrics(status=status, phases=_PHASES), status=status)


@functools.cache
def _config(keep_runs: int, keep_versions: int) -> Config:
    flags = (f"--retention.keep_runs={keep_runs}", f"--retention.keep_versions={keep_versions}")
    return load_config([*flags, "--promotion.model_name=plain", "--promotion.max_accuracy_drop=0.1"]).config


@functools.cache
def _prepare() -> None:
    simulated_time.install()
    plant_chosen()


def _simulate_many(trial: Trial) -> Result:
    _prepare()
    counts = Counter[str]()
    for number in range(SEEDS_PER_TRIAL):
        seed = f"{trial.random.getrandbits(64):016x}"
        simulated = Simulation(seed)
        try:
            simulated.run()
        except Exception as error:
            (trial.folder / "trace").write_text("\n".join(simulated.world.trace) + "\n")
            raise TrialFailed(f"seed {seed}, number {number}: {type(error).__name__}: {error}") from error
        counts.update(_figures(simulated))
    return Result(note=f"{SEEDS_PER_TRIAL} seeds", figures={name: float(count) for name, count in counts.items()})


def _figures(simulated: Simulation) -> dict[str, int]:
    world = simulated.world
    counted = {"seeds": 1, "requests": len(world.trace), "moves": len(simulated.judge.pointers)}
    return counted | dict(sorted(world.counts.items()))


CAMPAIGNS = (
    Campaign(
        name="R21",
        promise="requests lost, late, repeated and reordered, processes asleep or gone: no step of the protocol breaks a promise",
        trial=_simulate_many,
        num_full=1000,
        num_quick=14,
    ),
)
