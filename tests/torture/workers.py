"""R14: two workers of one run; one is killed, stopped, put to sleep or cut off, and each is started again by itself."""

import contextlib
import functools
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.conftest import IS_CI, REPOSITORY
from tests.network import WHY_NOT, Network, can_make_networks
from tests.torture.campaign import Campaign, Result, Trial, fast_folder
from tests.torture.checks import Published, TrialFailed, check_same, objects_of_folder, published
from tests.torture.planted import ENVIRONMENT
from tests.workers import Cluster, Process, read_commit, run_alone

_EPOCHS, _STEPS_PER_EPOCH = 10, 45
_FLAGS = (
    f"--train.epochs={_EPOCHS}",
    "--model.dropout=0.1",
    "--checkpoint.interval_seconds=0.2",
    "--promotion.enabled=true",
    "--cluster.start_timeout_seconds=30",
)
_PORT = 2222
_POLL_SECONDS = 0.02
_MAX_OUT_SECONDS = 60.0
_MAX_TRIAL_SECONDS = 270.0
_MAX_STOP_SECONDS = 5.0
_NOTICE_SECONDS = 8.0
_MAX_ATTEMPTS = 5
_LOST_OR_STOPPED = (75, 76, -signal.SIGKILL, -signal.SIGTERM)
_PLANT = "from tests.torture.planted import plant_chosen\nplant_chosen()\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """An attempt of one worker that is over; `at` is a monotonic time."""

    process: Process
    code: int
    at: float


@dataclass(slots=True, kw_only=True)
class Crew:
    """Two workers, each of which is started again by itself 1 to 2 s after it was lost or stopped, as Kubernetes does."""

    cluster: Cluster
    random: Random
    network: Network | None
    running: dict[int, Process] = field(default_factory=dict)
    ended: list[Ended] = field(default_factory=list)
    _due: dict[int, float] = field(default_factory=dict)

    def start(self, index: int) -> None:
        """Start a worker, with a bug if one is asked for."""
        environ = {}
        if os.environ.get(ENVIRONMENT):
            (self.cluster.folder / "sitecustomize.py").write_text(_PLANT)
            environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(self.cluster.folder)])
        prefix = self.network.prefix(index) if self.network else ()
        self.running[index] = self.cluster.start(index, prefix=prefix, **environ)

    def run_until(self, is_time: Callable[[], bool], *, deadline: float) -> None:
        """Keep the workers going until it is time; raises TrialFailed when that takes too long."""
        while not is_time():
            if time.monotonic() > deadline:
                raise TrialFailed(f"still running at the end of the trial: {self.describe()}")
            self._look()
            time.sleep(_POLL_SECONDS)

    def is_over(self) -> bool:
        """Whether every worker has ended well."""
        return not self.running and not self._due

    def end_of(self, process: Process) -> Ended | None:
        """How an attempt ended; None as long as it runs."""
        return next((ended for ended in self.ended if ended.process is process), None)

    def describe(self) -> str:
        """Every attempt: worker, exit code and the last that it said."""
        codes = [(ended.process.index, ended.code, _reached(ended.process)) for ended in self.ended]
        return f"{codes}, running {[(index, _reached(process)) for index, process in self.running.items()]}"

    def _look(self) -> None:
        now = time.monotonic()
        for index, process in list(self.running.items()):
            code = process.popen.poll()
            if code is None:
                continue
            del self.running[index]
            self.ended.append(Ended(process=process, code=code, at=now))
            if code in _LOST_OR_STOPPED:
                self._due[index] = now + self.random.uniform(1, 2)
            elif code != 0:
                raise TrialFailed(f"worker {index} ended with {code}: {process.error or process.stderr[-1000:]}")
        for index in [index for index, due in self._due.items() if now >= due]:
            del self._due[index]
            self.start(index)


def _reached(process: Process) -> str:
    events = process.events
    return str(events[-1]["event"]) if events else "nothing"


def _steps(process: Process, name: str = "") -> list[int]:
    """The steps that its log names, in all events or in those of one name."""
    return [int(event["step"]) for event in process.events if event.get("step") and name in event["event"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One kind of fault.

    Attributes:
        strike, undo: are given the crew and the victim.
        lasts_seconds: undone after a time between these; None: when the other worker has left.
    """

    name: str
    strike: Callable[[Crew, Process], None]
    undo: Callable[[Crew, Process], None] = lambda crew, victim: None
    lasts_seconds: tuple[float, float] | None = (0, 0)
    peer_timeout_seconds: int = 10
    is_in_training: bool = False
    is_of_network: bool = False


def _send(number: signal.Signals) -> Callable[[Crew, Process], None]:
    return lambda crew, victim: victim.kill(number)


def _cut(crew: Crew, victim: Process) -> None:
    assert crew.network
    crew.network.cut()


def _mend(crew: Crew, victim: Process) -> None:
    assert crew.network
    crew.network.mend()


FAULTS = (
    Fault(name="SIGTERM in training", strike=_send(signal.SIGTERM), is_in_training=True),
    Fault(name="SIGKILL", strike=_send(signal.SIGKILL)),
    Fault(name="cut", strike=_cut, undo=_mend, lasts_seconds=(2, 25), is_of_network=True),
    Fault(name="SIGTERM", strike=_send(signal.SIGTERM)),
    Fault(name="asleep", strike=_send(signal.SIGSTOP), undo=_send(signal.SIGCONT), lasts_seconds=(2, 25)),
    Fault(name="asleep for good", strike=_send(signal.SIGSTOP), undo=_send(signal.SIGKILL), lasts_seconds=None),
    Fault(
        name="cut in training, default time-out",
        strike=_cut,
        undo=_mend,
        lasts_seconds=(40, 40),
        peer_timeout_seconds=30,
        is_in_training=True,
        is_of_network=True,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """What was there when the fault struck.

    Attributes:
        said: the last thing that the victim had said.
        must_be_noticed: all were in training, and the fault lasted longer than the others may wait.
    """

    at: float
    victim: Process
    present: tuple[Process, ...]
    said: str
    was_in_training: bool
    must_be_noticed: bool


@contextlib.contextmanager
def _crew(folder: Path, random: Random, *flags: str) -> Iterator[Crew]:
    """Two workers that run, in networks of their own where they can be had. Afterwards none is left."""
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network()) if can_make_networks() else None
        addresses = [f"{host}:{_PORT}" for host in network.hosts] if network else []
        cluster = Cluster(folder=folder, count=2, flags=(*_FLAGS, *flags), addresses=addresses)
        stack.callback(cluster.end)
        crew = Crew(cluster=cluster, random=random, network=network)
        for index in (0, 1):
            crew.start(index)
        yield crew


@functools.cache
def _alone() -> tuple[Published, str]:
    """The result of an undisturbed run of one process with two replicas, and its result digest."""
    with tempfile.TemporaryDirectory(prefix="torture-alone-", dir=fast_folder()) as temporary:
        folder = Path(temporary)
        run_alone(folder, *_FLAGS, "--cluster.cpu_replicas=2")
        return published(objects_of_folder(folder / "out")), read_commit(folder)["result_digest"]


@functools.cache
def _life_seconds() -> float:
    """From the start of two undisturbed workers to the end of both."""
    with tempfile.TemporaryDirectory(prefix="torture-life-", dir=fast_folder()) as temporary:
        started = time.monotonic()
        with _crew(Path(temporary), Random(0)) as crew:
            crew.run_until(crew.is_over, deadline=started + _MAX_TRIAL_SECONDS)
        return time.monotonic() - started


def _lose_a_worker(trial: Trial) -> Result:
    fault = FAULTS[trial.index % len(FAULTS)]
    if fault.is_of_network and not can_make_networks():
        if IS_CI:
            raise TrialFailed(WHY_NOT)
        return Result(note=f"{fault.name}: LEFT OUT, {WHY_NOT}", figures={"left out": 1.0})
    index = trial.random.randrange(2)
    life_seconds = 0.0 if fault.is_in_training else trial.random.uniform(0, _life_seconds())
    lasts_seconds = trial.random.uniform(*fault.lasts_seconds) if fault.lasts_seconds else None
    deadline = time.monotonic() + _MAX_TRIAL_SECONDS
    with _crew(trial.folder, trial.random, f"--cluster.peer_timeout_seconds={fault.peer_timeout_seconds}") as crew:
        _wait_for_instant(crew, fault, index, life_seconds=life_seconds, random=trial.random, deadline=deadline)
        if index not in crew.running:
            crew.run_until(crew.is_over, deadline=deadline)
            return Result(note=f"{fault.name}: came after the end", figures={"came after the end": 1.0})
        struck = _strike(crew, fault, crew.running[index], lasts_seconds=lasts_seconds, deadline=deadline)
        if struck.was_in_training and fault.name.startswith("SIGTERM"):
            _check_stopped_together(crew, struck, deadline=deadline)
        crew.run_until(crew.is_over, deadline=deadline)
    return _judge(trial.folder, crew, fault, struck, lasted=f", {lasts_seconds:.1f} s" if lasts_seconds else "")


def _wait_for_instant(
    crew: Crew, fault: Fault, index: int, *, life_seconds: float, random: Random, deadline: float
) -> None:
    """Until the instant that was drawn: of the whole life, or in training a step and some time after it."""
    if not fault.is_in_training:
        instant = time.monotonic() + life_seconds
        crew.run_until(lambda: time.monotonic() >= instant, deadline=deadline)
        return
    step = random.randint(1, _EPOCHS - 4) * _STEPS_PER_EPOCH
    crew.run_until(lambda: max(_steps(crew.running[index]), default=0) >= step, deadline=deadline)
    time.sleep(random.uniform(0, 0.3))


def _strike(crew: Crew, fault: Fault, victim: Process, *, lasts_seconds: float | None, deadline: float) -> Struck:
    """Let the fault happen, and undo it when its time is over."""
    present = tuple(crew.running.values())
    progress = [max(_steps(process), default=0) for process in present]
    # Not in the last epochs: the log is behind.
    was_in_training = len(present) == 2 and min(progress) > 0 and max(progress) <= (_EPOCHS - 3) * _STEPS_PER_EPOCH
    is_long = lasts_seconds is None or lasts_seconds > fault.peer_timeout_seconds + _NOTICE_SECONDS
    struck = Struck(
        at=time.monotonic(),
        victim=victim,
        present=present,
        said=_reached(victim),
        was_in_training=was_in_training,
        must_be_noticed=was_in_training and (is_long or fault.name == "SIGKILL"),
    )
    fault.strike(crew, victim)
    if lasts_seconds is None:
        others = [process for process in present if process is not victim]
        crew.run_until(lambda: all(map(crew.end_of, others)), deadline=min(deadline, struck.at + 90))
    else:
        crew.run_until(lambda: time.monotonic() >= struck.at + lasts_seconds, deadline=deadline)
    fault.undo(crew, victim)
    return struck


def _check_stopped_together(crew: Crew, struck: Struck, *, deadline: float) -> None:
    """All stop after the same chunk with 75."""
    crew.run_until(lambda: all(map(crew.end_of, struck.present)), deadline=deadline)
    codes = [ended.code for ended in map(crew.end_of, struck.present) if ended]
    steps = [_steps(process, "run.interrupted") for process in struck.present]
    if codes != [75, 75]:
        raise TrialFailed(f"SIGTERM in training must end all workers with 75, received {codes}: {crew.describe()}")
    if steps[0] != steps[1] or len(steps[0]) != 1:
        raise TrialFailed(f"all workers must stop after the same step, received {steps}")


def _judge(folder: Path, crew: Crew, fault: Fault, struck: Struck, *, lasted: str) -> Result:
    """What holds after every fault; the figures."""
    reference, digest = _alone()
    check_same(objects_of_folder(folder / "out"), reference)
    if read_commit(folder)["result_digest"] != digest:
        raise TrialFailed("another result digest than that of one process with two replicas")
    _check_codes(crew, fault, struck)
    _check_nothing_runs(folder)
    ends = [ended for ended in map(crew.end_of, struck.present) if ended]
    out_seconds = [ended.at - struck.at for ended in ends if ended.code != 0]
    if max(out_seconds, default=0) > _MAX_OUT_SECONDS:
        raise TrialFailed(f"out {max(out_seconds):.1f} s after the fault: {crew.describe()}")
    lost = _lost_steps(crew, struck)
    if lost and struck.was_in_training and fault.name.startswith("SIGTERM"):
        raise TrialFailed(f"{lost} steps are lost")
    codes = {ended.process.index: ended.code for ended in ends}
    if struck.must_be_noticed and 0 in codes.values():
        raise TrialFailed(f"nobody noticed {fault.name} in training: {crew.describe()}")
    figures = {f"{fault.name}: out_seconds": max(out_seconds)} if out_seconds else {}
    return Result(
        note=f"{fault.name}, worker {struck.victim.index} ({struck.said}{lasted}): {codes} after "
        f"{max(out_seconds, default=0):.1f} s, {lost} steps lost, {len(crew.ended)} attempts",
        figures={**figures, "struck": 1.0, "in training": float(struck.was_in_training), "steps lost": float(lost)},
    )


def _check_codes(crew: Crew, fault: Fault, struck: Struck) -> None:
    for ended in crew.ended:
        is_victim = ended.process is struck.victim
        is_killed = ended.code == -signal.SIGKILL and not (is_victim and fault.name in ("SIGKILL", "asleep for good"))
        had_no_handler = is_victim and fault.name == "SIGTERM" and not ended.process.events
        if is_killed or (ended.code == -signal.SIGTERM and not had_no_handler):
            raise TrialFailed(f"worker {ended.process.index} ended by a signal: {crew.describe()}")
    for index in (0, 1):
        if sum(ended.process.index == index for ended in crew.ended) > _MAX_ATTEMPTS:
            raise TrialFailed(f"worker {index} needed more than {_MAX_ATTEMPTS} attempts: {crew.describe()}")


def _check_nothing_runs(folder: Path) -> None:
    """All processes of a trial have its folder as theirs."""
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if path.readlink() == folder:
                raise TrialFailed(f"process {path.parent.name} is left")


def _lost_steps(crew: Crew, struck: Struck) -> int:
    """Steps of whole chunks that lost attempts had made and that the next attempt made again."""
    ends = [ended for ended in map(crew.end_of, struck.present) if ended and ended.code != 0]
    reached = max((step for ended in ends for step in _steps(ended.process)), default=0)
    later = [process for process in crew.cluster.processes if process.index == 0 and process not in struck.present]
    resumed = [process for process in later if any(event["event"] == "train.start" for event in process.events)]
    if not resumed or any(ended.code == 0 for ended in map(crew.end_of, struck.present) if ended):
        return 0
    return max(0, reached - max(_steps(resumed[0], "checkpoint.restored"), default=0))


CAMPAIGNS = (
    Campaign(
        name="R14",
        promise="two workers, one killed, stopped, asleep or cut off at a random instant, each restarted by itself: "
        "all out within 60 s, one COMMIT, the result of one process with two replicas",
        trial=_lose_a_worker,
        num_full=50,
        num_quick=3,
        is_quiet=True,
        limits={"SIGTERM in training: out_seconds p99": _MAX_STOP_SECONDS + 1},
    ),
)
