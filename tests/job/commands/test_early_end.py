"""Attempts that end before `run_command` has set anything up: an event, a push and a stored log line all the same."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from job.config_sources import salvage
from tests.conftest import REPOSITORY, RunJob, job_command, job_environment
from tests.job.observe.test_metrics import Gateway, names, parse, serve_gateway, value

_SCHEDULED = {"RUN_ORIGIN": "schedule", "POD_NAMESPACE": "ml", "RELEASE": "nightly", "POD_UID": "u-1"}
_ANY_END = {"last_run_timestamp_seconds", "last_start_timestamp_seconds", "exit_code", "outcome"}


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    yield from serve_gateway()


def test_a_wrong_setting_is_an_event_a_push_and_a_stored_log_line(
    run_job: RunJob, gateway: Gateway, tmp_path: Path
) -> None:
    flags = ("--store.uri=file:./s", "--run.id=ns.r", f"--observe.pushgateway_url={gateway[0]}")
    done = run_job("run", "--train.epochz=3", *flags, env=_SCHEDULED)
    assert done.code == 64
    assert [event["event"] for event in done.events] == ["metrics.pushed", "error", "run.end"]
    assert "did you mean --train.epochs" in done.event("error")["reason"]
    assert (done.event("run.end")["outcome"], done.event("run.end")["code"]) == ("failed", 64)
    [(_, path, body)] = gateway[1].received
    assert path == "/metrics/job/mnist-train/model/mnist/namespace/ml/origin/schedule/release/nightly"
    series = parse(body)
    assert names(series) == _ANY_END, "the last success, durations and verdicts stay as they are"
    assert value(series, "exit_code") == 64
    [stored] = tmp_path.glob("s/runs/ns.r/logs/u-1/*.jsonl")
    assert [json.loads(line)["event"] for line in stored.read_text().splitlines()] == [
        "metrics.pushed",
        "error",
        "run.end",
    ]
    assert 'mnist_train_phase{phase="end"} 1.0' in (stored.parent / "metrics.prom").read_text()


def test_a_model_that_is_not_known_is_no_label_and_a_store_that_is_wrong_gets_nothing(
    run_job: RunJob, gateway: Gateway, tmp_path: Path
) -> None:
    flags = ("--observe.log_format=text", "--run.id=ns.r", f"--observe.pushgateway_url={gateway[0]}")
    done = run_job("run", "--data.source=nowhere", "--store.urii=s3://b", "--store.uri=file:./s", *flags)
    assert done.code == 64
    [(_, path, _)] = gateway[1].received
    assert path == "/metrics/job/mnist-train/origin/manual"
    assert not done.stdout, "on stderr it is already"
    assert [*tmp_path.iterdir()] == []


def test_a_signal_at_the_start_is_told_too(gateway: Gateway, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "settings")
    arguments = ["run", f"--config={tmp_path / 'settings'}", f"--observe.pushgateway_url={gateway[0]}"]
    environment = job_environment({"PYTHONPATH": str(REPOSITORY)})
    command = job_command(arguments)
    with (
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as job,
        (tmp_path / "settings").open("w"),  # it is open when the job reads
    ):
        job.terminate()
        output = job.communicate(timeout=60)[0]
    assert job.returncode == 75
    assert [json.loads(line)["event"] for line in output.splitlines()] == [
        "metrics.pushed",
        "run.interrupted",
        "run.end",
    ]
    [(_, _, body)] = gateway[1].received
    assert value(parse(body), "exit_code") == 75


def test_help_is_no_end(run_job: RunJob, tmp_path: Path) -> None:
    done = run_job("run", "--help", "--observe.pushgateway_url=http://127.0.0.1:9")
    assert (done.code, done.events) == (0, [])


def _write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "flags", "lost", "epochs"),
    [
        ("train: {epochs: 5}", ["--train.epochs=x"], {"train.epochs"}, None),
        ("train: {epochs: 5}", ["--train.epochs"], {"train.epochs"}, 5),
        ("trian: {epochs: 5}\nobserve: {report: maybe}", ["--run.x=1", "stray"], {"run.x", "observe.report"}, None),
        ("train: {epochs: 5, schedule: step}", [], {"train.schedule"}, 5),
        ("train: {early_stopping_patience: 3, epochs: 5}", [], {"train.early_stopping_patience"}, 5),
        ("train: [", ["--train.epochs=6"], {"--config"}, 6),
        ("a: &a [*a]", [], set(), None),
    ],
)
def test_what_is_right_is_kept_beside_what_is_wrong(
    text: str, flags: list[str], lost: set[str], epochs: int | None, tmp_path: Path
) -> None:
    right = ["--observe.pushgateway_url=http://gateway:9091"]
    found = salvage([*flags, *right], config_files=[_write(tmp_path, text)])
    assert str(found.config.observe.pushgateway_url) == "http://gateway:9091"
    assert lost <= found.lost
    if epochs:
        assert found.config.train.epochs == epochs


@pytest.mark.security("S10")
def test_what_is_kept_holds_no_credentials() -> None:
    found = salvage(["--observe.pushgateway_url=http://me:pw1@gateway:9091", "--store.uri=s3://me:pw1@bucket"])
    assert found.config.observe.pushgateway_url is None
    assert "pw1" not in str(found)
    assert found.lost == {"observe.pushgateway_url", "store.uri"}


def test_in_a_pod_of_the_chart_the_environment_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_OBSERVE__PUSHGATEWAY_URL", "http://gateway:9091")
    assert salvage([]).config.observe.pushgateway_url == "http://gateway:9091"
    monkeypatch.setenv("CHART_VERSION", "0.1.0")
    assert salvage([]).config.observe.pushgateway_url is None
