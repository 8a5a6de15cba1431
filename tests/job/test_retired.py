"""A run that was committed and then removed by retention, started again: as a Job is that GitOps makes anew."""

import json
from pathlib import Path
from typing import Any

import pytest

from job import contract
from job.config import StoreSection
from job.digests import canonical_json
from job.registry.retention import remove_runs
from job.runs import write
from job.store.open import open_store
from job.store.store import Store
from tests.conftest import Finished, RunJob

_SETTINGS = ("--observe.metrics_port=0", "--data.source=digits", "--train.global_batch_size=16", "--train.epochs=2")


def start(run_plain: RunJob, *flags: str) -> Finished:
    given = (*_SETTINGS, "--observe.termination_log=termination", "--run.id=r", *flags)
    return run_plain("run", *({flag.partition("=")[0]: flag for flag in given}).values())


def state_of(folder: Path) -> dict[str, bytes]:
    """Everything below a folder but what attempts log."""
    files = (path for path in folder.rglob("*") if path.is_file() and "logs" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(StoreSection(uri=f"file:{tmp_path}/out"), environ={})


@pytest.fixture
def committed(run_plain: RunJob) -> None:
    """The run `r`, which never met the gate."""
    done = start(run_plain, "--promotion.enabled=false")
    assert done.code == 0, done.stderr


@pytest.mark.usefixtures("committed")
def test_start_of_a_retired_run_ends_with_0_and_trains_nothing(run_plain: RunJob, store: Store, tmp_path: Path) -> None:
    remove_runs(store, ["r"], keep_versions=1)
    before = state_of(tmp_path / "out")

    again = start(run_plain, "--observe.log_format=json")

    assert again.code == 0, again.stderr
    message: dict[str, Any] = json.loads((tmp_path / "termination").read_text())
    assert (message["outcome"], message["code"], message["commit"], message["promoted"]) == ("retired", 0, None, None)
    assert message["reason"].startswith("run r was committed, and removed by retention at 20")
    assert "another run.suffix" in message["reason"]
    names = [event["event"] for event in again.events]
    assert "train.start" not in names
    assert "error" not in names
    assert again.event("run.end")["outcome"] == "retired"
    assert again.event("run.retired")["reason"] == message["reason"]
    assert state_of(tmp_path / "out") == before

    other = start(run_plain, "--train.epochs=3", "--observe.log_format=text")
    assert other.code == 73, "other settings under the same id are no result of this run"
    assert "exists with another result digest (train.epochs was 2, is 3)" in other.error
    told = start(run_plain, "--observe.log_format=text")
    assert "Nothing is left to do: run r was committed, and removed by retention at 20" in told.stdout


@pytest.mark.usefixtures("committed")
def test_commands_say_what_is_left_of_a_retired_run(run_plain: RunJob, store: Store) -> None:
    remove_runs(store, ["r"], keep_versions=1)
    assert json.loads(run_plain("runs", "-o", "json").stdout) == []
    [row] = json.loads(run_plain("runs", "--all", "-o", "json").stdout)
    assert (row["run"], row["state"], row["accuracy"]) == ("r", "retired", None)
    shown = json.loads(run_plain("show", "r", "-o", "json").stdout)
    assert (shown["run"], shown["state"], shown["inputs"]["train"]["epochs"]) == ("r", "retired", 2)
    assert shown["retired"] > shown["created"]
    assert shown["champion"] == []
    refused = run_plain("verify", "--run=r")
    assert refused.code == 73
    assert "run r was committed, and removed by retention" in refused.error


@pytest.mark.usefixtures("committed")
def test_run_that_was_given_up_is_still_refused(run_plain: RunJob, store: Store) -> None:
    store.delete(contract.commit_key("r"))  # as a run that was stopped
    assert write.abandon(store, "r")
    refused = start(run_plain)
    assert refused.code == 73
    assert "run r was given up and removed by mnist-job gc at 20" in refused.error
    assert run_plain("show", "r").code == 73


@pytest.mark.usefixtures("committed")
def test_record_of_an_older_version_says_that_the_run_was_committed(run_plain: RunJob, store: Store) -> None:
    old = {"abandoned": "2026-11-24T05:08:49.883+00:00", "by": "retention", "format": 1, "run": "r"}
    store.put(contract.commit_key("r"), canonical_json(old))
    again = start(run_plain, "--observe.log_format=json")
    assert (again.code, again.event("run.end")["outcome"]) == (0, "retired")


@pytest.mark.usefixtures("committed")
def test_run_that_retention_has_only_marked_ends_with_0_too(run_plain: RunJob, store: Store) -> None:
    """Retention was killed after its mark: the result stands, and cannot become champion any more."""
    store.create(contract.retirement_key("r", token="0" * 16), b"{}")
    again = start(run_plain, "--observe.log_format=json")
    assert (again.code, again.event("run.end")["outcome"]) == (0, "retired"), again.stderr
    assert "run r is being removed, or was (retention.keep_runs)" in again.event("run.retired")["reason"]
