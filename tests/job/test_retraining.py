"""Retraining as a schedule does it: real models, the gate, what is served, and runs that have nothing to do."""

import json
from pathlib import Path

import numpy as np
import pytest

from job.digests import sha256_hex
from tests.conftest import QUICK, RunJob
from tests.job.training.hostile_models import hostile_graphs, write_model

pytestmark = pytest.mark.tf

SMALL = (*QUICK, "--model.hidden_units=32")


def message_of(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "termination").read_text())
    return content


def test_worse_candidate_is_refused_better_one_promoted_and_the_champion_is_served(
    run_job: RunJob, tmp_path: Path
) -> None:
    log = f"--observe.termination_log={tmp_path / 'termination'}"
    first = run_job("run", *SMALL, log, "--run.id=first", "--train.epochs=4")
    assert (first.code, first.event("gate.decided")["rule"]) == (0, "first")
    assert message_of(tmp_path)["promoted"] is True

    worse = run_job("run", *SMALL, log, "--run.id=worse", "--train.epochs=1")
    assert (worse.code, worse.event("gate.decided")["verdict"]) == (0, "refused")
    message = message_of(tmp_path)
    assert (message["outcome"], message["promoted"]) == ("committed", False)
    assert "below the champion that all are measured by" in str(message["reason"])
    assert "champion_accuracy" not in message

    again = run_job("run", *SMALL, log, "--run.id=worse", "--train.epochs=1", "--promotion.refused_is_failure=true")
    assert again.code == 78
    assert "mnist-job: error 78: the gate refused run worse, which is committed and whole: accuracy" in again.error
    assert (message_of(tmp_path)["code"], message_of(tmp_path)["promoted"]) == (78, False)

    better = run_job("run", *QUICK, "--run.id=better", "--train.epochs=8")
    assert (better.code, better.event("gate.decided")["rule"]) == (0, "not_worse")

    verified = run_job("verify", "--champion=digits")
    assert verified.code == 0, verified.stderr
    assert "champion of digits: version 2 since 20" in verified.stdout
    assert "serving layout: 4 files, equal" in verified.stdout


def test_champion_of_another_test_split_is_scored_again_on_the_candidates(run_job: RunJob, tmp_path: Path) -> None:
    assert run_job("run", *SMALL, "--run.id=first", "--train.epochs=8").code == 0
    second = run_job("run", *SMALL, "--run.id=second", "--data.test_examples=200", "--train.epochs=1")
    assert second.code == 0, second.stderr
    assert second.event("gate.reevaluate")["champion"] == "first"
    decided = second.event("gate.decided")
    assert (decided["verdict"], decided["rule"]) == ("refused", "max_accuracy_drop")
    numbers = json.loads((tmp_path / "out/runs/second/gate.json").read_text())["numbers"]

    # The same split in the same order: the first 200 of the champion's own predictions say the same.
    from safetensors.numpy import load_file

    [path] = (tmp_path / "out/runs/first").rglob("predictions.safetensors")
    stored = load_file(path)
    right = stored["probabilities"][:200].argmax(1) == stored["labels"][:200]
    assert numbers["champion_accuracy"] == pytest.approx(float(np.mean(right)))


def test_nothing_is_trained_when_the_champion_came_from_the_same_inputs_and_image(
    run_job: RunJob, tmp_path: Path
) -> None:
    skip = ("--run.skip_if_unchanged=true", f"--observe.termination_log={tmp_path / 'termination'}")
    image = {"IMAGE": "registry/mnist-train@sha256:1"}
    first = run_job("run", *SMALL, *skip, "--run.id=night-1", env=image)
    assert (first.code, first.event("run.end")["outcome"]) == (0, "committed")
    (tmp_path / "out/models/digits/versions/1/saved_model.pb").unlink()  # and a layout that was cut off is repaired

    second = run_job("run", *SMALL, *skip, "--run.id=night-2", env=image)
    assert (second.code, second.event("run.end")["outcome"]) == (0, "skipped")
    names = [event["event"] for event in second.events]
    assert "train.start" not in names
    assert "layout.done" in names
    assert not (tmp_path / "out/runs/night-2/run.json").exists()
    message = message_of(tmp_path)
    assert (message["commit"], message["promoted"]) == ("runs/night-1/COMMIT.json", None)
    for threads in (1, 2):  # of which one chooses another compilation than the champion had
        flags = (f"--cluster.intra_op_threads={threads}", "--run.id=night-2")
        assert run_job("run", *SMALL, *skip, *flags, env=image).event("run.end")["outcome"] == "skipped"

    for number, change in enumerate(([], ["--train.epochs=3"], ["--run.seed=random"])):
        other = image if change else {"IMAGE": "registry/mnist-train@sha256:2"}
        done = run_job("run", *SMALL, *skip, f"--run.id=night-{3 + number}", *change, env=other)
        assert (done.code, done.event("run.end")["outcome"]) == (0, "committed")
        assert done.event("gate.decided")["verdict"] in ("same", "promoted", "refused")


def test_seed_of_a_schedule_is_derived_and_recorded(run_job: RunJob, tmp_path: Path) -> None:
    seeds = []
    for run in ("night-1", "night-2", "night-1"):
        assert run_job("run", *SMALL, f"--run.id={run}", "--run.seed=random").code == 0
        seeds.append(json.loads((tmp_path / f"out/runs/{run}/COMMIT.json").read_text())["inputs"]["seed"])
    assert seeds[0] == seeds[2] != seeds[1]


def test_run_with_promotion_disabled_is_committed_and_decided_about_later(run_job: RunJob, tmp_path: Path) -> None:
    done = run_job("run", *SMALL, "--run.id=r", "--promotion.enabled=false")
    assert done.code == 0
    assert [path.name for path in (tmp_path / "out/models").rglob("*") if path.is_file()] == ["index.html"]
    assert not (tmp_path / "out/runs/r/gate.json").exists()
    again = run_job("run", *SMALL, "--run.id=r")
    assert (again.event("run.end")["outcome"], again.event("gate.decided")["rule"]) == ("already_committed", "first")
    assert (tmp_path / "out/models/digits/versions/1/saved_model.pb").exists()


def test_retention_is_applied_after_a_committed_run(run_job: RunJob, tmp_path: Path) -> None:
    flags = (*SMALL, "--retention.keep_runs=1", "--retention.keep_versions=1")
    for number, epochs in enumerate((8, 1, 2)):
        assert run_job("run", *flags, f"--run.id=night-{number}", f"--train.epochs={epochs}").code == 0
    states = {row["run"]: row["champion"] is not None for row in json.loads(run_job("runs", "-o", "json").stdout)}
    assert states == {"night-0": True, "night-2": False}
    again = run_job("run", *flags, "--run.id=night-1", "--train.epochs=1")
    assert again.code == 0, "it was committed"
    assert again.event("run.end")["outcome"] == "retired"


def replace_model(attempt: Path, model: Path) -> None:
    """Swap the graph of a committed run as someone may who can write the store: the COMMIT fits."""
    commit = attempt.parent.parent / "COMMIT.json"
    data = (model / "saved_model.pb").read_bytes()
    (attempt / "model/saved_model.pb").write_bytes(data)
    record = json.loads(commit.read_text())
    for file in record["files"]:
        if file["key"].endswith("/saved_model.pb"):
            file |= {"num_bytes": len(data), "sha256": sha256_hex(data)}
    commit.write_text(json.dumps(record))


@pytest.mark.full
@pytest.mark.security("S5")
def test_champion_with_other_weights_than_committed_is_not_compared(run_job: RunJob, tmp_path: Path) -> None:
    assert run_job("run", *SMALL, "--run.id=first").code == 0
    commit = tmp_path / "out/runs/first/COMMIT.json"
    commit.write_text(json.dumps(json.loads(commit.read_text()) | {"weights_digest": "a" * 64}))

    second = run_job("run", *SMALL, "--run.id=second", "--data.test_examples=200", "--train.epochs=1")
    assert second.code == 0, second.stderr
    decided = second.event("gate.decided")
    assert (decided["verdict"], decided["rule"]) == ("refused", "not_comparable")
    assert "the model of the champion has other weights than its COMMIT says" in decided["reason"]


@pytest.mark.full
@pytest.mark.security("S4")
def test_graph_of_a_champion_that_writes_files_is_refused_in_gate_and_verify_and_fails_no_run(
    run_job: RunJob, tmp_path: Path
) -> None:
    assert run_job("run", *SMALL, "--run.id=first").code == 0
    canary = tmp_path / "canary"
    [attempt] = (tmp_path / "out/runs/first/attempts").iterdir()
    replace_model(attempt, write_model(tmp_path / "hostile", hostile_graphs(canary)["write"][1]))

    second = run_job("run", *SMALL, "--run.id=second", "--data.test_examples=200", "--train.epochs=1")
    assert second.code == 0, second.stderr
    decided = second.event("gate.decided")
    assert (decided["verdict"], decided["rule"]) == ("refused", "not_comparable")
    assert "the model of the champion has the operation 'WriteFile' (node 'WriteFile' in function " in decided["reason"]
    assert second.event("gate.champion_unscored")["champion"] == "first"

    verified = run_job("verify", "--run=first")
    assert verified.code == 65
    assert "error 65: the model of run first has the operation 'WriteFile'" in verified.error
    assert not canary.exists()
