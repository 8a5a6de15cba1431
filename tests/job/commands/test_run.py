"""Whole runs in real processes on the embedded digits: what is published, and every way not to publish."""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import QUICK, S3, Finished, RunJob, job_command, job_environment

pytestmark = pytest.mark.tf


def commit_of(store: Path, run_id: str) -> bytes:
    return (store / "runs" / run_id / "COMMIT.json").read_bytes()


def results_in(store: Path) -> dict[Path, bytes]:
    """Everything in a store but the logs."""
    paths = [path for path in store.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths if "logs" not in path.relative_to(store).parts}


def test_run_publishes_a_whole_verified_model(run_job: RunJob, trained: Finished, tmp_path: Path) -> None:
    names = [event["event"] for event in trained.events]
    assert names == [
        "run.start",
        "data.ready",
        "data.not_mnist",
        "gate.coarse",
        "model.built",
        "train.start",
        "epoch.end",
        "epoch.end",
        "checkpoint.saved",
        "evaluate.end",
        "export.end",
        "commit.done",
        "gate.decided",
        "layout.done",
        "run.end",
    ]
    assert trained.stderr == "", "TensorFlow's two lines are left out, and nothing is wrong"
    commit = json.loads(commit_of(tmp_path / "out", "r"))
    for file in commit["files"]:
        data = (tmp_path / "out" / file["key"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["num_bytes"], file["sha256"])
    folder = f"runs/r/attempts/{commit['attempt']}/"
    assert {file["key"].removeprefix(folder) for file in commit["files"]} >= {
        "metrics.json",
        "predictions.safetensors",
        "model/saved_model.pb",
        "model/variables/variables.index",
    }
    message = json.loads((tmp_path / "termination").read_text())
    assert message["outcome"] == "committed"
    assert message["commit"] == "runs/r/COMMIT.json"
    assert message["step"] == 90
    assert (message["verdict"], message["promoted"]) == ("promoted", True)
    assert message["accuracy"] == commit["metrics"]["test_accuracy"] == trained.event("run.end")["accuracy"]

    verified = run_job("verify", "--run", "r")
    assert verified.code == 0, verified.stderr
    assert commit["weights_digest"] in verified.stdout
    runs = json.loads(run_job("runs", "-o", "json").stdout)
    assert [(row["run"], row["state"]) for row in runs] == [("r", "committed")]
    shown = json.loads(run_job("show", "r", "-o", "json").stdout)
    assert shown.items() >= commit.items()
    assert (shown["gate"]["verdict"], shown["champion"][0]["is_champion"]) == ("promoted", True)
    stored = run_job("logs", "r")
    assert stored.stdout == trained.stdout  # the last line included
    assert run_job("logs", "other").code == 66


@pytest.mark.usefixtures("trained")
def test_verify_refuses_a_model_that_was_altered(run_job: RunJob, tmp_path: Path) -> None:
    [weights] = (tmp_path / "out" / "runs").rglob("variables.data-00000-of-00001")
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)

    done = run_job("verify", "--run", "r")

    assert done.code == 65
    assert "variables.data-00000-of-00001 is not the object that was committed" in done.error


def test_same_run_again_trains_nothing_and_succeeds(run_job: RunJob, tmp_path: Path) -> None:
    assert run_job("run", *QUICK).code == 0
    [run_id] = os.listdir(tmp_path / "out" / "runs")
    before = commit_of(tmp_path / "out", run_id)

    again = run_job("run", *QUICK)

    assert again.code == 0
    assert "train.start" not in [event["event"] for event in again.events]
    assert again.event("run.end")["outcome"] == "already_committed"
    assert commit_of(tmp_path / "out", run_id) == before


@pytest.mark.usefixtures("trained")
def test_same_run_id_with_other_settings_is_refused_and_changes_nothing(run_job: RunJob, tmp_path: Path) -> None:
    before = results_in(tmp_path / "out")

    done = run_job("run", *QUICK, "--run.id=r", "--train.learning_rate=0.2")

    assert done.code == 73
    assert "train.learning_rate was 0.1, is 0.2" in done.error
    assert results_in(tmp_path / "out") == before


def test_two_processes_with_one_run_id_make_one_commit(tmp_path: Path) -> None:
    command = job_command(["run", *QUICK, "--run.id=r"])
    environment = job_environment({"PYTHONPATH": str(Path.cwd())})
    racers = [
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [racer.communicate(timeout=120)[0] for racer in racers]

    assert [racer.returncode for racer in racers] == [0, 0]
    outcomes = sorted(json.loads(output.splitlines()[-1])["outcome"] for output in outputs)
    assert outcomes == ["already_committed", "committed"]
    commit = json.loads(commit_of(tmp_path / "out", "r"))
    winners = [output for output in outputs if json.loads(output.splitlines()[-1])["outcome"] == "committed"]
    assert json.loads(winners[0].splitlines()[-1])["attempt"] == commit["attempt"]


def test_run_on_s3_publishes_and_leaks_no_credentials(run_job: RunJob, s3: S3, tmp_path: Path) -> None:
    done = run_job("run", *QUICK, "--run.id=r", *s3.flags, env=s3.env)
    verified = run_job("verify", "--run", "r", *s3.flags, env=s3.env)
    runs = run_job("runs", *s3.flags, env=s3.env)
    shown = run_job("show", "r", *s3.flags, env=s3.env)

    assert (done.code, verified.code, runs.code, shown.code) == (0, 0, 0, 0), done.stderr + verified.stderr
    assert "committed" in runs.stdout
    for finished in (done, verified, runs, shown):
        assert "canary" not in finished.stdout + finished.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_while_training_exits_with_75_and_commits_nothing(number: signal.Signals, tmp_path: Path) -> None:
    termination_log = tmp_path / "termination"
    process = subprocess.Popen(
        job_command(["run", *QUICK, "--train.epochs=10000", f"--observe.termination_log={termination_log}"]),
        cwd=tmp_path,
        env=job_environment({"PYTHONPATH": str(Path.cwd())}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "epoch.end":
            break
    asked = time.monotonic()
    process.send_signal(number)
    output, error = process.communicate(timeout=60)

    assert process.returncode == 75, error
    assert time.monotonic() - asked < 30
    assert [json.loads(line)["event"] for line in output.splitlines()][-2:] == ["run.interrupted", "run.end"]
    message = json.loads(termination_log.read_text())
    assert (message["outcome"], message["code"]) == ("interrupted", 75)
    assert message["step"] > 0
    assert list((tmp_path / "out").rglob("checkpoints/*.safetensors"))
    assert not list((tmp_path / "out").rglob("COMMIT.json"))


@pytest.mark.parametrize(
    "redirection",
    [
        ">&- 2>&-",
        pytest.param(">/dev/full 2>/dev/full", marks=pytest.mark.full),
        pytest.param("2>&1 | head -1", marks=pytest.mark.full),
    ],
)
def test_a_run_whose_output_is_lost_ends_well_and_says_so_in_the_store(redirection: str, tmp_path: Path) -> None:
    command = job_command(["run", *QUICK, "--run.id=r", "--observe.termination_log=./termination"])
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(command)} {redirection}; exit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        env=job_environment({"PYTHONPATH": str(Path.cwd())}),
        timeout=120,
        check=False,
    )

    assert done.returncode == 0
    assert json.loads((tmp_path / "termination").read_text())["outcome"] == "committed"
    stored = [
        json.loads(line) for path in (tmp_path / "out").rglob("*.jsonl") for line in path.read_text().splitlines()
    ]
    names = [event["event"] for event in stored]
    assert {"run.start", "commit.done", "run.end"} <= set(names)
    assert ("output.lost" in names) == ("head" not in redirection)


@pytest.mark.full
def test_a_run_that_was_stopped_for_longer_than_the_watchdog_waits_goes_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        job_command(["run", *QUICK, "--train.epochs=100", "--run.id=r", "--observe.stall_timeout_seconds=10"]),
        cwd=tmp_path,
        env=job_environment({"PYTHONPATH": str(Path.cwd())}),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "epoch.end":
            break
    process.send_signal(signal.SIGSTOP)
    time.sleep(20.0)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=300)

    events = [json.loads(line) for line in output.splitlines()]
    assert process.returncode == 0
    assert [event["seconds"] > 15 for event in events if event["event"] == "process.paused"].count(True) == 1
    assert events[-1]["goodput"]["seconds"]["paused"] > 15


def test_sigkill_leaves_a_termination_message_that_says_running(tmp_path: Path) -> None:
    termination_log = tmp_path / "termination"
    process = subprocess.Popen(
        job_command(["run", *QUICK, "--run.id=r", f"--observe.termination_log={termination_log}"]),
        cwd=tmp_path,
        env=job_environment({"PYTHONPATH": str(Path.cwd())}),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()

    message = json.loads(termination_log.read_text())
    assert (message["run"], message["outcome"], message["code"]) == ("r", "running", None)


def test_loss_that_is_not_finite_stops_with_70_naming_epoch_and_step(run_job: RunJob, tmp_path: Path) -> None:
    done = run_job("run", *QUICK, "--model.activation=relu", "--train.learning_rate=1e6")

    assert done.code == 70
    assert "loss is not finite in epoch 1, step" in done.error
    assert not list((tmp_path / "out").rglob("COMMIT.json"))
    assert not list((tmp_path / "out").rglob("saved_model.pb"))


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--train.global_batch_size=1438"], 64, "at most the 1437 training examples, received 1438"),
        (
            ["--cluster.cpu_replicas=2", "--train.global_batch_size=33"],
            64,
            "multiple of the 2 replicas, received 33; use 32 or 34",
        ),
        (["--cluster.cpu_replicas=2", "--train.compile=xla"], 64, "xla works with one replica, received 2"),
        (["--cluster.expected_gpus=1"], 66, "cluster.expected_gpus: 1 must be visible, TensorFlow sees 0"),
        (["--data.train_examples=9999"], 64, "data.train_examples: must be at most the 1437"),
    ],
)
def test_what_only_the_machine_or_the_data_can_refuse(
    run_job: RunJob, flags: list[str], code: int, message: str
) -> None:
    done = run_job("run", *QUICK, *flags)

    assert done.code == code
    assert message in done.error


@pytest.mark.parametrize(
    "flags",
    [
        ["--train.precision=bfloat16"],
        ["--model.dropout=0.2", "--train.optimizer=sgd"],
        [
            "--model.hidden_units=64,32",
            "--model.activation=relu",
            "--train.optimizer=adam",
            "--train.learning_rate=0.001",
        ],
        ["--train.schedule=step", "--train.step_epochs=1", "--train.warmup_steps=9", "--train.optimizer=nesterov"],
        pytest.param(["--train.optimizer=lion", "--train.learning_rate=0.001"], marks=pytest.mark.full),
        pytest.param(["--train.weight_decay=0.01", "--train.optimizer=rmsprop"], marks=pytest.mark.full),
        pytest.param(["--train.compile=graph", "--run.seed=random"], marks=pytest.mark.full),
    ],
    ids=lambda flags: flags[0],
)
def test_options_of_model_and_train_all_train_and_verify(run_job: RunJob, flags: list[str]) -> None:
    done = run_job("run", *QUICK, "--train.epochs=8", "--run.id=r", *flags)

    assert done.code == 0, done.stderr
    losses = [event["loss"] for event in done.events if event["event"] == "epoch.end"]
    assert losses[-1] < losses[0]
    assert run_job("verify", "--run", "r").code == 0


def weights_digest(run_job: RunJob, *flags: str) -> object:
    return run_job("run", *QUICK, "--train.epochs=1", *flags).event("commit.done")["weights_digest"]


@pytest.mark.full  # reproducing a run shows the same seed, and resuming one as well
def test_same_seed_gives_the_same_weights_and_another_seed_does_not(run_job: RunJob) -> None:
    first, again, other = (
        weights_digest(run_job, "--train.compile=xla", flag)
        for flag in ("--run.suffix=a", "--run.suffix=b", "--run.seed=7")
    )
    assert first == again
    assert first != other


def test_graph_weights_do_not_depend_on_the_threads(run_job: RunJob) -> None:
    # XLA's do on CPUs without AVX-512: docs/adr/0004-threads-and-bits.md.
    one, two = (
        weights_digest(
            run_job, "--train.compile=graph", f"--cluster.intra_op_threads={threads}", f"--run.suffix={threads}"
        )
        for threads in (1, 2)
    )
    assert one == two


def test_replicas_share_each_global_batch(run_job: RunJob) -> None:
    runs = {
        replicas: run_job("run", *QUICK, f"--cluster.cpu_replicas={replicas}", f"--run.suffix={replicas}")
        for replicas in (1, 2, 4)
    }

    assert [run.code for run in runs.values()] == [0, 0, 0], runs[2].stderr
    for replicas in (2, 4):
        assert runs[replicas].event("train.start")["replicas"] == replicas
        for name in ("loss", "test_loss"):
            ours = [event[name] for event in runs[replicas].events if event["event"] == "epoch.end"]
            theirs = [event[name] for event in runs[1].events if event["event"] == "epoch.end"]
            assert ours == pytest.approx(theirs, abs=1e-5)


def test_own_model_and_own_data_train_export_and_verify(run_job: RunJob, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        """
import keras, numpy as np
from job.datasets import Dataset

def conv(input_shape, num_classes):
    return keras.Sequential([
        keras.Input(input_shape),
        keras.layers.Reshape((*input_shape[:2], input_shape[2] if len(input_shape) == 3 else 1)),
        keras.layers.Conv2D(4, 3, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(num_classes, activation="softmax"),
    ])

def stripes():
    random = np.random.default_rng(0)
    def split(count):
        labels = random.integers(0, 3, count)
        images = random.integers(0, 40, (count, 12, 10, 3), np.uint8)
        images[np.arange(count), :, :, labels] += 150
        return images, labels
    train, test = split(400), split(100)
    return Dataset(train_images=train[0], train_labels=train[1], test_images=test[0], test_labels=test[1],
                   class_names=("red", "green", "blue"))
"""
    )
    flags = ["--model.build=mine:conv", "--data.source=mine:stripes", "--run.id=own", "--train.epochs=15"]
    done = run_job(
        "run", *flags, "--train.optimizer=adam", "--train.learning_rate=0.02", "--train.global_batch_size=32",
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip

    assert done.code == 0, done.stderr
    assert done.event("data.ready")["dataset"] == "mine.stripes"
    assert done.event("data.ready")["image_shape"] == [12, 10, 3]
    assert done.event("run.end")["accuracy"] > 0.9
    assert run_job("verify", "--run", "own").code == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 3", "must return a keras.Model, received int"),
        (
            "return keras.Sequential([keras.Input(s), keras.layers.Flatten(), keras.layers.Dense(n + 1)])",
            "must end in 10",
        ),
    ],
)
def test_own_model_that_does_not_fit_is_refused(run_job: RunJob, tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(f"import keras\ndef build(s, n):\n    {body}\n")

    done = run_job("run", *QUICK, "--model.build=mine:build", env={"PYTHONPATH": str(tmp_path)})

    assert done.code == 64
    assert message in done.error
