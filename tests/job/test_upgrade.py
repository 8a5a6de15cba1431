"""A store, and ids, made by the program of commit 4df85ca (`upgrade/`): today's program goes on with them as if it had made them.

The store holds two champions, a run that the gate refused, one with a generated id that never met the gate, and a run that was
stopped at step 90 of 2,700. `pins.json` holds ids and digests of settings, and what the stopped run ends in when nobody stops it.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from job.config_sources import load_config
from job.runs.identity import digest_of_inputs, make_run_id, result_inputs
from tests.charts.helm import render, run_id
from tests.conftest import QUICK, Finished, RunJob

_FOLDER = Path(__file__).parent / "upgrade"
PINS: dict[str, Any] = json.loads((_FOLDER / "pins.json").read_text())
_SETTINGS = (*QUICK[:-1], "--model.hidden_units=8", "--train.compile=xla")


@pytest.fixture
def store(tmp_path: Path) -> str:
    """The flag that names the unpacked store."""
    with tarfile.open(_FOLDER / "store.tar.xz") as archive:
        archive.extractall(tmp_path / "out", filter="data")
    return f"--store.uri=file:{tmp_path}/out"


def _json(done: Finished) -> dict[str, Any]:
    assert done.code == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


@pytest.mark.parametrize("pinned", PINS["python"], ids=lambda pinned: " ".join(pinned["flags"]) or "defaults")
def test_ids_and_digests_of_settings_are_those_of_before(pinned: dict[str, Any]) -> None:
    config = load_config(pinned["flags"]).config
    compile_with = "xla" if config.train.compile == "auto" else config.train.compile
    assert isinstance(config.run.seed, int)
    inputs = result_inputs(
        config, seed=config.run.seed, compile_with=compile_with, num_replicas=1, dataset_digest="d" * 64
    )
    assert make_run_id(config) == pinned["run_id"]
    assert digest_of_inputs(inputs) == pinned["result_digest"]


@pytest.mark.parametrize("pinned", PINS["chart"], ids=lambda pinned: json.dumps(pinned["values"]))
def test_ids_of_the_charts_runs_are_those_of_before(pinned: dict[str, Any]) -> None:
    assert run_id(render(pinned["values"])) == pinned["run_id"]


@pytest.mark.tf
def test_committed_run_and_champion_verify(run_job: RunJob, store: str) -> None:
    done = run_job("verify", "--run=local.digits-c73f0e26", store)
    assert done.code == 0, done.stderr
    assert "SHA-256 as committed" in done.stdout
    champion = run_job("verify", "--champion=digits", store)
    assert champion.code == 0, champion.stderr
    assert "old.second" in champion.stdout


def test_runs_show_and_log_are_read(run_job: RunJob, store: str) -> None:
    table = run_job("runs", store).stdout
    assert "promoted (not_worse)" in table
    assert "refused (max_accuracy_drop)" in table
    assert "interrupted" in table
    shown = _json(run_job("show", "old.second", "-o", "json", store))
    assert shown["champion"][0]["version"] == 2
    assert shown["champion"][0]["is_champion"]
    assert shown["gate"]["verdict"] == "promoted"
    assert run_job("logs", "old.half", store).stdout.count("epoch.end") == 2


def test_report_is_made_again(run_job: RunJob, store: str, tmp_path: Path) -> None:
    assert run_job("report", "old.first", store).code == 0
    assert "first champion" in (tmp_path / "report.html").read_text()


def test_champion_is_moved_and_taken_back(run_job: RunJob, store: str) -> None:
    back = run_job("rollback", "--why=try", store)
    assert "run old.first, version 3" in back.stdout, back.stderr
    refused = run_job("promote", "old.refused", store)
    assert refused.code == 78
    assert "below the champion that all are measured by" in refused.error
    forced = run_job("promote", "local.digits-c73f0e26", "--force", store)
    assert "version 4 (forced)" in forced.stdout, forced.stderr


def test_garbage_is_the_run_that_was_given_up(run_job: RunJob, store: str) -> None:
    found = run_job("gc", "--older-than=1h", store)
    assert found.code == 0, found.stderr
    assert "runs/old.half/: 4 objects" in found.stdout
    assert "no result, and no sign of life since" in found.stdout


@pytest.mark.tf
def test_stopped_run_goes_on_and_ends_as_if_nobody_had_stopped_it(run_job: RunJob, store: str) -> None:
    done = run_job("run", store, *_SETTINGS, "--train.epochs=60", "--run.id=old.half")
    assert done.code == 0, done.stderr
    assert done.event("checkpoint.restored")["step"] == 90
    commit, pinned = _json(run_job("show", "old.half", "-o", "json", store)), PINS["resumed"]
    assert commit["result_digest"] == pinned["result_digest"]
    assert [link["from_step"] for link in commit["chain"]] == [0, 90]
    if commit["chain"][1]["computed_on"] == pinned["computed_on"]:  # else other bits are no fault
        assert commit["bit_identical"]
        assert commit["state_digest"] == pinned["state_digest"]


@pytest.mark.tf
def test_stopped_run_of_two_replicas_keeps_the_digest_that_it_began_with(run_job: RunJob, tmp_path: Path) -> None:
    """Made when the number of replicas did not decide the result (docs/adr/0011)."""
    with tarfile.open(_FOLDER / "replicas.tar.xz") as archive:
        archive.extractall(tmp_path / "out", filter="data")
    flags = (*QUICK[:-1], "--model.hidden_units=8", "--train.epochs=60", "--run.id=old.replicas")
    other = run_job("run", *flags)
    assert other.code == 73, "one replica with XLA is another run"
    done = run_job("run", *flags, "--cluster.cpu_replicas=2", "--promotion.enabled=false")
    assert done.code == 0, done.stderr
    assert done.event("checkpoint.restored")["step"] == 90
    commit = _json(run_job("show", "old.replicas", "-o", "json"))
    assert commit["result_digest"] == PINS["replicas"]["result_digest"]
    if commit["bit_identical"]:  # else other bits are no fault
        assert commit["state_digest"] == PINS["replicas"]["state_digest"]
    again = run_job("run", *flags, "--cluster.cpu_replicas=2", "--promotion.enabled=false")
    assert again.event("run.end")["outcome"] == "already_committed"


@pytest.mark.tf
def test_committed_run_is_found_committed(run_job: RunJob, store: str) -> None:
    done = run_job("run", store, *_SETTINGS, "--train.epochs=2", "--run.id=old.first")
    assert done.code == 0, done.stderr
    assert done.event("run.end")["outcome"] == "already_committed"


@pytest.mark.tf
def test_committed_run_is_reproduced(run_job: RunJob, store: str) -> None:
    done = run_job("reproduce", "local.digits-c73f0e26", store)
    if done.code == 73:  # not by a fault of ours
        assert "this machine computes other bits" in done.error
        return
    assert done.code == 0, done.stderr
    assert "state digest" in done.stdout
