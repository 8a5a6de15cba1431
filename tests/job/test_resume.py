"""Killed and started again, in real processes: the same weights as an undisturbed run, published once."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import QUICK, RunJob, job_command, job_environment, skip_or_fail

pytestmark = pytest.mark.tf

FLAGS = (
    *QUICK,
    "--train.epochs=30",
    "--model.dropout=0.1",
    "--run.id=r",
    "--checkpoint.interval_seconds=0.2",
    "--observe.metrics_port=0",
)
RECIPE = (
    *(
        "--train.optimizer=adamw",
        "--train.learning_rate=0.01",
        "--train.schedule=warmup-cosine",
        "--train.warmup_steps=400",
    ),
    *("--train.label_smoothing=0.1", "--train.class_weights=balanced", "--train.clip_norm=0.5", "--train.metrics=auc"),
)
Event = dict[str, Any]


def run_until(
    folder: Path,
    is_time: Callable[[Event], bool],
    *,
    flags: Sequence[str],
    signals: Sequence[int],
    prefix: Sequence[str] = (),
) -> tuple[int, list[Event]]:
    """Start the job, send the signals (50 ms apart) once an event says so; its exit code and all events."""
    process = subprocess.Popen(
        [*prefix, *job_command(["run", *flags])],
        cwd=folder,
        env=job_environment({"PYTHONPATH": f"{Path.cwd()}:{folder}"}),
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


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_auto_goes_on_as_the_run_began_under_another_cpu_limit(
    run_job: RunJob, tmp_path: Path, first: int, then: int
) -> None:
    """By itself `auto` would choose XLA with two cores and the graph with one."""
    flags = [flag for flag in FLAGS if "dropout" not in flag]
    stopped, begun = run_until(
        tmp_path,
        lambda event: event["event"] == "epoch.end",
        flags=flags,
        signals=[signal.SIGTERM],
        prefix=on_cpus(first),
    )
    assert stopped == 75
    goes_on = run_job("run", *flags, prefix=on_cpus(then))
    assert goes_on.code == 0, goes_on.stderr
    [started] = [event for event in begun if event["event"] == "train.start"]
    assert started["compile"] == goes_on.event("train.start")["compile"] == ("xla" if first == 2 else "graph")
    assert goes_on.event("checkpoint.restored")["step"] > 0
    again = run_job("run", *flags, prefix=on_cpus(then))
    assert again.event("run.end")["outcome"] == "already_committed"
    other = "graph" if first == 2 else "xla"
    refused = run_job("run", *flags, f"--train.compile={other}")
    assert refused.code == 73
    assert f"train.compile was '{started['compile']}', is '{other}'" in refused.error


def on_cpus(count: int) -> list[str]:
    """What limits a command to so many of the cores of this machine, as a pod's CPU limit does."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    if len(cores) < count:
        skip_or_fail(f"{count} cores are needed")
    return ["taskset", "--cpu-list", ",".join(map(str, cores))]


@pytest.mark.parametrize(
    "undisturbed",
    [
        pytest.param((), id="one replica"),
        pytest.param(RECIPE, id="recipe"),
        pytest.param(("--cluster.cpu_replicas=2",), id="two replicas", marks=pytest.mark.full),
    ],
    indirect=True,
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
    run_until(tmp_path, lambda event: event["event"] == "evaluate.end", flags=FLAGS, signals=[signal.SIGKILL])
    was_committed = [*(tmp_path / "out").rglob("COMMIT.json")]  # it may have been quicker than the kill
    finished, last = run_until(tmp_path, lambda _: False, flags=FLAGS, signals=[])

    assert finished == 0
    if not was_committed:
        assert "epoch.end" not in [event["event"] for event in last]
        assert next(event for event in last if event["event"] == "checkpoint.restored")["step"] == 30 * 45
    assert committed_digest(tmp_path) == committed_digest(undisturbed)
    left = {
        path.relative_to(tmp_path / "out" / "runs" / "r").parts[0]
        for path in (tmp_path / "out" / "runs" / "r").rglob("*")
        if path.is_file()
    }
    assert left == {
        "run.json",
        "COMMIT.json",
        "gate.json",
        "attempts",
        "claims",
        "logs",
    }  # the winner deletes the checkpoints
    assert len(list((tmp_path / "out" / "runs").rglob("saved_model.pb"))) == 1


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


def commit_of(folder: Path) -> dict[str, Any]:
    commit: dict[str, Any] = json.loads((folder / "out" / "runs" / "r" / "COMMIT.json").read_text())
    return commit


def test_goodput_and_counters_add_up_over_a_kill_and_a_stop(tmp_path: Path) -> None:
    pause_seconds = 1.5
    started = time.time()
    killed, _ = run_until(tmp_path, after_checkpoints(2), flags=FLAGS, signals=[signal.SIGKILL])
    interrupted, stopped = run_until(
        tmp_path, lambda event: event["event"] == "epoch.end", flags=FLAGS, signals=[signal.SIGTERM]
    )
    time.sleep(pause_seconds)
    resumed = time.time()
    finished, events = run_until(tmp_path, lambda _: False, flags=FLAGS, signals=[])
    elapsed_seconds = time.time() - started

    assert (killed, interrupted, finished) == (-signal.SIGKILL, 75, 0)
    commit, end = commit_of(tmp_path), events[-1]
    assert end["event"] == "run.end"
    saved = [event for event in stopped if event["event"] == "checkpoint.saved"][-1]
    down_seconds = resumed - datetime.fromisoformat(saved["time"]).timestamp() + saved["seconds"]
    for goodput in (commit["goodput"], end["goodput"]):
        assert isinstance(goodput, dict)
        wall_seconds = goodput["wall_seconds"]
        assert sum(goodput["seconds"].values()) == pytest.approx(wall_seconds, rel=0.005)
        assert goodput["ratio"] == pytest.approx(goodput["seconds"]["train"] / wall_seconds, abs=0.001)
        assert goodput["down_seconds"] >= pause_seconds
        assert goodput["down_seconds"] == pytest.approx(down_seconds, abs=5.0)
        assert wall_seconds + goodput["down_seconds"] <= elapsed_seconds
        seconds = goodput["seconds"]
        assert 0 < seconds["lost"] < resumed - started  # since the last checkpoint of the killed attempt
        for category in ("start_up", "data", "compile", "train", "evaluate", "checkpoint"):
            assert 0 < seconds[category] < elapsed_seconds, category
        assert 0 < goodput["first_step_seconds"] < elapsed_seconds
    # Not in it: how the last process leaves.
    assert end["goodput"]["wall_seconds"] + end["goodput"]["down_seconds"] == pytest.approx(elapsed_seconds, abs=10.0)
    assert end["goodput"]["wall_seconds"] > commit["goodput"]["wall_seconds"]  # the upload is not over yet there
    assert end["goodput"]["seconds"]["train"] == commit["goodput"]["seconds"]["train"]

    steps = 30 * 45
    expected = {"steps": steps, "examples": 30 * 1437, "epochs": 30, "attempts": 3, "interruptions": 1}
    assert commit["counters"] == expected
    [metrics] = (tmp_path / "out").rglob("metrics.json")
    stored = json.loads(metrics.read_text())
    assert {name: stored[name] for name in ("counters", "goodput", "chain")} == {
        name: commit[name] for name in ("counters", "goodput", "chain")
    }
    assert commit["bit_identical"] is True
    from_steps = [link["from_step"] for link in commit["chain"]]
    assert len(from_steps) == 3
    assert 0 == from_steps[0] < from_steps[1] < from_steps[2] < steps
    assert commit["chain"][-1]["attempt"] == commit["attempt"]


def test_resume_with_other_instructions_is_said_and_recorded(
    run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    interrupted, events = run_until(
        tmp_path, lambda event: event["event"] == "epoch.end", flags=FLAGS, signals=[signal.SIGTERM]
    )
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    finished, last = run_until(tmp_path, lambda _: False, flags=FLAGS, signals=[])

    assert (interrupted, finished) == (75, 0)
    assert "run.not_bit_identical" not in [event["event"] for event in events]
    [warning] = [event for event in last if event["event"] == "run.not_bit_identical"]
    assert (warning["level"], warning["changed"]) == ("warning", {"onednn_max_cpu_isa": [None, "AVX2"]})
    commit = commit_of(tmp_path)
    assert commit["bit_identical"] is False
    first, second = commit["chain"]
    stopped = next(event for event in events if event["event"] == "run.interrupted")
    assert (first["attempt"], first["from_step"]) == (events[0]["attempt"], 0)
    assert (second["attempt"], second["from_step"]) == (last[0]["attempt"], stopped["step"])
    limits = [link["computed_on"].pop("onednn_max_cpu_isa") for link in commit["chain"]]
    assert limits == [None, "AVX2"]
    assert first["computed_on"] == second["computed_on"]
    assert run_job("verify", "--run", "r").code == 0
