"""R1, R5 and R23: the whole program with TensorFlow, killed and asked to stop at random instants."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import QUICK, REPOSITORY, job_environment
from tests.torture.campaign import Campaign, Result, Trial, fast_folder
from tests.torture.checks import Published, TrialFailed, check_same, objects_of_folder, published
from tests.torture.rivals import Poller

_EPOCHS = 8
_FLAGS = (
    *QUICK,
    f"--train.epochs={_EPOCHS}",
    "--model.dropout=0.1",
    "--run.id=r",
    "--checkpoint.interval_seconds=0.2",
    "--store.uri=file:./store",
    "--observe.log_format=json",
)
_MAX_SECONDS = 280.0
_POLL_SECONDS = 0.02
_SIGTERM_SECONDS = 0.05
_CHECKPOINT_INTERVAL_SECONDS = 30.0  # the default

Event = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an attempt ended."""

    code: int
    events: list[Event]
    seconds: float
    errors: str

    def all(self, name: str) -> list[Event]:
        """Its events of that name."""
        return [event for event in self.events if event["event"] == name]


class Attempt:
    """A running attempt; its standard output is read line by line."""

    def __init__(self, folder: Path, *, is_pid_1: bool = False) -> None:
        prefix = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"] if is_pid_1 else []
        self._errors = (folder / "stderr").open("ab")
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "job", "run", *_FLAGS],
            cwd=folder,
            env=job_environment({"PYTHONPATH": str(REPOSITORY)}),
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._is_pid_1 = is_pid_1
        self._started = time.monotonic()
        self.events: list[Event] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{") and line.endswith("\n"):  # a killed process may leave half a line
                self.events.append(json.loads(line))

    def wait_for(self, is_time: Callable[[list[Event]], bool]) -> None:
        """Until the events say so, or the process has ended."""
        while not is_time(self.events) and self._process.poll() is None:
            time.sleep(0.005)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """To the program itself, which may be PID 1 of its own namespace."""
        pid = self._process.pid
        if self._is_pid_1:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if not children:
                return
            pid = int(children[0])
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return

    def end(self, folder: Path) -> Ended:
        """Wait for the end; raises TrialFailed, and kills it, when it hangs."""
        try:
            code = self._process.wait(_MAX_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise TrialFailed(f"an attempt hung; {self._last_errors(folder)}") from None
        finally:
            self._errors.close()
        seconds = time.monotonic() - self._started
        self._reader.join()
        return Ended(code=code, events=self.events, seconds=seconds, errors=self._last_errors(folder))

    @staticmethod
    def _last_errors(folder: Path) -> str:
        return (folder / "stderr").read_text(errors="replace")[-500:]


def run(folder: Path) -> Ended:
    """One undisturbed attempt."""
    return Attempt(folder).end(folder)


@functools.cache
def _reference() -> tuple[Published, float]:
    """The result of an undisturbed run, and how many seconds it took."""
    folder = Path(tempfile.mkdtemp(prefix="torture-reference-", dir=fast_folder()))
    ended = run(folder)
    if ended.code != 0:
        raise TrialFailed(f"an undisturbed run ended with {ended.code}: {ended.errors}")
    found = published(objects_of_folder(folder / "store"))
    shutil.rmtree(folder)
    return found, ended.seconds


class _PolledFolder:
    """A poller that reads every 20 ms as long as the block runs."""

    def __init__(self, folder: Path) -> None:
        self._poller, self._stopped = Poller(folder / "store"), threading.Event()
        self._failure: TrialFailed | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Poller:
        self._thread.start()
        return self._poller

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        if self._failure:
            raise self._failure

    def _run(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            try:
                self._poller.read()
            except TrialFailed as failure:
                self._failure = failure
                return


def _check_all(folder: Path, attempts: Sequence[Ended]) -> None:
    """The result is the same, and what happened on the way is counted once."""
    objects = objects_of_folder(folder / "store")
    reference, _ = _reference()
    check_same(objects, reference)
    counters = json.loads(objects["runs/r/COMMIT.json"])["counters"]
    num_attempts = sum(key.endswith("/attempt.json") for key in objects)
    if counters["attempts"] > num_attempts or counters["epochs"] != _EPOCHS:
        raise TrialFailed(f"{num_attempts} attempts and {_EPOCHS} epochs are counted as {counters}")


def _restart_figures(ended: Ended) -> dict[str, float]:
    """From the start of a process that took up a checkpoint to its first new step."""
    first_step = (ended.all("run.end") or [{}])[-1].get("goodput") or {}
    seconds = first_step.get("first_step_seconds")
    return {"restart_to_first_step_seconds": seconds} if seconds and ended.all("checkpoint.restored") else {}


def _kill_anywhere(trial: Trial) -> Result:
    _, life_seconds = _reference()
    attempts, instants = [], []
    with _PolledFolder(trial.folder) as poller:
        for _ in range(trial.random.choice((1, 1, 1, 2))):
            attempt, instant = Attempt(trial.folder), trial.random.uniform(0, life_seconds)
            time.sleep(instant)
            attempt.send(signal.SIGKILL)
            attempts.append(attempt.end(trial.folder))
            reached = attempts[-1].events[-1]["event"] if attempts[-1].events else "nothing"
            instants.append(f"{instant:.2f} s ({reached})")
        attempts.append(run(trial.folder))
    if attempts[-1].code != 0:
        raise TrialFailed(f"started again, it ended with {attempts[-1].code}: {attempts[-1].errors}")
    _check_all(trial.folder, attempts)
    kills = sum(ended.code == -signal.SIGKILL for ended in attempts)
    return Result(
        note=f"killed after {', '.join(instants)}",
        figures={"kills": float(kills), "reads": float(poller.num_reads), **_restart_figures(attempts[-1])},
    )


def _ask_to_stop(trial: Trial) -> Result:
    _, life_seconds = _reference()
    is_pid_1 = trial.index % 2 == 0 and _can_be_pid_1()
    attempt = Attempt(trial.folder, is_pid_1=is_pid_1)
    attempt.wait_for(bool)  # until run.start
    time.sleep(trial.random.uniform(0, life_seconds))
    started = time.monotonic()
    while attempt.is_running():
        attempt.send(signal.SIGTERM)
        time.sleep(_SIGTERM_SECONDS)
    ended = attempt.end(trial.folder)
    seconds = time.monotonic() - started
    if ended.code not in (75, 0):
        raise TrialFailed(f"SIGTERM must end with 75, or 0 once committed, received {ended.code}: {ended.errors}")
    is_committed = (trial.folder / "store" / "runs" / "r" / "COMMIT.json").is_file()
    if ended.code == 0 and not is_committed:
        raise TrialFailed("exit code 0 without a COMMIT")
    last = run(trial.folder)
    if last.code != 0:
        raise TrialFailed(f"started again, it ended with {last.code}: {last.errors}")
    lost = _lost_steps(ended, last) if not is_committed else 0
    if lost:
        raise TrialFailed(f"{lost} steps are lost")
    _check_all(trial.folder, [ended, last])
    reached = ended.events[-2]["event"] if len(ended.events) > 1 else "nothing"
    return Result(
        note=f"SIGTERM every 50 ms{' as PID 1' if is_pid_1 else ''} ({reached}): {ended.code} after {seconds:.2f} s",
        figures={
            "exit_seconds": seconds,
            f"ended with {ended.code}": 1.0,
            "as PID 1": float(is_pid_1),
            "steps lost": float(lost),
            **_restart_figures(last),
        },
    )


def _lost_steps(ended: Ended, last: Ended) -> int:
    """Steps that the stopped attempt had made and the next one made again."""
    reached = int(ended.all("run.interrupted")[-1]["step"])
    restored = [int(event["step"]) for event in last.all("checkpoint.restored")]
    return reached - (restored[-1] if restored else 0)


@functools.cache
def _can_be_pid_1() -> bool:
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "true"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def _kill_and_measure(trial: Trial) -> Result:
    _reference()
    attempt = Attempt(trial.folder)
    attempt.wait_for(lambda events: any(event["event"] == "checkpoint.saved" for event in events))
    attempt.send(signal.SIGKILL)
    attempt.end(trial.folder)
    last = run(trial.folder)
    if last.code != 0:
        raise TrialFailed(f"started again, it ended with {last.code}: {last.errors}")
    _check_all(trial.folder, [last])
    saved = last.all("checkpoint.saved")
    in_loop_seconds = last.all("run.end")[-1]["phases"]["checkpoint"]
    # Everything that a checkpoint costs, as if the thread that writes it took its time from training.
    cost_seconds = (in_loop_seconds + sum(event["seconds"] for event in saved)) / len(saved)
    share_percent = 100 * cost_seconds / _CHECKPOINT_INTERVAL_SECONDS
    figures = _restart_figures(last)
    return Result(
        note=f"first new step after {figures.get('restart_to_first_step_seconds')} s; a checkpoint costs {share_percent:.2f} %",
        figures={**figures, "checkpoint_cost_seconds": cost_seconds},
    )


CAMPAIGNS = (
    Campaign(
        name="R1",
        promise="SIGKILL at random instants of the whole life, started until done: same result, one COMMIT, no partial read",
        trial=_kill_anywhere,
        num_full=300,
        num_quick=4,
    ),
    Campaign(
        name="R5",
        promise="SIGTERM at random instants, repeated every 50 ms, every other time as PID 1: 75, no step lost, same result",
        trial=_ask_to_stop,
        num_full=100,
        num_quick=4,
        limits={"exit_seconds p99": 5.0},
    ),
    Campaign(
        name="R23",
        promise="kill to first new step: 10 s at most; a checkpoint costs at most 1 % of 30 s of steps",
        trial=_kill_and_measure,
        num_full=20,
        num_quick=2,
        is_quiet=True,
        limits={
            "restart_to_first_step_seconds p50": 10.0,
            "checkpoint_cost_seconds p50": 0.01 * _CHECKPOINT_INTERVAL_SECONDS,
        },
    ),
)
