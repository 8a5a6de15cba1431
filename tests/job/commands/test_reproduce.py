"""A run made again from its COMMIT alone: equal digests, or why not."""

import json
from pathlib import Path
from typing import Any

import pytest

from job.commands.reproduce import compare, settings_of
from job.digests import canonical_json, sha256_hex
from job.errors import ConflictError, IntegrityError
from job.runs.lineage import checked_out_revision
from job.runs.read import CommittedRun, parse_run
from tests.conftest import QUICK, RunJob

_ENV = {"IMAGE": "registry.example/x@sha256:1", "CHART_VERSION": "0.1.0", "REVISION": "c0ffee"}


@pytest.mark.tf
def test_a_committed_run_is_reproduced_whatever_the_environment_says_now(run_job: RunJob, tmp_path: Path) -> None:
    made = run_job("run", *QUICK, "--run.id=r", "--run.seed=random", "--model.dropout=0.1", env=_ENV)
    assert made.code == 0, made.stderr
    commit = json.loads((tmp_path / "out/runs/r/COMMIT.json").read_text())
    assert (commit["lineage"]["revision"], commit["lineage"]["image"]) == ("c0ffee", _ENV["IMAGE"])
    assert commit["lineage"]["chart_version"] == "0.1.0"
    assert commit["config"]["train"]["epochs"] == 2
    assert commit["config_digest"] == sha256_hex(canonical_json(commit["config"]))

    done = run_job("reproduce", "r", "--store.uri", "file:./out", env={"MNIST_TRAIN__EPOCHS": "7"})
    assert done.code == 0, done.stderr
    for name in ("result_digest", "weights_digest", "state_digest"):
        assert f"{commit[name]}: equal" in done.stdout
    assert [path.name for path in (tmp_path / "out/runs").iterdir()] == ["r"]  # made somewhere else

    other = run_job("reproduce", "r", "--data.train_examples=1000", "--to=file:./again", "--store.deadline_seconds=60")
    assert other.code == 73
    assert "run r was not reproduced: result_digest, weights_digest, state_digest differ: other data" in other.error
    assert len(list((tmp_path / "again/runs").iterdir())) == 1

    absent = run_job("reproduce", "r", "--data.source=idx", "--data.uri=/nowhere")
    assert absent.code == 66
    assert "run r was not reproduced: the training ended with 66" in absent.error


def test_a_run_without_a_result_is_refused(run_job: RunJob) -> None:
    done = run_job("reproduce", "nothing")
    assert done.code == 66
    assert "run nothing has no COMMIT" in done.error


def _commit(**changes: Any) -> CommittedRun:
    lineage = {
        **dict.fromkeys(("run", "attempt", "started", "revision", "image", "chart_version", "version", "python"), ""),
        "pod": {},
        "machine": "x86_64",
        "instruction_sets": ["avx2"],
        "onednn_max_cpu_isa": None,
        "devices": ["cpu"],
        "packages": {"keras": "3"},
        "compile": "graph",
        "threads": {"intra_op": 2, "inter_op": 2},
    }
    content = {"run": "r", "attempt": "a", "dataset": {"name": "plain"}, "metrics": {"test_accuracy": 0.5}, "files": []}
    digests = {"result_digest": "r", "weights_digest": "w", "state_digest": "s"}
    record = content | digests | {"lineage": lineage | changes.pop("lineage", {})} | changes
    committed = parse_run(json.dumps(record).encode(), "r")
    assert isinstance(committed, CommittedRun)
    return committed


def test_other_hardware_is_named_when_the_weights_differ() -> None:
    now = _commit(weights_digest="v", state_digest="t", lineage={"instruction_sets": ["avx2", "avx512f"]})
    with pytest.raises(
        ConflictError, match=r"weights_digest, state_digest differ: this machine computes other bits: instr"
    ):
        compare(_commit(), now).check(run="r")
    compare(_commit(), _commit(lineage={"instruction_sets": ["avx512f"]})).check(run="r")  # other hardware, equal bits


def test_other_weights_on_the_same_hardware_are_said() -> None:
    with pytest.raises(ConflictError, match="although machine, versions and threads are the same"):
        compare(_commit(), _commit(weights_digest="v")).check(run="r")


def test_a_commit_without_its_settings_is_refused() -> None:
    with pytest.raises(IntegrityError, match="does not say how its run was made: 'config'"):
        settings_of(_commit())


def test_the_revision_of_a_checkout_is_read_without_git(tmp_path: Path) -> None:
    assert checked_out_revision(tmp_path) == ""
    git = tmp_path / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text("# pack-refs\nabc refs/heads/other\ndef refs/heads/main\n")
    assert checked_out_revision(tmp_path) == "def"
    (git / "refs/heads/main").write_text("123\n")
    assert checked_out_revision(tmp_path) == "123"
    (git / "HEAD").write_text("456\n")
    assert checked_out_revision(tmp_path) == "456"
