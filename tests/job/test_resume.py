"""Killed and started again, in real processes: the same weights as an undisturbed run, published once."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import QUICK, RunJob, job_command, job_environment

pytestmark = pytest.mark.tf

FLAGS = (*QUICK, "--train.epochs=30", "--model.dropout=0.1", "--run.id=r", "--checkpoint.interval_seconds=0.2")
Event = dict[str, object]


def run_until(
    folder: Path, is_time: Callable[[Event], bool], *, flags: Sequence[str], signals: Sequence[int]
) -> tuple[int, list[Event]]:
    """Start the job, send the signals (50 ms apart) once an event says so; its exit code and all events."""
    process = subprocess.Popen(
        job_command(["run", *flags]),
        cwd=folder,
        env=job_environment({"PYTHONPATH": str(Path.cwd())}),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    events: list[Event] = []
    for line in process.stdout:
        events.append(json.loads(line))
        if is_time(events[-1]):
            break
    for number in signals:
        process.send_signal(number)
        time.sleep(0.05)
    output, _ = process.communicate(timeout=60)
    return process.returncode, events + [json.loads(line) for line in output.splitlines()]


def committed_digest(folder: Path) -> str:
    digest: str = json.loads((folder / "out" / "runs" / "r" / "COMMIT.json").read_text())["weights_digest"]
    return digest


def after_checkpoints(wanted: int) -> Callable[[Event], bool]:
    """Whether so many were saved; the log is stored after each, so the one before the last is certainly in it."""
    seen: list[Event] = []

    def is_time(event: Event) -> bool:
        seen.extend([event] if event["event"] == "checkpoint.saved" else [])
        return len(seen) >= wanted

    return is_time


@pytest.fixture
def undisturbed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    extra = getattr(request, "param", ())
    code, _ = run_until(folder, lambda _: False, flags=[*FLAGS, *extra], signals=[])
    assert code == 0
    return folder


@pytest.mark.parametrize(
    "undisturbed", [(), ("--cluster.cpu_replicas=2",)], indirect=True, ids=["one replica", "two replicas"]
)
def test_resume_after_kills_gives_identical_weights_and_history(
    undisturbed: Path, run_job: RunJob, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    flags = [*FLAGS, *request.node.callspec.params["undisturbed"]]
    killed, _ = run_until(tmp_path, after_checkpoints(2), flags=flags, signals=[signal.SIGKILL])
    interrupted, events = run_until(
        tmp_path, lambda event: event["event"] == "epoch.end", flags=flags, signals=[signal.SIGTERM] * 10
    )
    finished, last = run_until(tmp_path, lambda _: False, flags=flags, signals=[])

    assert (killed, interrupted, finished) == (-signal.SIGKILL, 75, 0)
    saved = [event for event in events if event["event"] == "checkpoint.saved"][-1]
    restored = next(event for event in last if event["event"] == "checkpoint.restored")
    stopped = next(event for event in events if event["event"] == "run.interrupted")
    assert saved["step"] == restored["step"] == stopped["step"]  # nothing is lost
    assert committed_digest(tmp_path) == committed_digest(undisturbed)
    stored = run_job("logs", "r").events
    attempts = list(dict.fromkeys(event["attempt"] for event in stored))
    assert len(attempts) == 3  # in the order in which they ran, the killed one up to its last checkpoint
    assert [event["event"] for event in stored if event["attempt"] == attempts[0]][:2] == ["run.start", "data.ready"]
    assert [event for event in stored if event["attempt"] == attempts[2]] == last
    histories = []
    for folder in (tmp_path, undisturbed):
        [metrics] = (folder / "out").rglob("metrics.json")
        records = json.loads(metrics.read_text())["history"]
        histories.append(
            [{name: record[name] for name in ("epoch", "loss", "accuracy", "test_loss")} for record in records]
        )
    assert histories[0] == histories[1]
    assert [record["epoch"] for record in histories[0]] == list(range(1, 31))


def test_killed_after_training_evaluates_and_exports_again_without_training(undisturbed: Path, tmp_path: Path) -> None:
    code, _ = run_until(tmp_path, lambda event: event["event"] == "evaluate.end", flags=FLAGS, signals=[signal.SIGKILL])
    finished, last = run_until(tmp_path, lambda _: False, flags=FLAGS, signals=[])

    assert finished == 0
    if code != 0:  # it may have been quicker than the kill
        assert code == -signal.SIGKILL
        assert "epoch.end" not in [event["event"] for event in last]
        assert next(event for event in last if event["event"] == "checkpoint.restored")["step"] == 30 * 45
    assert committed_digest(tmp_path) == committed_digest(undisturbed)
    left = {
        path.relative_to(tmp_path / "out" / "runs" / "r").parts[0]
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert left == {"run.json", "COMMIT.json", "attempts", "logs"}  # the winner deletes the checkpoints
    assert len(list((tmp_path / "out").rglob("saved_model.pb"))) == 1


def test_corrupt_checkpoints_are_skipped_and_all_corrupt_is_65(run_job: RunJob, tmp_path: Path) -> None:
    run_until(tmp_path, after_checkpoints(3), flags=FLAGS, signals=[signal.SIGTERM])
    folder = tmp_path / "out" / "runs" / "r" / "checkpoints"
    older, newest = sorted(folder.iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    code, events = run_until(
        tmp_path, lambda event: event["event"] == "checkpoint.restored", flags=FLAGS, signals=[signal.SIGKILL]
    )
    restored = next(event for event in events if event["event"] == "checkpoint.restored")

    assert code == -signal.SIGKILL
    assert "checkpoint.skipped" in [event["event"] for event in events]
    assert restored["step"] == int(older.name[:9])

    for path in folder.iterdir():
        os.truncate(path, 100)
    done = run_job("run", *FLAGS)
    assert done.code == 65
    assert "checkpoints is intact" in done.error
